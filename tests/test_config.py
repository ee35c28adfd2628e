"""The configuration: what comes with the project is valid, and mistakes are named."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import check_config, load_config
from pipeline.errors import AVQAError

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "config").glob("*.yaml") if p.name != "schema.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_say_nothing_twice(path):
    config = load_config(path)
    assert check_config(yaml.safe_load(yaml.safe_dump(config))) == config


def test_the_papers_setting_is_the_default():
    train = load_config(CONFIGS[0].parent / "music_avqa.yaml")["train"]
    assert (train["learning_rate"], train["decay"], train["decay_every"]) == (1e-4, 0.1, 8)
    assert (train["batch_size"], train["epochs"], train["seeds"]) == (64, 30, [0])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trian": {}}, "trian"),
        ({"decode": {"frame_at": 1.5}}, "decode.frame_at"),
        ({"dataset": "../elsewhere"}, "dataset"),
        ({"encoders": {"vggish": {"weigths": "random"}}}, "encoders.vggish"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": "clip.mp4"}}, "videos.pattern"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": "{video_id}{n}.mp4"}}, "videos.pattern"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": "../{video_id}.mp4"}}, "videos.pattern"),
        ({"videos": {"collection": "c", "folder": "x", "audio_pattern": "/x/{video_id}.wav"}}, "videos.audio_pattern"),
        ({"videos": {"collection": "c", "folder": "x", "audio_pattern": "a.wav"}}, "videos.audio_pattern"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": None}}, "videos.audio_pattern must say"),
        (
            {"videos": {"collection": "c", "folder": "x", "pattern": None, "audio_pattern": "{video_id}.wav"}},
            "encoders.clip_vit_b32: reads frames",
        ),
        ({"videos": {"collection": "c", "folder": "x\ty"}}, "videos.folder: 'x\\ty' is not possible; expected: A path"),
        ({"results": "{mine}"}, "results"),
        ({"videos": {"collection": "a/b", "folder": "x"}}, "videos.collection"),
        ({"videos": {"collection": "$(ls)", "folder": "x"}}, "videos.collection"),
        ({"dataset": "features"}, "dataset"),
        ({"dataset": "-x"}, "dataset"),
        ({"models": {"a b": {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}}}, "models"),
        ({"train": {"seeds": []}}, "train.seeds"),
    ],
)
def test_mistakes_are_refused_by_file_and_field(tmp_path, change, named):
    config = yaml.safe_load((CONFIGS[0].parent / "config.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(config | change))
    with pytest.raises(AVQAError) as error:
        load_config(path)
    assert "mine.yaml" in str(error.value) and named in str(error.value)


def test_a_missing_file_and_broken_yaml_are_named(tmp_path):
    with pytest.raises(AVQAError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(AVQAError, match=r"broken\.yaml.*not YAML"):
        load_config(tmp_path / "broken.yaml")
