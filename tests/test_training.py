"""Training beyond the defaults: tokens, schedules of a model's own, pretraining, features read as needed, releases."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from models.building import TokenSettings
from safetensors.torch import load_file, save_file
from test_learning import FEATURES, config, folder, history, interrupted_after  # noqa: F401

from pipeline.cli import main
from pipeline.config import check_config
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate
from pipeline.models import MODELS
from pipeline.numbering import index_answers
from pipeline.reporting.stages import stage_table
from pipeline.storage.features import FeatureIndex
from pipeline.timing import Stopwatch
from pipeline.train import Trainer, train

NO_MEMORY = type("", (), {"available": 8})


@pytest.fixture
def tokens(config, monkeypatch):  # noqa: F811
    """The configuration with a model that reads tokens."""
    monkeypatch.setitem(MODELS, "tokens", ("models.building:TokenSettings", "models.building:TokenModel"))
    config["models"] = {"tokens": {"visual": "clip_vit_b32/cls"}}
    return check_config(config)


def no_memory(monkeypatch, rows=0):
    """As on a machine with hardly any memory left: room for so many rows of the visual features of the tests."""
    available = rows * 4 * 2 * 3 * 8 + 8
    monkeypatch.setattr("pipeline.data.features.available_memory", lambda: available)


def test_tokens_reach_the_model_and_the_vocabulary_stays_with_the_run(tokens, folder):  # noqa: F811
    train(tokens, "tokens", 0, folder / "x")
    scores = evaluate(folder / "x")
    assert scores["overall"]["accuracy"] == 1
    described = yaml.safe_load((folder / "x" / "config.yaml").read_text())
    assert described["vocabulary"] == ["<pad>", "Is", "it", "playing", "loud", "Visual", "Location", "Counting"]
    assert len(load_file(folder / "x" / "checkpoint.safetensors")["words.weight"]) == 8
    # Words that come in front of the others in the table give them other numbers, unless the run's own are used.
    table = pd.read_parquet(folder / "questions.parquet")
    predictions = pd.read_parquet(folder / "x" / "predictions.parquet")
    table.loc[table["split"] == "train", "question"] = "Is it loud?"
    shutil.copytree(folder, folder.parent / "other")
    table.to_parquet(folder.parent / "other" / "questions.parquet", index=False)
    evaluate(folder / "x", questions_of=folder.parent / "other", out=folder.parent / "again")
    again = pd.read_parquet(folder.parent / "again" / "predictions.parquet")
    np.testing.assert_array_equal(again["confidence"], predictions["confidence"])


def test_another_data_sets_questions_have_the_length_of_the_models_training(tokens, folder, monkeypatch):  # noqa: F811
    """Questions of three words, with a paper's two: training makes it three, also for a data set without training."""
    monkeypatch.setattr(TokenSettings, "texts", {"tokens": (2,), "type": (2,)})
    train(tokens, "tokens", 0, folder / "x")
    evaluate(folder / "x")
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    table = pd.read_parquet(folder / "questions.parquet")
    table[table["split"] == "test"].to_parquet(other / "questions.parquet", index=False)
    evaluate(folder / "x", questions_of=other, out=other)
    own, others = (pd.read_parquet(path / "predictions.parquet") for path in (folder / "x", other))
    np.testing.assert_array_equal(own["confidence"], others["confidence"])


@pytest.mark.parametrize(("column", "again"), [("type", True), ("keywords", False)])
def test_annotations_that_a_model_reads_train_it_again(tokens, folder, caplog, column, again):  # noqa: F811
    """The model of the tests reads each question's type, and no keywords."""
    caplog.set_level("INFO")
    train(tokens, "tokens", 0, folder / "x")
    table = pd.read_parquet(folder / "questions.parquet").assign(keywords="violin")
    table.loc[23, column] = "Location"  # of a training question: a word that others have, so the vocabulary is the same
    table.to_parquet(folder / "questions.parquet", index=False)
    train(tokens, "tokens", 0, folder / "x")
    assert ("the checkpoint is there" in caplog.text) is not again


def test_a_list_of_answers_may_have_some_that_no_question_has(config, folder):  # noqa: F811
    """As where videos of a rare answer are missing: the numbers of answers, and the model's outputs, are the list's."""
    listed = ["maybe", "no", "never", "yes", "always"]
    table = pd.read_parquet(folder / "questions.parquet")
    table["answer_id"] = index_answers(table["answer"], listed)
    table.to_parquet(folder / "questions.parquet", index=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"answers": listed}))
    train(config, "pooled", 0, folder / "x")
    assert evaluate(folder / "x")["overall"]["accuracy"] == 1
    assert len(load_file(folder / "x" / "checkpoint.safetensors")["answers.bias"]) == 5


