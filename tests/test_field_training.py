"""PSTP-Net, TSPM, QA-TIGER and AVST on the trainer: from shards of features, patches and maps to scores."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from made_results import make_index
from safetensors.torch import load_file
from test_learning import ENCODER, SECONDS, VIDEOS, make_features, write_features

from extractors import ENCODERS
from pipeline.config import check_config
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.train import train

VIDEO = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}
PATCHES = VIDEO | {"patch": "clip_vit_l14/patch"}
MODELS = {
    "pstp_net": PATCHES | {"width": 16, "segments": 3, "top_k": 2, "top_m": 2},
    "released": PATCHES | {"architecture": "pstp_net", "variant": "released", "width": 16},
    "tspm": PATCHES | {"width": 16, "top_k": 2},
    "qa_tiger": PATCHES | {"width": 16, "heads": 2, "experts": 3, "top_k": 2},
    "avst": {"audio": VIDEO["audio"], "map": "resnet18/map", "every": 2},
}
TEXTS = {"words": (77, 8), "words_unprojected": (77, 6), "sentence": (8,)}


def make_data(folder, collection):
    """Beside the trainer's own: patches and maps that say the answer, and words without the text projection."""
    make_features(folder, collection)
    rng, sign = np.random.default_rng(0), 6 * (np.arange(VIDEOS) % 2) - 3
    patches, maps = (rng.standard_normal((VIDEOS, SECONDS, *shape)) for shape in ((3, 8), (8, 2, 2)))
    patches[..., 0], maps[:, :, 0] = sign[:, None, None], sign[:, None, None, None]
    for name, values in (("clip_vit_l14/patch", patches), ("resnet18/map", maps)):
        write_features(collection, *name.split("/"), values.astype("float16"), np.zeros(VIDEOS, int))
    attributes = ENCODER | {"kind": "text", "dataset": "d", "shard": "", "config": {}}
    datasets = {name: DatasetSpec(shape, "float16") for name, shape in TEXTS.items()}
    datasets |= {"length": DatasetSpec((), "int32")}
    texts = ["Is it playing?", "Is it loud?"]
    (folder / "text" / "clip_vit_b32.h5").unlink()
    with ShardWriter(folder / "text" / "clip_vit_b32.h5", 2, datasets, attributes, {"text": texts}) as writer:
        for n in range(2):
            writer.write(n, {name: rng.standard_normal(shape) for name, shape in TEXTS.items()} | {"length": 5})
    make_index(folder, collection, ["clip_vit_b32", "clip_vit_l14", "resnet18", "vggish"], "clip_vit_b32")


def configuration(folder, models, schedule):
    encoders = ("clip_vit_b32", "clip_vit_l14", "resnet18", "vggish")
    return check_config(
        {
            "dataset": "d",
            "results": str(folder),
            "videos": {"collection": "c", "folder": "unused"},
            "annotations": {"train": "unused", "val": "unused", "test": "unused"},
            "encoders": {encoder: {"weights": "random"} for encoder in encoders},
            "text": {"encoder": "clip_vit_b32", "weights": "random"},
            "models": models,
            "train": schedule,
            "max_failed_fraction": 0.1,
        }
    )


@pytest.mark.parametrize("name", MODELS)
def test_trains(name, tmp_path, monkeypatch):
    monkeypatch.setitem(ENCODERS["clip_vit_b32"].text_outputs, "words_unprojected", (77, 512))
    entry = MODELS[name]
    schedule = {"epochs": 6, "batch_size": 4, "learning_rate": 0.005, "betas": [0.9, 0.999], "threads": 1}
    schedule |= {"pretrain": {"settings": {"stage": "match"}, "epochs": 1}} if name == "avst" else {}
    config = configuration(tmp_path, {name: entry}, schedule)
    make_data(tmp_path / "d", tmp_path / "c")
    train(config, name, 0, tmp_path / "run")
    assert evaluate(tmp_path / "run")["overall"]["accuracy"] == 1
    if name == "avst":  # its first stage, on seconds 0 and 2 of 3, is where the second starts
        assert (
            yaml.safe_load((tmp_path / "run/pretrain/config.yaml").read_text())["config"]["models"][name]["stage"]
            == "match"
        )
        assert "match.0.weight" in load_file(tmp_path / "run/pretrain/checkpoint.safetensors")
        history = pd.read_csv(tmp_path / "run/history.csv")
        assert {"answer", "match"} <= set(history.columns)


