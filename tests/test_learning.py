"""From shards of features to scores: index, data, training, evaluation, on features made up here."""

import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_results import make_index

from pipeline.ablations import MANIFESTS
from pipeline.accuracy import format_scores, score
from pipeline.cli import main
from pipeline.config import check_config
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate, evaluate_by_second
from pipeline.models import fast, model_class
from pipeline.numbering import number
from pipeline.report import write_report
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, write_shard_list
from pipeline.train import Trainer, train

SECONDS, VIDEOS, SHARD = 3, 40, 16
GRID = MANIFESTS / "av_master_tables.csv"
FEATURES = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}
TEXTS = {"words": (77, 8), "sentence": (8,)}
ENCODER = {"encoder": "clip_vit_b32", "weights": "random (seed 0)", "weights_sha256": "0" * 64, "pretrained": False}


def listed(k):
    return [Video(f"v{n}", f"v{n}.mp4", 1, 1) for n in range(k * SHARD, min((k + 1) * SHARD, VIDEOS))]


def write_features(folder, encoder, name, values, status):
    for k, start in enumerate(range(0, VIDEOS, SHARD)):
        rows = slice(start, min(start + SHARD, VIDEOS))
        datasets = {f"{encoder}/{name}": DatasetSpec(values.shape[1:], "float16")}
        datasets |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
        attributes = {
            "kind": "features",
            "collection": "c",
            "shard": f"{k:05d}",
            "source": digest(listed(k)),
            "config": {},
        }
        attributes |= ENCODER | {"encoder": encoder}
        ids = {"video_id": [f"v{n}" for n in range(*rows.indices(VIDEOS))]}
        path = folder / "features" / encoder / f"{k:05d}.h5"
        with ShardWriter(path, len(values[rows]), datasets, attributes, ids) as writer:
            for n, value in enumerate(values[rows]):
                row = {f"{encoder}/{name}": value, "num_segments": SECONDS, "has_audio": True}
                writer.write(n, row | {"status": status[rows][n]})