def read_rows(monkeypatch):
    """A list that fills with the rows of the visual features that are read from shards."""
    rows, read = [], FeatureIndex.read

    def listed(self, name, wanted=None, *args, **options):
        rows.extend(wanted if name == "clip_vit_b32/cls" else [])
        return read(self, name, wanted, *args, **options)

    monkeypatch.setattr(FeatureIndex, "read", listed)
    return rows


@pytest.mark.parametrize("room", [0, 10, 39])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_history_does_not_depend_on_memory_or_workers(config, folder, monkeypatch, room, workers):  # noqa: F811
    config["train"] |= {"epochs": 2}
    train(config, "pooled", 0, folder / "in_memory")
    config["train"]["workers"] = workers
    no_memory(monkeypatch, room)
    rows = read_rows(monkeypatch)
    train(config, "pooled", 0, folder / "as_needed")
    for name in ("history.csv", "checkpoint.safetensors"):
        assert (folder / "in_memory" / name).read_bytes() == (folder / "as_needed" / name).read_bytes()
    # 31 questions about as many videos in each of two epochs; a kept row is read once.
    assert len(rows) == 62 - min(room, 31)


def test_only_the_seconds_that_a_model_uses_are_read(tokens, folder, monkeypatch):  # noqa: F811
    data = QuestionData(folder, {"visual": FEATURES["visual"]}, {}, False, torch.device("cpu"))
    rows = np.array([7, 3, 7, 20])
    whole = data.features["visual"][rows]
    for first, part in [(None, slice(None, None, 2)), (2, slice(1, None)), (2, slice(None)), (None, slice(0, 0))]:
        for room in (10**9, 0, 3):
            with monkeypatch.context() as patch:
                no_memory(patch, room)
                given = {"visual": FEATURES["visual"]}
                some = QuestionData(folder, given, {}, False, torch.device("cpu"), first, {"visual": part})
            for _ in range(2):
                torch.testing.assert_close(some.features["visual"][rows], whole[:, :first][:, part])
            assert some.shapes["visual"] == tuple(whole[0, :first][part].shape)
    tokens["models"]["tokens"] |= {"every": 2, "seconds": 3}
    train(tokens, "tokens", 0, folder / "x")  # the model itself checks what it is given
    assert evaluate(folder / "x")["overall"]["accuracy"] == 1


