"""The configuration: what comes with the project is valid, and mistakes are named."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import check_config, load_config, training
from pipeline.errors import AVQAError

CONFIGS = sorted(p for p in (Path(__file__).parent.parent / "config").glob("*.yaml") if p.name != "schema.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_and_say_nothing_twice(path):
    config = load_config(path)
    assert check_config(yaml.safe_load(yaml.safe_dump(config))) == config


def test_the_papers_setting_is_the_default():
    config = load_config(CONFIGS[0].parent / "music_avqa.yaml")
    schedule = training(config, "av_master")
    assert (schedule["learning_rate"], schedule["decay"], schedule["decay_every"]) == (1e-4, 0.1, 8)
    assert (schedule["batch_size"], schedule["epochs"], config["train"]["seeds"]) == (64, 30, [0])
    assert schedule["betas"] == [0.9, 0.999] and schedule["pretrain"] is None


@pytest.fixture
def with_release(monkeypatch):
    """A model whose release trains it in its own way, in two stages."""
    release = {"epochs": 15, "betas": [0.9, 0.95], "pretrain": {"settings": {"width": 8}, "epochs": 20}}
    monkeypatch.setattr("pipeline.models.pooled.PooledSettings.recipe", release)
    config = yaml.safe_load((CONFIGS[0].parent / "music_avqa.yaml").read_text()) | {"train": {}}
    config["models"] = {"pooled": {"audio": "vggish/embedding", "visual": "clip_vit_l14/cls"}}
    return config


@pytest.mark.parametrize(
    ("common", "own", "epochs", "before"),
    [
        ({}, {}, 15, 20),
        ({"epochs": 5}, {}, 5, 5),  # a short trial is short for all models, in all stages
        ({"epochs": 5}, {"epochs": 7}, 7, 7),
        ({"epochs": 5, "pretrain": {"epochs": 2}}, {}, 5, 2),
        ({"epochs": 5}, {"pretrain": {"epochs": 2}}, 5, 2),
        ({"epochs": 5}, {"pretrain": None}, 5, None),
        ({"pretrain": None}, {"pretrain": {"epochs": 3}}, 15, 3),
    ],
)
def test_an_entry_comes_before_the_train_section_and_that_before_the_release(with_release, common, own, epochs, before):
    with_release["train"] = common
    with_release["models"]["pooled"]["train"] = own
    schedule = training(check_config(with_release), "pooled")
    assert schedule["epochs"] == epochs and schedule["betas"] == [0.9, 0.95] and schedule["batch_size"] == 64
    assert (schedule["pretrain"] or {}).get("epochs") == before
    if before:
        assert schedule["pretrain"]["settings"] == {"width": 8} and schedule["pretrain"]["batch_size"] == 64
    complete = {"models": {"pooled": with_release["models"]["pooled"] | {"train": {}}}, "train": schedule}
    assert training(complete, "pooled") == schedule, "a complete schedule stays as it is"


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"epoch": 3}, "models.pooled.train: .*'epoch' was unexpected"),
        ({"seeds": [1]}, "models.pooled.train: .*'seeds' was unexpected"),
        ({"betas": [0.9]}, "models.pooled.train.betas"),
        ({"pretrain": {"epochs": 0}}, "models.pooled.train.pretrain.epochs"),
        ({"pretrain": {"settings": {"widht": 8}}}, "models.pooled: pretrain.settings: widht: no such setting"),
    ],
)
def test_mistakes_in_a_models_schedule_are_named(with_release, own, named):
    with_release["models"]["pooled"]["train"] = own
    with pytest.raises(AVQAError, match=named):
        check_config(with_release)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"trian": {}}, "trian"),
        ({"decode": {"frame_at": 1.5}}, "decode.frame_at"),
        ({"dataset": "../elsewhere"}, "dataset"),
        ({"encoders": {"vggish": {"weigths": "random"}}}, "encoders.vggish"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": "clip.mp4"}}, "videos.pattern"),
        ({"videos": {"collection": "c", "folder": "x", "pattern": "{video_id}{n}.mp4"}}, "videos.pattern"),
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