def make_features(folder, collection):
    """The answer is the sign of the first visual number; the question says nothing. Video 3 failed."""
    rng = np.random.default_rng(0)
    label = np.arange(VIDEOS) % 2
    visual = rng.standard_normal((VIDEOS, SECONDS, 8)).astype("float16")
    visual[..., 0] = 3 * (2 * label[:, None] - 1)
    audio = rng.standard_normal((VIDEOS, SECONDS, 4)).astype("float16")
    status = np.zeros(VIDEOS, int)
    status[3] = 1
    write_features(collection, "clip_vit_b32", "cls", visual, status)
    write_features(collection, "vggish", "embedding", audio, status)
    shards = range(-(-VIDEOS // SHARD))
    for k in shards:
        write_shard_list(collection / "shards" / f"{k:05d}.tsv", listed(k))
    paths = {f"v{n}": str(collection / f"v{n}.mp4") for n in range(VIDEOS)}
    files = [{"video_id": name, "path": path, "size": 1, "mtime_ns": 1} for name, path in paths.items()]
    pd.DataFrame(files).to_parquet(collection / "videos.parquet")
    texts = ["Is it playing?", "Is it loud?"]
    datasets = {"words": DatasetSpec((77, 8), "float16"), "sentence": DatasetSpec((8,), "float16")}
    datasets["length"] = DatasetSpec((), "int32")
    attributes = ENCODER | {"kind": "text", "dataset": "d", "shard": "", "config": {}}
    with ShardWriter(folder / "text" / "clip_vit_b32.h5", 2, datasets, attributes, {"text": texts}) as writer:
        for n in range(2):
            words = rng.standard_normal((77, 8))
            writer.write(n, {"words": words, "sentence": words[4], "length": 5})
    table = pd.DataFrame(
        {
            "part": None,
            "split": ["train"] * 24 + ["val"] * 8 + ["test"] * 8,
            "question_id": [str(n) for n in range(VIDEOS)],
            "video_id": [f"v{n}" for n in range(VIDEOS)],
            "question": [texts[n // 2 % 2] for n in range(VIDEOS)],
            "scenario": "Visual",
            "type": ["Counting" if n % 3 else "Location" for n in range(VIDEOS)],
            "answer": np.where(label, "yes", "no"),
            "answer_id": label,
        }
    )
    table.to_parquet(folder / "questions.parquet", index=False)
    manifest = {"videos": VIDEOS, "shards": {f"{k:05d}": digest(listed(k)) for k in shards}}
    manifest |= number({"answers": ["no", "yes"]}, table.assign(keywords=None)).as_dict()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "failures.tsv").write_text(
        "video_id\tstage\treason\tseconds\nv3\tdecode\tis empty\t0.1\nv4\taudio\todd\t0.1\n"
    )
    return visual, audio


@pytest.fixture
def config(tmp_path):
    small = FEATURES | {"width": 16, "focus_width": 8, "heads": 2}
    question_only = small | {"architecture": "av_master", "inputs": ["question"]}
    return check_config(
        {
            "dataset": "d",
            "results": str(tmp_path),
            "videos": {"collection": "c", "folder": "unused"},
            "annotations": {"train": "unused", "val": "unused", "test": "unused"},
            "encoders": {"clip_vit_b32": {"weights": "random"}, "vggish": {"weights": "random"}},
            "text": {"encoder": "clip_vit_b32", "weights": "random"},
            "models": {"av_master": small, "question_only": question_only, "pooled": FEATURES | {"width": 16}},
            "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.003, "decay_every": 20, "threads": 1},
            "max_failed_fraction": 0.1,
        }
    )


@pytest.fixture
def folder(config, tmp_path):
    make_features(tmp_path / "d", tmp_path / "c")
    make_index(tmp_path / "d", tmp_path / "c", ["clip_vit_b32", "vggish"], "clip_vit_b32")
    return tmp_path / "d"


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_flipped_byte_is_noticed_and_its_shard_named(config, folder, monkeypatch, in_memory):
    if not in_memory:  # as on a machine with hardly any memory left
        monkeypatch.setattr("pipeline.data.features.available_memory", lambda: 8)
    path = folder.parent / "c" / "features" / "vggish" / "00001.h5"
    with h5py.File(path) as file:
        where = file["vggish/embedding"].id.get_chunk_info(5).byte_offset
    content = bytearray(path.read_bytes())
    content[where + 3] ^= 16
    path.write_bytes(content)
    with pytest.raises(AVQAError, match=r"vggish/00001\.h5: cannot be read.*avqa verify"):
        train(config, "av_master", 0, folder / "x")


def test_shards_that_do_not_belong_together_are_named(folder):
    with h5py.File(folder.parent / "c" / "features" / "vggish" / "00001.h5", "a") as file:
        file.attrs["weights"] = "others"
    with pytest.raises(AVQAError, match=r"00001\.h5: weights differ"):
        make_index(folder, folder.parent / "c", ["clip_vit_b32", "vggish"], "clip_vit_b32")


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_hold_each_questions_own_features(folder, monkeypatch, in_memory):
    if not in_memory:  # as on a machine with hardly any memory left
        monkeypatch.setattr("pipeline.data.features.available_memory", lambda: 8)
    data = QuestionData(folder, FEATURES, TEXTS, False, torch.device("cpu"))
    assert (data.features["visual"].values is not None) is in_memory
    rows = []
    with h5py.File(folder / "features.h5") as index:
        texts = index["text/text"].asstr()[:].tolist()
        for batch in data.training_batches(5, np.random.default_rng(0), negatives=True):
            for i, row in enumerate(batch.row):
                question = data.questions.loc[row]
                n = question["video_row"]
                np.testing.assert_array_equal(batch.features["visual"][i], index["clip_vit_b32/cls"][n])
                np.testing.assert_array_equal(batch.features["audio"][i], index["vggish/embedding"][n])
                text = texts.index(question["question"])
                np.testing.assert_array_equal(batch.texts["words"][i], index["text/words"][text])
                np.testing.assert_array_equal(batch.texts["sentence"][i], index["text/sentence"][text])
                assert batch.answer[i] == question["answer_id"]
                assert not torch.equal(batch.negatives["visual"][i], batch.features["visual"][i])
                rows.append(row)
    assert sorted(rows) == [n for n in range(24) if n != 3]  # video 3 failed


def test_batches_without_shuffling_hold_each_video_once(folder):
    table = pd.read_parquet(folder / "questions.parquet")
    table = pd.concat([table, table, table[::-1]], ignore_index=True)  # three questions a video, far from one another
    table.to_parquet(folder / "questions.parquet", index=False)
    data = QuestionData(folder, FEATURES, TEXTS, False, torch.device("cpu"))
    rows = []
    with h5py.File(folder / "features.h5") as index:
        for batch in data.batches("test", 5):
            visual, audio = batch.features["visual"], batch.features["audio"]
            assert len(visual) == len(audio) <= 3 and batch.negatives is None
            for i, row in enumerate(batch.row):
                question = data.questions.loc[row]
                n = question["video_row"]
                np.testing.assert_array_equal(visual[batch.videos[i]], index["clip_vit_b32/cls"][n])
                np.testing.assert_array_equal(audio[batch.videos[i]], index["vggish/embedding"][n])
                assert batch.answer[i] == question["answer_id"]
                rows.append(row)
    assert sorted(rows) == table.index[table["split"] == "test"].tolist()


def test_standardized_features_have_zero_mean_and_unit_variance(folder):
    data = QuestionData(folder, FEATURES, TEXTS, True, torch.device("cpu"))
    training = data.questions_in("train")["video_row"].to_numpy()
    for features in data.features.values():
        values = features[training].reshape(-1, features.dim)
        torch.testing.assert_close(values.mean(0), torch.zeros(features.dim), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones(features.dim), atol=1e-3, rtol=0)


def test_a_dimension_that_is_constant_in_training_is_not_blown_up_in_the_test(folder):
    for path in sorted((folder.parent / "c" / "features" / "vggish").glob("*.h5")):
        with h5py.File(path, "r+") as file:
            file["vggish/embedding"][..., 0] = 3.3
            if path.stem == "00002":  # whose last video is of the test
                file["vggish/embedding"][-1, :, 0] = 4.3
    data = QuestionData(folder, FEATURES, TEXTS, True, torch.device("cpu"))
    values = data.features["audio"][np.arange(VIDEOS)][..., 0]
    assert values[:-1].abs().max() < 0.01 and (values[-1] - 1).abs().max() < 0.01


def test_models_learn_what_the_features_hold_and_the_question_does_not(config, folder):
    for name in config["models"]:
        train(config, name, 0, folder / "models" / name / "seed-0")
        scores = evaluate(folder / "models" / name / "seed-0")
        assert scores["overall"] == {"accuracy": pytest.approx(scores["overall"]["accuracy"]), "count": 8}
        if name == "question_only":
            assert scores["overall"]["accuracy"] < 0.8
        else:
            assert scores["overall"]["accuracy"] == 1
    steps = evaluate_by_second(folder / "models" / "av_master" / "seed-0")
    assert len(steps) == SECONDS and steps["accuracy"].iloc[-1] == 1  # the last second's templates give the answer
    predictions = pd.read_parquet(folder / "models" / "av_master" / "seed-0" / "predictions.parquet")
    assert (predictions["prediction"] == predictions["answer"]).all()
    assert predictions["question_id"].tolist() == [str(n) for n in range(32, 40)], "in the order of the annotations"
    summary = write_report(config)
    page = (folder / "report.html").read_text()
    assert "1 videos failed" in summary and "decoded without their sound" in page
    for text in (summary, page):
        assert "100.00" in text and "seeded random numbers" in text and all(name in text for name in config["models"])
    with pytest.raises(AVQAError, match="Pooled does not offer accuracy by second"):
        evaluate_by_second(folder / "models" / "pooled" / "seed-0")


@pytest.mark.parametrize("table", ["fig_4", "table_xiii"])
def test_a_table_of_the_paper(config, folder, tmp_path, table):
    config["train"]["epochs"] = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    grid = pd.read_csv(GRID).query("table == @table")
    for row in grid.to_dict("records"):
        out = folder / "rows" / str(row["row"]) / "seed-0"
        given = ["--config", str(tmp_path / "c.yaml"), "--settings", row["settings"], "--out", str(out)]
        assert main(["train", *given]) == 0 and main(["evaluate", str(out)]) == 0
        changed = yaml.safe_load((out / "config.yaml").read_text())["config"]["models"]["av_master"]
        assert json.loads(row["settings"]).items() <= changed.items()
    rows = json.dumps({row: str(folder / "rows" / str(row)) for row in grid["row"].tolist()})
    common = ["--config", str(tmp_path / "c.yaml"), "--table", table]
    assert main(["ablations", *common, "--rows", rows, "--out", str(tmp_path / "made.csv")]) == 0
    made = pd.read_csv(tmp_path / "made.csv")
    assert made["row"].tolist() == grid["label"].tolist() and made["avg"].between(0, 100).all()
    np.testing.assert_array_equal(made["avg_paper"], grid["avg"])


def test_every_row_of_every_table_builds_a_model():
    for row in pd.read_csv(GRID).to_dict("records"):
        settings = {k: v for k, v in json.loads(row["settings"]).items() if k != "seconds"}
        model_class(row["model"]).in_paper_setting(3, 5, **{"width": 16, "focus_width": 8, "heads": 2} | settings)


def test_the_model_report(capsys):
    assert main(["model", "av_master"]) == 0
    assert "34.07" in capsys.readouterr().out
    assert main(["model", "pooled", "--settings", '{"width": 10}', "--answers", "5"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    products = (128 + 768 + 768) * 10 + 10 * 5
    assert last == ["all", f"{(products + 15) / 1e6:.3f}", f"{2 * products / 1e6:.3f}"]
    assert main(["model", "pooled", "--settings", '{"widht": 10}']) == 1
    assert "widht: no such setting" in capsys.readouterr().err


def history(folder):
    return (folder / "history.csv").read_text()


def test_the_same_seed_gives_the_same_history_and_another_seed_another(config, folder):
    config["train"]["epochs"] = 3
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(config, "av_master", seed, folder / name)
    assert history(folder / "a") == history(folder / "b") != history(folder / "c")
    assert (folder / "a/checkpoint.safetensors").read_bytes() == (folder / "b/checkpoint.safetensors").read_bytes()


def test_early_stopping_and_the_epoch_that_is_kept(config, folder, monkeypatch):
    """Oracle: the validation accuracies, given here. Of equal ones the last is best, as in AV-Master's release."""
    given = [0.5, 0.75, 0.25, 0.75, 0.5, 0.5, 1.0]
    checkpoints = {}
    for name, changes in {
        "patient": {"epochs": 20, "patience": 2},
        "last": {"epochs": 6, "checkpoint": "last"},
        "short": {"epochs": 4, "checkpoint": "last"},
    }.items():
        accuracies = iter(given)
        monkeypatch.setattr("pipeline.train.accuracy", lambda *_, accuracies=accuracies: next(accuracies))
        train(config | {"train": config["train"] | changes}, "av_master", 0, folder / name)
        checkpoints[name] = (folder / name / "checkpoint.safetensors").read_bytes()
    assert pd.read_csv(folder / "patient" / "history.csv")["val_accuracy"].tolist() == given[:6]
    assert checkpoints["patient"] == checkpoints["short"] != checkpoints["last"]


def test_deterministic_mode(config, folder):
    config["train"] |= {"epochs": 1, "deterministic": True}
    train(config, "av_master", 0, folder / "a")
    assert torch.are_deterministic_algorithms_enabled()
    config["train"]["deterministic"] = False
    train(config, "av_master", 0, folder / "b")
    assert not torch.are_deterministic_algorithms_enabled() and history(folder / "a") == history(folder / "b")


def test_a_killed_training_run_ends_in_the_same_result(config, folder, tmp_path):
    config["train"]["epochs"] = 30
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "pipeline", "train", "--config", str(tmp_path / "c.yaml"), "--out"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent), "PATH": "/usr/bin"}
    process = subprocess.Popen([*command, str(folder / "killed")], env=environment)
    while not (folder / "killed" / "resume.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "killed" / "checkpoint.safetensors").exists()
    resumed = subprocess.run([*command, str(folder / "killed")], env=environment, check=True, capture_output=True)
    assert b"resuming after epoch" in resumed.stdout
    subprocess.run([*command, str(folder / "whole")], env=environment, check=True)
    assert history(folder / "killed") == history(folder / "whole")
    names = ["checkpoint.safetensors", "config.yaml", "history.csv", "tensorboard"]
    assert sorted(p.name for p in (folder / "killed").iterdir()) == names
    checkpoints = [(folder / name / "checkpoint.safetensors").read_bytes() for name in ("killed", "whole")]
    assert checkpoints[0] == checkpoints[1]


def interrupted_after(epochs, config, folder, monkeypatch):
    """Train until so many epochs are saved, then fail."""
    save, left = Trainer.save_progress, iter(range(epochs - 1, -1, -1))

    def save_and_fail(trainer):
        save(trainer)
        if next(left) == 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save_progress", save_and_fail)
        train(config, "pooled", 0, folder)


@pytest.mark.parametrize(
    ("change", "resumes"),
    [
        ({"seeds": [0, 1], "threads": 2}, True),
        ({"learning_rate": 0.001}, False),
        ("test questions", True),
        ("validation questions", False),
    ],
)
def test_a_run_resumes_unless_what_it_depends_on_changed(config, folder, monkeypatch, caplog, change, resumes):
    caplog.set_level("INFO")
    interrupted_after(2, config, folder / "x", monkeypatch)
    if isinstance(change, dict):
        config["train"] |= change
    else:
        table = pd.read_parquet(folder / "questions.parquet")
        changed = table["split"] == change.split()[0].replace("validation", "val")
        table.loc[changed, "question"] = "Is it loud?"
        table = pd.concat([table[changed], table[~changed]]) if resumes else table  # rows of the table may move
        table.to_parquet(folder / "questions.parquet", index=False)
    train(config, "pooled", 0, folder / "x")
    assert ("resuming after epoch 2" in caplog.text) is resumes
    assert ("starting anew" in caplog.text) is not resumes
    assert len(pd.read_csv(folder / "x" / "history.csv")) == 12


def test_a_feature_that_is_not_a_number_stops_training_and_is_named(config, folder):
    with h5py.File(folder.parent / "c" / "features" / "vggish" / "00000.h5", "a") as file:
        file["vggish/embedding"][5, 1, 2] = np.nan
    for name in ("av_master", "pooled"):
        with pytest.raises(AVQAError, match=r"00000\.h5: vggish/embedding of video v5 is not finite"):
            train(config, name, 0, folder / "x")
    assert not (folder / "x" / "checkpoint.safetensors").exists()


def test_an_infinite_loss_with_finite_features_names_some_videos(config, folder):
    config["train"]["learning_rate"] = 1e30
    with pytest.raises(AVQAError, match=r"epoch \d+: the loss is .* videos (v\d+, ){5}…, whose features are finite"):
        train(config, "pooled", 0, folder / "x")


def test_weights_that_the_last_step_made_infinite_are_no_result(config, folder):
    """The loss of the only batch is finite, since the step comes after it."""
    config["train"] |= {"learning_rate": 1e38, "epochs": 1, "batch_size": 64}
    with pytest.raises(AVQAError, match=r"val.* videos v\d+.* are no finite numbers.*train.learning_rate"):
        train(config, "pooled", 0, folder / "x")
    assert not (folder / "x" / "checkpoint.safetensors").exists()


def test_only_failed_videos_to_train_on_is_said_so(config, folder):
    table = pd.read_parquet(folder / "questions.parquet")
    table.loc[table["split"] == "train", "video_id"] = "v3"
    table.to_parquet(folder / "questions.parquet", index=False)
    with pytest.raises(AVQAError, match=r"all \d+ questions of split train are about videos that could not be decoded"):
        train(config, "pooled", 0, folder / "x")


def test_plain_arithmetic_trains_and_evaluates(config, folder, monkeypatch):
    """`train.fast: false`, in training and in evaluation after it; the switch is back on afterwards."""
    used = []
    monkeypatch.setattr("pipeline.models.fast.linear.by_onednn", lambda *_: used.append(fast.enabled))
    config["train"] |= {"fast": False, "epochs": 12}
    train(config, "av_master", 0, folder / "x")
    assert evaluate(folder / "x")["overall"]["accuracy"] == 1
    evaluate_by_second(folder / "x")
    assert not any(used) and fast.enabled


def test_mistakes_are_named(config, folder, tmp_path):
    with pytest.raises(AVQAError, match="models: has no av_maste; it has av_master"):
        train(config, "av_maste", 0, folder / "x")
    config["models"]["av_master"]["visual"] = "clip_vit_l14/cls"
    with pytest.raises(AVQAError, match=r"has no clip_vit_l14/cls; it has clip_vit_b32/cls"):
        train(config, "av_master", 0, folder / "x")
    with pytest.raises(AVQAError, match="avqa train"):
        evaluate(tmp_path / "nothing")


def test_scores_are_counted_as_in_the_papers():
    """Oracle: counted by hand."""
    table = pd.DataFrame(
        [
            ("Audio-Visual", "Temporal", True),
            ("Audio", "Comparative", False),
            ("Audio", "Counting", True),
            ("Audio", "Counting", True),
            ("Visual", "Location", False),
        ],
        columns=["scenario", "type", "correct"],
    )
    scores = score(table)
    assert scores["overall"] == {"accuracy": 0.6, "count": 5}
    assert list(scores["scenario"]) == ["Audio", "Visual", "Audio-Visual"]
    assert scores["scenario"]["Audio"] == {"accuracy": pytest.approx(2 / 3), "count": 3}
    types = [(scenario, kind) for scenario, kinds in scores["types"].items() for kind in kinds]
    assert types == [
        ("Audio", "Counting"),
        ("Audio", "Comparative"),
        ("Visual", "Location"),
        ("Audio-Visual", "Temporal"),
    ]
    assert json.loads(json.dumps(scores)) == scores
    lines = format_scores(scores).splitlines()
    names = [line.split("  ")[0] for line in lines[1:5]]
    assert names == ["Audio/Counting", "Audio/Comparative", "Audio average", "Visual/Location"]
    assert "60.00%" in lines[-1]


def test_a_second_run_of_the_same_training_waits_and_finds_it_finished(config, folder):
    """As when a cluster still runs the job of a killed run: nobody changes what another has made."""
    config["train"]["epochs"] = 1
    out = folder / "x"
    threads = [Thread(target=train, args=(config, "av_master", 0, out)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = (out / "checkpoint.safetensors").stat().st_mtime_ns
    assert len((out / "history.csv").read_text().splitlines()) == 2 and not (out / ".lock").exists()
    train(config, "av_master", 0, out)
    assert (out / "checkpoint.safetensors").stat().st_mtime_ns == made
    config["train"]["learning_rate"] = 0.01
    train(config, "av_master", 0, out)
    assert (out / "checkpoint.safetensors").stat().st_mtime_ns != made