def test_standardizing_reads_a_bounded_number_of_rows_at_a_time(folder, monkeypatch):  # noqa: F811
    monkeypatch.setattr("pipeline.data.features.STATISTICS_AT_ONCE", 3)
    given = {"visual": FEATURES["visual"]}
    whole = QuestionData(folder, given, {}, True, torch.device("cpu")).features["visual"]
    plain = QuestionData(folder, given, {}, False, torch.device("cpu"))
    values = plain.features["visual"][plain.questions_in("train")["video_row"].to_numpy()].reshape(-1, 8).double()
    torch.testing.assert_close(whole.mean.double(), values.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(whole.std.double() - 1e-6, values.std(0), rtol=1e-5, atol=0)


def test_the_number_of_a_texts_tokens(folder):  # noqa: F811
    texts = {"length": (), "words": (77, 8)}
    data = QuestionData(folder, {"visual": FEATURES["visual"]}, texts, True, torch.device("cpu"))
    assert data.shapes["length"] == ()
    for batch in data.batches("test", 5):
        assert batch.texts["length"].tolist() == [5] * len(batch.row)


def test_a_models_own_schedule(config, folder):  # noqa: F811
    config["models"]["pooled"]["train"] = {"epochs": 3, "decay_every": 1, "decay": 0.5, "betas": [0.5, 0.6]}
    train(check_config(config), "pooled", 0, folder / "x")
    rates = pd.read_csv(folder / "x" / "history.csv")["learning_rate"]
    np.testing.assert_allclose(rates, [0.003, 0.0015, 0.00075])
    described = yaml.safe_load((folder / "x" / "config.yaml").read_text())["config"]
    assert described["train"]["betas"] == [0.5, 0.6] and "train" not in described["models"]["pooled"]


PRETRAIN = {"settings": {"answer_weight": 0.0}, "epochs": 4, "checkpoint": "last"}


def test_pretraining(tokens, folder):  # noqa: F811
    """Its own settings train other weights; the proper training starts from them, and does not repeat it."""
    tokens["models"]["tokens"]["train"] = {"pretrain": PRETRAIN, "epochs": 2}
    train(tokens, "tokens", 0, folder / "x")
    first, second = (load_file(folder / "x" / part / "checkpoint.safetensors") for part in ("pretrain", "."))
    assert len(history(folder / "x" / "pretrain").splitlines()) == 5 and len(history(folder / "x").splitlines()) == 3
    tokens["models"]["tokens"]["train"] = {"epochs": 1, "learning_rate": 1e-12}
    train(tokens, "tokens", 0, folder / "fresh")
    fresh = load_file(folder / "fresh" / "checkpoint.safetensors")
    assert torch.allclose(first["answers.weight"], fresh["answers.weight"]), "without an answer's loss nothing learns"
    assert not torch.allclose(first["visual.weight"], fresh["visual.weight"], atol=1e-3)
    tokens["models"]["tokens"]["train"] = {"pretrain": PRETRAIN, "epochs": 1, "learning_rate": 1e-12}
    before = (folder / "x" / "pretrain" / "checkpoint.safetensors").stat().st_mtime_ns
    tokens["models"]["tokens"]["train"]["pretrain"] = PRETRAIN | {"learning_rate": 0.003}
    train(tokens, "tokens", 0, folder / "x")
    assert (folder / "x" / "pretrain" / "checkpoint.safetensors").stat().st_mtime_ns == before
    start = load_file(folder / "x" / "checkpoint.safetensors")
    assert all(torch.allclose(start[name], first[name], atol=1e-6) for name in first)
    assert not torch.equal(second["answers.weight"], first["answers.weight"])


def test_run_time_counts_the_pretraining_as_training(tokens, folder):  # noqa: F811
    tokens["models"]["tokens"]["train"] = {"pretrain": PRETRAIN, "epochs": 2}
    run = folder / "models" / "tokens" / "seed-0"
    train(tokens, "tokens", 0, run, folder / "times.json")
    times = json.loads((folder / "times.json").read_text())
    assert times["items"] == (4 + 2) * 23  # training questions, without that of the failed video
    assert sum(times["parts"].values()) <= times["wall"]
    (run / "benchmark.tsv").write_text("s\tcpu_time\tmax_rss\n8\t8\t1\n")
    table = stage_table(tokens, FeatureIndex(folder / "features.h5"), pd.read_parquet(folder / "questions.parquet"))
    assert table["items"].iloc[0] == f"{(4 + 2) * 24} questions"


def test_the_start_of_a_job_is_what_is_in_no_other_part(monkeypatch):
    """The job's process began 2 s ago; it works for 5 s, then starts again for 1 s."""
    now = SimpleNamespace(monotonic=lambda: 100.0, time=lambda: psutil.Process().create_time() + 2.0)
    monkeypatch.setattr("pipeline.timing.time", now)
    watch = Stopwatch()
    watch.started()
    assert watch.timing.parts == {"start": pytest.approx(2)}
    watch.add("training", 5.0)
    now.monotonic = lambda: 106.0
    watch.started()
    assert watch.timing.parts == {"start": pytest.approx(3), "training": 5.0}


@pytest.mark.parametrize("interrupted_in", ["pretrain", "."])
def test_an_interrupted_pretraining_ends_in_the_same_result(tokens, folder, monkeypatch, interrupted_in):  # noqa: F811
    tokens["models"]["tokens"]["train"] = {"pretrain": PRETRAIN, "epochs": 3}
    tokens["train"]["workers"] = 3
    train(tokens, "tokens", 0, folder / "whole")
    save = Trainer.save_progress

    def fail(trainer):
        save(trainer)
        if len(trainer.history) == 2 and (trainer.out.name == "pretrain") is (interrupted_in == "pretrain"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "save_progress", fail)
        train(tokens, "tokens", 0, folder / "x")
    train(tokens, "tokens", 0, folder / "x")
    for name in ("history.csv", "checkpoint.safetensors", "pretrain/history.csv", "pretrain/checkpoint.safetensors"):
        assert (folder / "x" / name).read_bytes() == (folder / "whole" / name).read_bytes(), name
    assert not list((folder / "x").rglob("resume.pt"))


@pytest.mark.parametrize("kind", ["safetensors", "pt", "module in pt"])
def test_a_published_checkpoint_is_scored_like_the_run_that_it_is_from(tokens, folder, tmp_path, kind):  # noqa: F811
    train(tokens, "tokens", 0, folder / "x")
    scores = evaluate(folder / "x")
    state, path = released(folder), tmp_path / f"theirs.{kind[-2:].replace('rs', 'safetensors')}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if kind == "pt" else {"state_dict": state, "epoch": 3}, path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tokens))
    given = ["evaluate", "--checkpoint", str(path), "--model", "tokens", "--config", str(tmp_path / "c.yaml")]
    assert main(given) == 0
    again = json.loads((folder / "released" / "tokens" / "scores.json").read_text())
    assert again["overall"] == scores["overall"] and again["types"] == scores["types"]
    assert again["checkpoint"] == str(path)


def released(folder):  # noqa: F811
    state = load_file(folder / "x" / "checkpoint.safetensors")
    order = {"words.weight": "table", "visual.weight": "projection", "visual.bias": "bias"}
    order |= {"answers.weight": "head", "answers.bias": "head_bias"}
    return {order[name]: tensor for name, tensor in state.items()}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_a_checkpoint_that_does_not_fit_is_named_and_none_is_unpickled(tokens, folder, tmp_path, capsys, monkeypatch):  # noqa: F811
    tokens["train"]["epochs"] = 1
    train(tokens, "tokens", 0, folder / "x")
    state = released(folder)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tokens))
    monkeypatch.chdir(tmp_path)
    for contents, named in [
        (state | {"head": torch.zeros(3, 8), "head_bias": torch.zeros(3)}, "3 answers, this one has 2"),
        (state | {"table": torch.zeros(9, 4)}, "9 words, this one has 8"),
        (state | {"projection": torch.zeros(4, 9)}, "visual features of size 9, not clip_vit_b32/cls"),
        ({"x": state["bias"]}, "theirs.pt: lacks bias"),
        ({"x": Evil()}, "cannot be read as a plain state dict"),
        (None, "theirs.pt: no such checkpoint"),
    ]:
        (tmp_path / "theirs.pt").unlink(missing_ok=True)
        if contents is not None:
            torch.save(contents, tmp_path / "theirs.pt")
        given = ["evaluate", "--checkpoint", "theirs.pt", "--model", "tokens", "--config", str(tmp_path / "c.yaml")]
        assert main(given) == 1
        assert named in capsys.readouterr().err
    assert not (tmp_path / "unpickled").exists()
    assert main(["evaluate", "--checkpoint", "theirs.pt"]) == 1 and "--config" in capsys.readouterr().err
    assert main(["evaluate"]) == 1 and "--checkpoint FILE" in capsys.readouterr().err


