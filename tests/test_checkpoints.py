"""Checkpoints of the models' releases on small data sets: whose answers and words are numbered as in the release, and
which come back when they are converted. Numbers are recomputed here from the annotations."""

import functools
import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_results import make_index
from models import golden
from safetensors.torch import save_file

from extractors import ENCODERS
from pipeline.checkpoints import evaluate_released, take_over, write_released, written_entry
from pipeline.cli import main
from pipeline.config import load_config
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate
from pipeline.explain import explain
from pipeline.manifest import build_manifest
from pipeline.models import model_class
from pipeline.models.base import Batch
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import digest, read_shard_list

SECONDS = 6
OUTPUTS = {
    "vggish/embedding": (4,),
    "clip_vit_b32/cls": (8,),
    "clip_vit_l14/patch": (14, 8),
    "clip_vit_l14_336/patch": (49, 8),
    "resnet18/map": (8, 14, 14),
}
TEXTS = {"words": (77, 8), "words_unprojected": (77, 6), "sentence": (8,)}
VIDEO = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}
PATCHES = VIDEO | {"patch": "clip_vit_l14/patch"}
ENTRIES = {
    "av_master": VIDEO | {"heads": 2},
    "pstp_net": PATCHES
    | {"patch": "clip_vit_l14_336/patch", "variant": "paper", "segments": 3, "top_k": 2, "top_m": 2},
    "tspm": PATCHES | {"variant": "paper", "top_k": 2},
    "qa_tiger": PATCHES | {"variant": "corrected", "heads": 2, "top_k": 2},
    "avst": {"audio": "vggish/embedding", "map": "resnet18/map", "every": 2},
}
SIZES = {"av_master": {"width": 16, "focus_width": 8}, "qa_tiger": {"width": 16, "experts": 3}, "avst": {}}
# Video, answer, question and id; the first two videos of training are the ones that go missing.
TRAIN = [
    ("v0", "zebra", " ".join("abcdefghijklmnop") + "?", "a"),
    ("v1", "two", "How many are there?", "a"),
    ("v2", "yes", "Is it loud?", None),
    ("v3", "no", "Is it loud?", "7"),
    ("v2", "two", "How many are there?", "8"),
    ("v4", "left", "Where is it?", "text id"),
]
VAL = [("v5", "yes", "Is it loud?", "9")]
TEST = [
    ("v6", "two", "How many are there?", "a"),
    ("v7", "no", "Is it loud?", "a"),
    ("v8", "left", "Where is it?", "b"),
    ("v9", "never", "Is it new?", None),
    ("v6", "yes", "Is it loud?", "text id"),
]
FAILED = ("v3", "v8")
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


def in_order(values):
    return list(dict.fromkeys(values))


ANSWERS = in_order(row[1] for row in TRAIN)  # as the released code numbers them
WORDS = ["<pad>", *in_order(word for row in TRAIN for word in row[2].rstrip("?").split(" "))]

LENGTH = max(14, *(len(row[2].split(" ")) for row in TRAIN))  # 16, of a question that goes missing


def feature(name, video_id):
    shape = (SECONDS, *OUTPUTS[name])
    rng = np.random.default_rng([*name.encode(), *video_id.encode()])
    return rng.normal(size=shape).astype("float16") * (video_id not in FAILED)


def text_feature(name, text):
    return np.random.default_rng([*name.encode(), *text.encode()]).normal(size=TEXTS[name]).astype("float16")


def make(folder, missing=(), only_scored=False, **changes):
    """Annotations, files, features and the index of a data set; the path of its configuration."""
    videos = folder / "videos"
    videos.mkdir(parents=True)
    for video_id in {row[0] for rows in SPLITS.values() for row in rows} - {*missing}:
        (videos / f"{video_id}.mp4").write_bytes(b"x")
    names = ("video_id", "answer", "question", "question_id")
    for split, rows in SPLITS.items():
        records = [{k: v for k, v in zip(names, row, strict=True) if v is not None} for row in rows]
        (folder / f"{split}.json").write_text(json.dumps(records))
    config = {
        "results": str(folder / "results"),
        "format": "plain",
        "allow_missing": True,
        "videos": {"collection": "c", "folder": str(videos)},
        "encoders": {name.split("/")[0]: {"weights": "random", "outputs": [name.split("/")[1]]} for name in OUTPUTS},
        "text": {"encoder": "clip_vit_b32", "weights": "random"},
        "models": ENTRIES,
        "train": {"epochs": 1, "threads": 1, "batch_size": 3},
    } | changes
    files = {split: str(folder / f"{split}.json") for split in SPLITS}
    if only_scored:
        scored = {"annotations": {"test": files["test"]}, "trained_on": ["trained"]}
        config |= {"datasets": {"d": scored, "trained": {"annotations": files}}}
    else:
        config |= {"dataset": "d", "annotations": files}
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    write_data(load_config(folder / "c.yaml", "dataset"), folder / "results")
    return folder / "c.yaml"