def test_the_stage_before_training_is_the_same_with_options(tmp_path):
    schedule = {"epochs": 6, "batch_size": 4, "learning_rate": 0.005, "betas": [0.9, 0.999], "threads": 1}
    schedule |= {"pretrain": {"settings": {"stage": "match"}, "epochs": 1}}
    config = configuration(tmp_path, {"avst": MODELS["avst"]}, schedule)
    make_data(tmp_path / "d", tmp_path / "c")
    path, texts = tmp_path / "d" / "questions.parquet", ["Is it playing?", "Is it loud?"]
    table = pd.read_parquet(path)
    options = [texts[::-1] if n % 3 else texts for n in range(len(table))]
    table.assign(choices=options, answer=[texts[n] for n in table["answer_id"]]).to_parquet(path)
    train(config, "avst", 0, tmp_path / "run")
    columns = [set(pd.read_csv(tmp_path / "run" / name)) for name in ("pretrain/history.csv", "history.csv")]
    assert "match" in columns[0] and "answer" not in columns[0] and {"answer", "match"} <= columns[1]
    assert evaluate(tmp_path / "run")["overall"]["accuracy"] == 1


def test_prompts_are_texts_of_their_own(tmp_path):
    make_data(tmp_path / "d", tmp_path / "c")
    path = tmp_path / "d" / "questions.parquet"
    table = pd.read_parquet(path)
    table["prompt"] = ["Is it loud?", None] * (len(table) // 2)
    table.to_parquet(path)
    names = {"sentence": (8,), "prompt": (8,)}
    data = QuestionData(tmp_path / "d", {"audio": "vggish/embedding"}, names, False, torch.device("cpu"))
    texts = load_text(tmp_path / "d" / "text" / "clip_vit_b32.h5")
    prompts = table["prompt"].fillna(table["question"])
    for batch in data.batches("test", 4):
        for n, row in enumerate(batch.row):
            assert np.array_equal(batch.texts["prompt"][n].numpy(), texts[prompts[row]])
            assert np.array_equal(batch.texts["sentence"][n].numpy(), texts[table["question"][row]])
    table["prompt"] = "A statement that is not encoded"
    table.to_parquet(path)
    with pytest.raises(AVQAError, match=r"values of prompt.*A statement that is not encoded"):
        QuestionData(tmp_path / "d", {"audio": "vggish/embedding"}, names, False, torch.device("cpu"))


def test_other_prompts_train_the_models_that_read_them_again_and_no_others(tmp_path):
    make_data(tmp_path / "d", tmp_path / "c")
    path = tmp_path / "d" / "questions.parquet"
    table = pd.read_parquet(path)
    models = {name: MODELS[name] for name in ("tspm", "pstp_net")}
    config = configuration(tmp_path, models, {"epochs": 1, "batch_size": 4, "threads": 1})
    made = {}
    for prompt in ("Is it playing?", "Is it loud?"):
        table.assign(prompt=prompt).to_parquet(path)
        for name in ("tspm", "pstp_net"):
            train(config, name, 0, tmp_path / name)
            made.setdefault(name, []).append((tmp_path / name / "checkpoint.safetensors").stat().st_mtime_ns)
    assert made["tspm"][0] != made["tspm"][1] and made["pstp_net"][0] == made["pstp_net"][1]


def load_text(path):
    """The sentence of each text."""
    with h5py.File(path) as file:
        return dict(zip(file["text"].asstr()[:], file["sentence"][:], strict=True))
