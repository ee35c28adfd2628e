"""The configuration: what comes with the project is valid, and mistakes are named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from extractors import ENCODERS
from pipeline.config import check_config, check_configs, load_config, training
from pipeline.errors import AVQAError

CONFIGS = sorted(
    p for p in (Path(__file__).parent.parent / "config").glob("*.yaml") if p.stem not in ("schema", "protocols")
)


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


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_computes_in_its_own_type_unless_told_otherwise(name):
    for given, expected in (({}, ENCODERS[name].dtype), ({"dtype": "bfloat16"}, "bfloat16")):
        entry = {"weights": "random", **given}
        checked = check_config({"encoders": {name: entry}}, sections=("encoders",))["encoders"][name]
        assert checked["dtype"] == expected
    texts = check_config({"text": {"encoder": "clip_vit_b32", "weights": "random"}}, sections=("text",))
    assert texts["text"]["dtype"] == ENCODERS["clip_vit_b32"].dtype == "bfloat16"


def test_encoders_whose_rounding_decides_more_than_the_last_digits_compute_in_float32():
    assert {name for name, spec in ENCODERS.items() if spec.dtype == "float32"} == {
        "tome_vit_l16_384",
        "vggish_hop096_pca",
    }


@pytest.fixture
def with_release(monkeypatch):
    """A model whose release trains it in its own way, in two stages."""
    release = {"epochs": 15, "betas": [0.9, 0.95], "pretrain": {"settings": {"width": 8}, "epochs": 20}}
    monkeypatch.setattr("pipeline.models.pooled.config.PooledSettings.recipe", release)
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
        ({"models": {"type": {"architecture": "pooled"}}}, "models: 'type' should not be"),
        ({"models": {"answer": {"architecture": "pooled"}}}, "models: 'answer' should not be"),
        ({"train": {"seeds": [2**64]}}, "train.seeds.0: 18446744073709551616 is greater"),
        (
            {"encoders": {"vggish": {"weights": "random", "seed": 2**64}}},
            "encoders.vggish.seed: 1844",
        ),
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


SEVERAL = {
    "datasets": {"one": {}, "two": {"trained_on": ["one"], "annotations": {"test": "r.json"}}},
    "videos": {"collection": "c", "folder": "v"},
    "annotations": {"train": "a.json", "val": "b.json", "test": "c.json"},
    "encoders": {"clip_vit_b32": {"weights": "random"}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {"av_master": {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}},
}


def test_several_data_sets_share_settings_and_override_them(tmp_path):
    configs = check_configs(SEVERAL)
    assert list(configs) == ["one", "two"] and configs["two"]["annotations"]["train"] == "a.json"
    assert configs["two"]["annotations"]["test"] == "r.json" and configs["one"]["annotations"]["test"] == "c.json"
    assert configs["one"]["trained_on"] == ["one"] and configs["two"]["models"] == configs["one"]["models"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(SEVERAL))
    assert load_config(tmp_path / "c.yaml")["dataset"] == "one"
    assert load_config(tmp_path / "c.yaml", dataset="two")["dataset"] == "two"
    with pytest.raises(AVQAError, match="has no data set three"):
        load_config(tmp_path / "c.yaml", dataset="three")


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({"trained_on": ["three"]}, "there is no data set three"),
        ({"trained_on": ["one"], "train": {"epochs": 1}}, "train must be as in one"),
        (
            {"trained_on": ["one"], "videos": {"collection": "d"}, "decode": {"pad": "zero"}},
            "two.decode: must be as in one, whose models are tested here",
        ),
        ({"decode": {"segments": 5}}, "two.decode: differs from that of one"),
        ({"encoders": {"vggish": {"seed": 3}}}, "two.encoders.vggish: differs"),
        ({"videos": {"collection": "one"}}, "one is a data set's name"),
        ({"results": "elsewhere"}, "two.results: must be the same"),
    ],
)
def test_data_sets_that_contradict_each_other_are_refused(own, named):
    with pytest.raises(AVQAError, match=re.escape(named)):
        check_configs(SEVERAL | {"datasets": {"one": {}, "two": own}})


def test_a_pattern_of_ids_that_is_no_regular_expression_is_named():
    with pytest.raises(AVQAError, match=r"video_ids: '\[0-9' is no regular expression \("):
        check_configs(SEVERAL | {"video_ids": "[0-9"})


def test_encoders_that_the_first_data_set_lacks_are_compared_too():
    own = [{"encoders": {"resnet18": {"weights": "random", "seed": seed}}} for seed in (0, 1)]
    with pytest.raises(AVQAError, match=r"three.encoders.resnet18: differs from that of two, whose"):
        check_configs(SEVERAL | {"datasets": {"one": {}, "two": own[0], "three": own[1]}})
    check_configs(SEVERAL | {"datasets": {"one": {}, "two": own[0], "three": own[0]}})
    elsewhere = own[1] | {"videos": {"collection": "d"}}
    check_configs(SEVERAL | {"datasets": {"one": {}, "two": own[0], "three": elsewhere}})


def test_a_text_encoder_has_its_settings_in_one_place():
    text = SEVERAL["text"] | {"others": {"clip_vit_b32": {"weights": "random", "sentence": "mean"}}}
    with pytest.raises(AVQAError, match=r"text.others.clip_vit_b32: is text.encoder too"):
        check_configs(SEVERAL | {"text": text})


def test_workers_and_encoders_of_their_own_are_no_contradiction():
    own = {"decode": {"workers": 2}, "encoders": {"resnet18": {"weights": "random"}}}
    assert check_configs(SEVERAL | {"datasets": {"one": {}, "two": own}})["two"]["decode"]["workers"] == 2


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"shard_size": "7"}, ("shard_size", 7)),
        ({"max_failed_fraction": "0.5"}, ("max_failed_fraction", 0.5)),
        ({"allow_missing": "True"}, ("allow_missing", True)),
    ],
)
def test_numbers_given_as_text_are_numbers(given, found):
    assert check_configs(SEVERAL | given)["one"][found[0]] == found[1]
    with pytest.raises(AVQAError, match="shard_size"):
        check_configs(SEVERAL | {"shard_size": "seven"})


def test_a_card_fills_in_what_the_configuration_leaves_out():
    given = {**SEVERAL, "datasets": {"avqa": {"annotations": "data/avqa"}}}
    given.pop("annotations")
    config = check_configs(given)["avqa"]
    assert config["annotations"]["test"] == "data/avqa/val_qa.json" and config["format"] == "avqa"
    assert config["decode"]["segments"] == 10
    with pytest.raises(AVQAError, match="there is no nothing in manifests/"):
        check_configs(given | {"card": "nothing"})


def test_checking_a_configuration_does_not_import_pytorch():
    """Its import takes seconds, and each start of Snakemake checks the configuration."""
    code = "import sys, yaml; from pipeline.config import check_configs\n"
    code += "for name in sys.argv[1:]: check_configs(yaml.safe_load(open(name)))\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, *map(str, CONFIGS)], cwd=CONFIGS[0].parent.parent, check=True)