def write_data(config, results):
    build_manifest(config)
    made = {"weights": "random (seed 0)", "weights_sha256": "0" * 64, "pretrained": False, "config": {}}
    for path in sorted((results / "c" / "shards").glob("*.tsv")):
        listed = read_shard_list(path)
        for name, shape in OUTPUTS.items():
            encoder = name.split("/")[0]
            specs = {name: DatasetSpec((SECONDS, *shape), "float16")}
            specs |= {column: DatasetSpec((), dtype) for column, dtype in PER_VIDEO.items()}
            attributes = made | {"kind": "features", "collection": "c", "shard": path.stem, "source": digest(listed)}
            ids = {"video_id": [video.video_id for video in listed]}
            file = results / "c" / "features" / encoder / f"{path.stem}.h5"
            with ShardWriter(file, len(listed), specs, attributes | {"encoder": encoder}, ids) as writer:
                for n, video in enumerate(listed):
                    row = {name: feature(name, video.video_id), "num_segments": SECONDS, "has_audio": True}
                    writer.write(n, row | {"status": int(video.video_id in FAILED)})
    texts = pd.read_parquet(results / "d" / "questions.parquet")["question"].unique().tolist()
    specs = {name: DatasetSpec(shape, "float16") for name, shape in TEXTS.items()} | {
        "length": DatasetSpec((), "int32")
    }
    attributes = made | {"kind": "text", "dataset": "d", "shard": "", "encoder": "clip_vit_b32"}
    with ShardWriter(results / "d/text/clip_vit_b32.h5", len(texts), specs, attributes, {"text": texts}) as writer:
        for n, text in enumerate(texts):
            writer.write(n, {name: text_feature(name, text) for name in TEXTS} | {"length": 5})
    make_index(results / "d", results / "c", list(config["encoders"]), "clip_vit_b32")


@pytest.fixture(autouse=True)
def small_encoders(monkeypatch):
    monkeypatch.setitem(ENCODERS["clip_vit_b32"].text_outputs, "words_unprojected", (77, 6))


@functools.cache
def release_of(model, prefix="module."):
    """A checkpoint with random weights, as the model's trainer saves it, that gives several answers."""
    return next(
        state for seed in range(100) if len(set(expected(model, state := random_release(model, seed, prefix)))) > 1
    )


def random_release(model, seed, prefix):
    torch.manual_seed(seed)
    cls, entry = model_class(model), ENTRIES[model]
    settings = {k: v for k, v in entry.items() if k not in cls.Settings.features} | SIZES.get(model, {"width": 16})
    shapes = {name: (SECONDS, *OUTPUTS[entry[name]]) for name in cls.Settings.features}
    shapes |= {name: TEXTS["sentence" if name == "prompt" else name] for name in cls.Settings.texts if name != "tokens"}
    words = {"num_tokens": len(WORDS)} if model == "avst" else {}
    shapes |= {"tokens": (14,)} if words else {}
    built = cls(cls.Settings.from_dict(settings), shapes, len(ANSWERS), **words)
    with torch.no_grad():  # far from each other, so that no answer hangs on rounding
        for parameter in built.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return {prefix + name: tensor for name, tensor in built.released_state_dict().items()}