def test_a_model_reads_the_text_encoder_that_its_entry_names(config, folder):  # noqa: F811
    given = {"visual": FEATURES["visual"]}
    read = QuestionData(folder, given, {"sentence": (8,)}, False, torch.device("cpu"), text_encoder="clip_vit_b32")
    first = QuestionData(folder, given, {"sentence": (8,)}, False, torch.device("cpu"))
    assert torch.equal(read.texts["sentence"].values, first.texts["sentence"].values)
    with pytest.raises(AVQAError, match="has no texts of clip_vit_l14"):
        QuestionData(folder, given, {"sentence": (8,)}, False, torch.device("cpu"), text_encoder="clip_vit_l14")
    config["models"]["pooled"]["text"] = "clip_vit_l14"
    with pytest.raises(AVQAError, match=r"models.pooled.text: clip_vit_l14 is not among.*clip_vit_b32; see text.other"):
        check_config(config)
    config["text"]["others"] = {"clip_vit_l14": {"weights": "random"}}
    check_config(config)


def test_other_types_of_training_questions_are_another_run(tokens, folder):  # noqa: F811
    """For a model that reads them. No word is new, and all questions and answers stay as they are."""
    table, keys = pd.read_parquet(folder / "questions.parquet"), []
    for _ in range(2):
        train(tokens, "tokens", 0, folder / "x")
        keys.append(yaml.safe_load((folder / "x" / "config.yaml").read_text())["key"])
        table.loc[2:23, "type"] = table.loc[2:23, "type"].map({"Counting": "Location", "Location": "Counting"})
        table.to_parquet(folder / "questions.parquet", index=False)
    assert keys[0] != keys[1]


def test_published_answers_that_no_question_has_keep_their_numbers(config, folder):  # noqa: F811
    """Of three answers the second is of no question: a part of the videos, or of the release's questions."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"answers": ["no", "two", "yes"]}))
    table = pd.read_parquet(folder / "questions.parquet")
    table["answer_id"] = table["answer"].map({"no": 0, "yes": 2})
    table.to_parquet(folder / "questions.parquet", index=False)
    train(config, "pooled", 0, folder / "x")
    assert evaluate(folder / "x")["overall"]["accuracy"] == 1
    assert load_file(folder / "x" / "checkpoint.safetensors")["answers.weight"].shape[0] == 3
    answered = pd.read_parquet(folder / "x" / "predictions.parquet")
    assert set(answered["prediction"]) == {"yes", "no"}
    table.loc[39, ["answer", "answer_id"]] = "two", 1  # a test question; training is as it was
    table.to_parquet(folder / "questions.parquet", index=False)
    assert evaluate(folder / "x")["overall"]["accuracy"] == 7 / 8