def save(state, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path


def expected(model, state, **settings):
    """The answers to the test questions, one at a time, from the features and the numbers of this file."""
    cls, entry = model_class(model), ENTRIES[model]
    given = {k: v for k, v in entry.items() if k not in cls.Settings.features} | settings
    net = cls.load_released(state, **given).eval()
    found = []
    for video_id, _, question, _ in TEST:
        features = {
            name: torch.from_numpy(feature(entry[name], video_id))[None].float() for name in cls.Settings.features
        }
        for name, part in net.settings.reads().items():
            features[name] = features[name][:, part]
        texts = {}
        for name in cls.Settings.texts:
            if name == "tokens":
                numbers = [WORDS.index(word) if word in WORDS else 0 for word in question.rstrip("?").split(" ")]
                texts[name] = torch.tensor([numbers + [0] * (LENGTH - len(numbers))])
            else:
                texts[name] = torch.from_numpy(text_feature("sentence" if name == "prompt" else name, question))[
                    None
                ].float()
        with torch.inference_mode():
            found.append(ANSWERS[int(net.scores(net(Batch(features, texts))).argmax())])
    return found


def answers_in(folder):
    return pd.read_parquet(folder / "predictions.parquet")["prediction"].tolist()


def score(path, model, checkpoint, out):
    config = load_config(path, "dataset", "models")
    evaluate_released(config, written_entry(path, "d", model), model, checkpoint, out)
    return answers_in(out)


@pytest.mark.parametrize("model", ENTRIES)
def test_a_checkpoint_gives_its_own_answers_and_comes_back(tmp_path, model):
    """With training videos missing and failed, as the trainer saves it and converted there and back."""
    state = release_of(model)
    right = expected(model, state)
    whole, fewer = make(tmp_path / "whole"), make(tmp_path / "fewer", missing=("v0", "v1"))
    checkpoint = save(state, tmp_path / "theirs" / "best.pt")
    assert score(whole, model, checkpoint, tmp_path / "a") == right
    assert score(fewer, model, checkpoint, tmp_path / "b") == right
    config = load_config(fewer, "dataset", "models")
    take_over(config, written_entry(fewer, "d", model), model, checkpoint, tmp_path / "run")
    assert evaluate(tmp_path / "run")["checkpoint"] == str(checkpoint)
    assert answers_in(tmp_path / "run") == right
    assert explain(tmp_path / "run")["contributions"]["as trained"]["overall"]["count"] == len(TEST)
    write_released(tmp_path / "run", tmp_path / "back")
    assert score(fewer, model, tmp_path / "back" / "checkpoint.pt", tmp_path / "c") == right
    assert expected(model, torch.load(tmp_path / "back" / "checkpoint.pt", weights_only=True)) == right
    listed = json.loads((tmp_path / "back" / "answer2idx.json").read_text())["ans2ix"]
    assert listed == {answer: n for n, answer in enumerate(ANSWERS)}


@pytest.mark.parametrize("model", ENTRIES)
def test_a_converted_checkpoint_has_the_names_that_the_released_script_loads(tmp_path, model):
    """Four scripts wrap the model in DataParallel and load strictly, AVST's with a ResNet-18 that it does not use;
    QA-TIGER's loads what fits into the bare model."""
    path = make(tmp_path)
    checkpoint = save(release_of(model), tmp_path / "theirs.pt")
    take_over(
        load_config(path, "dataset", "models"), written_entry(path, "d", model), model, checkpoint, tmp_path / "run"
    )
    write_released(tmp_path / "run", tmp_path / "back")
    names = set(torch.load(tmp_path / "back" / "checkpoint.pt", weights_only=True))
    resnet = {name for name in names if "visual_net." in name}
    prefix = "" if model == "qa_tiger" else "module."
    theirs = {prefix + name for name in golden.read(model)["state_dict"]}
    if model == "qa_tiger":  # the golden model has seven experts, this one three
        theirs = {name for name in theirs if not any(f".experts.{n}." in name for n in range(3, 7))}
    assert names - resnet == theirs
    assert len(resnet) == (123 if model == "avst" else 0)  # a ResNet-18's 122 tensors, and conv1_a


@pytest.mark.parametrize("model", ENTRIES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_prefix_of_data_parallel_is_no_part_of_a_name(tmp_path, model, prefix):
    path = make(tmp_path)
    state = release_of(model, prefix=prefix)
    assert score(path, model, save(state, tmp_path / "x.pt"), tmp_path / "a") == expected(model, state)


def test_a_data_set_that_is_only_scored_has_the_numbers_of_what_it_is_trained_on(tmp_path):
    path = make(tmp_path, missing=("v0", "v1"), only_scored=True)
    for model in ("av_master", "avst"):
        state = release_of(model)
        checkpoint = save(state, tmp_path / model / "x.pt")
        assert score(path, model, checkpoint, tmp_path / model / "scores") == expected(model, state)


def test_an_unknown_numbering_is_refused_until_a_list_says_it(tmp_path):
    """Test questions alone say nothing of the numbers, even where their answers are as many."""
    path = make(tmp_path, missing=())
    config = yaml.safe_load(path.read_text())
    config |= {"annotations": {"test": config["annotations"]["test"]}, "trained_on": ["elsewhere"]}
    path.write_text(yaml.safe_dump(config))
    build_manifest(load_config(path, "dataset"))
    state = release_of("av_master")
    checkpoint = save(state, tmp_path / "theirs" / "x.pt")
    with pytest.raises(AVQAError, match=r"not known which number each answer has.*answer2idx\.json.*trained_on"):
        score(path, "av_master", checkpoint, tmp_path / "a")
    right = expected("av_master", state)
    path.write_text(yaml.safe_dump(config | {"answers": ANSWERS}))
    assert score(path, "av_master", checkpoint, tmp_path / "a") == right
    path.write_text(yaml.safe_dump(config))
    listed = checkpoint.parent / "answer2idx.json"
    listed.write_text(json.dumps({answer: n for n, answer in enumerate(ANSWERS)}))
    assert score(path, "av_master", checkpoint, tmp_path / "b") == right
    listed.write_text(json.dumps(ANSWERS[:-1]))
    with pytest.raises(AVQAError, match=r"data set with 5 answers, this one has 4 \(.*answer2idx.json\)"):
        score(path, "av_master", checkpoint, tmp_path / "c")
    state = release_of("avst")
    listed.write_text(json.dumps(ANSWERS))
    checkpoint = save(state, tmp_path / "theirs" / "avst.pt")
    with pytest.raises(AVQAError, match=r"number each word has: d has no training annotations.* as words\.json"):
        score(path, "avst", checkpoint, tmp_path / "d")
    (checkpoint.parent / "words.json").write_text(json.dumps(WORDS))
    assert score(path, "avst", checkpoint, tmp_path / "d") == expected("avst", state)


def test_words_of_annotations_in_another_order_than_the_cards_are_refused(tmp_path):
    """The card says in which order answers first occur in the release's training file."""
    path = make(tmp_path, answers=ANSWERS)
    text = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(text | {"card": "music_avqa"}))
    build_manifest(load_config(path, "dataset"))
    checkpoint = save(release_of("avst"), tmp_path / "x.pt")
    with pytest.raises(AVQAError, match="each word has: d has training annotations in another order"):
        score(path, "avst", checkpoint, tmp_path / "a")


def test_results_of_an_earlier_version_say_what_to_do(tmp_path):
    path = make(tmp_path)
    manifest = tmp_path / "results" / "d" / "manifest.json"
    described = json.loads(manifest.read_text())
    old = {k: v for k, v in described.items() if not k.startswith(("answers", "words", "longest"))}
    manifest.write_text(json.dumps(old))
    state = release_of("av_master")
    checkpoint = save(state, tmp_path / "x.pt")
    with pytest.raises(
        AVQAError, match=r"manifest\.json: does not say how answers and words are numbered.*avqa manifest"
    ):
        score(path, "av_master", checkpoint, tmp_path / "a")
    build_manifest(load_config(path, "dataset"))
    assert score(path, "av_master", checkpoint, tmp_path / "a") == expected("av_master", state)
    take_over(load_config(path, "dataset"), ENTRIES["av_master"], "av_master", checkpoint, tmp_path / "run")
    manifest.write_text(json.dumps(old))  # a run has numbers of its own
    evaluate(tmp_path / "run")
    assert answers_in(tmp_path / "run") == expected("av_master", state)


def test_a_run_keeps_its_numbers_where_those_of_the_data_set_change(tmp_path):
    path = make(tmp_path)
    state = release_of("avst")
    take_over(load_config(path, "dataset"), ENTRIES["avst"], "avst", save(state, tmp_path / "x.pt"), tmp_path / "run")
    text = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(text | {"answers": ["never", *sorted(ANSWERS)]}))
    (tmp_path / "train.json").write_text(json.dumps(json.loads((tmp_path / "train.json").read_text())[::-1]))
    build_manifest(load_config(path, "dataset"))
    scores = evaluate(tmp_path / "run")
    right = expected("avst", state)
    assert answers_in(tmp_path / "run") == right
    assert scores["overall"]["accuracy"] == np.mean([a == row[1] for a, row in zip(right, TEST, strict=True)])


@pytest.mark.parametrize(("model", "setting", "values"), [
    ("tspm", "variant", ("paper", "released")),
    ("pstp_net", "variant", ("paper", "released")),
    ("qa_tiger", "variant", ("corrected", "released")),
])  # fmt: skip
def test_a_setting_that_is_written_counts_also_where_it_is_our_default(tmp_path, model, setting, values, monkeypatch):
    path = make(tmp_path)
    config = load_config(path, "dataset")
    checkpoint = save(release_of(model), tmp_path / "x.pt")
    for value in values:
        written = ENTRIES[model] | {setting: value}
        config["models"][model] = config["models"][model] | written
        take_over(config, written, model, checkpoint, tmp_path / value)
        entry = yaml.safe_load((tmp_path / value / "config.yaml").read_text())["config"]["models"][model]
        assert entry[setting] == value
    plain = {k: v for k, v in ENTRIES[model].items() if k != setting}
    take_over(config, plain, model, checkpoint, tmp_path / "plain")
    entry = yaml.safe_load((tmp_path / "plain" / "config.yaml").read_text())["config"]["models"][model]
    assert entry[setting] == "released"


@pytest.mark.parametrize("several", [False, True])
def test_the_entry_as_it_is_written(tmp_path, several):
    config = {"models": {"tspm": {"variant": "paper", "train": {"epochs": 2}}}}
    if several:
        config["datasets"] = {"one": None, "two": {"models": {"tspm": {"top_k": 10}}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    own = {"top_k": 10} if several else {}
    assert written_entry(tmp_path / "c.yaml", "two", "tspm") == config["models"]["tspm"] | own
    assert written_entry(json.dumps(config), "two", "tspm") == config["models"]["tspm"] | own


def test_features_are_not_standardized(tmp_path, caplog):
    caplog.set_level("INFO")
    path = make(tmp_path, train={"standardize": True, "threads": 1, "batch_size": 3})
    state = release_of("av_master")
    checkpoint = save(state, tmp_path / "x.pt")
    assert score(path, "av_master", checkpoint, tmp_path / "a") == expected("av_master", state)
    assert "train.standardize is not for published checkpoints" in caplog.text
    config = load_config(path, "dataset")
    take_over(config, ENTRIES["av_master"], "av_master", checkpoint, tmp_path / "run")
    described = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert described["config"]["train"]["standardize"] is False
    described["config"]["train"]["standardize"] = True
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(AVQAError, match="was trained on standardized features"):
        write_released(tmp_path / "run", tmp_path / "back")


def test_converting_from_the_command_line(tmp_path, capsys):
    path = make(tmp_path)
    state = release_of("av_master")
    checkpoint = save(state, tmp_path / "x.pt")
    given = ["--model", "av_master", "--config", str(path)]
    assert main(["convert-checkpoint", str(checkpoint), "--out", str(tmp_path / "run"), *given]) == 0
    assert main(["evaluate", str(tmp_path / "run")]) == 0
    assert answers_in(tmp_path / "run") == expected("av_master", state)
    assert main(["convert-checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "back")]) == 0
    back = torch.load(tmp_path / "back" / "checkpoint.pt", weights_only=True)
    assert "heads is 2, which the file does not say: released code has 8" in capsys.readouterr().out
    assert main(["convert-checkpoint", str(checkpoint), "--out", str(tmp_path / "run")]) == 1
    assert "avqa convert-checkpoint: a published checkpoint needs --config" in capsys.readouterr().err
    wrong = ["--model", "tspm_2", "--config", str(path)]
    assert main(["convert-checkpoint", str(checkpoint), "--out", str(tmp_path / "run"), *wrong]) == 1
    assert "has no tspm_2; it has av_master" in capsys.readouterr().err
    save_file({k: v.contiguous() for k, v in back.items()}, tmp_path / "again.safetensors")
    assert score(path, "av_master", tmp_path / "again.safetensors", tmp_path / "b") == answers_in(tmp_path / "run")


def test_the_accuracy_by_second_is_of_the_questions_that_are_asked(tmp_path, capsys):
    """And is written beside their scores, not into the run's folder."""
    path = make(tmp_path / "one")
    state = release_of("av_master")
    config = load_config(path, "dataset")
    take_over(config, ENTRIES["av_master"], "av_master", save(state, tmp_path / "x.pt"), tmp_path / "run")
    own = {name: hashlib.sha256(name.read_bytes()).hexdigest() for name in (tmp_path / "run").iterdir()}
    other = make(tmp_path / "two", missing=("v6", "v7"))
    folder = tmp_path / "two" / "results" / "d"
    given = [
        "evaluate",
        str(tmp_path / "run"),
        "--questions-of",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--steps",
    ]
    (tmp_path / "out").mkdir()
    assert main(given) == 0
    steps = pd.read_csv(tmp_path / "out" / "steps.csv")
    asked = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(asked) == 2 and other.exists()
    assert steps["accuracy"].iloc[-1] == asked["correct"].mean()  # the last second's templates are the whole video's
    assert {round(x * 2, 6) % 1 for x in steps["accuracy"]} == {0}
    assert own == {name: hashlib.sha256(name.read_bytes()).hexdigest() for name in (tmp_path / "run").iterdir()}
