"""Segments and questions to features files."""

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from extractors import load_encoder
from pipeline.errors import AVQAError
from pipeline.extract import extract_shard
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.text import encode_texts, read_texts

SECONDS = 5
TRUE = [5, 2, 0, 1, 4]  # the third video failed


def make_segments(path, pad):
    rng = np.random.default_rng(0)
    audio = (rng.standard_normal((len(TRUE), SECONDS, 16000)) / 5).astype("float32")
    for n, true in enumerate(TRUE):
        audio[n, true:] = audio[n, true - 1] if pad == "repeat" and true else 0
    datasets = {"audio": DatasetSpec((SECONDS, 16000), "float32"), "num_segments": DatasetSpec((), "int32")}
    datasets |= {"has_audio": DatasetSpec((), "bool"), "status": DatasetSpec((), "int32")}
    attributes = {"kind": "segments", "collection": "c", "shard": "00007", "source": "abc", "config": {"pad": pad}}
    with ShardWriter(path, len(TRUE), datasets, attributes, {"video_id": [f"v{n}" for n in range(5)]}) as writer:
        for n, true in enumerate(TRUE):
            row = {"audio": audio[n], "num_segments": true, "has_audio": True, "status": int(true == 0)}
            writer.write(n, row)
    return audio


@pytest.mark.parametrize(("pad", "batch_size"), [("repeat", 3), ("zero", 64)])
def test_each_second_gets_its_own_embedding(tmp_path, pad, batch_size):
    """Oracle: the encoder on every second by itself."""
    audio = make_segments(tmp_path / "s.h5", pad)
    extract_shard(
        tmp_path / "s.h5",
        tmp_path / "f.h5",
        encoder="vggish",
        weights="random",
        dtype="float32",
        batch_size=batch_size,
    )
    encoder = load_encoder("vggish", "random", dtype="float32")
    with h5py.File(tmp_path / "f.h5") as file:
        for n, true in enumerate(TRUE):
            expected = np.zeros((SECONDS, 128), "float32")
            for i in range(true):
                expected[i] = encoder.encode(audio[n, i : i + 1])["embedding"][0]
            if true and pad == "repeat":
                expected[true:] = expected[true - 1]
            np.testing.assert_allclose(file["vggish/embedding"][n], expected, rtol=2e-3, atol=2e-3)
        assert file["num_segments"][:].tolist() == TRUE and file["status"][:].tolist() == [0, 0, 1, 0, 0]
        attributes = dict(file.attrs)
    assert attributes["kind"] == "features" and attributes["encoder"] == "vggish" and attributes["shard"] == "00007"
    assert not attributes["pretrained"] and len(attributes["weights_sha256"]) == 64


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_run_that_stopped_ends_in_the_same_numbers(tmp_path, monkeypatch, rows):
    """To the last bit, although a product may depend on what else is in its batch."""
    make_segments(tmp_path / "s.h5", "repeat")
    how = {"encoder": "vggish", "weights": "random", "dtype": "float32", "batch_size": 4}
    extract_shard(tmp_path / "s.h5", tmp_path / "whole.h5", **how)
    write, written = ShardWriter.write, []

    def stop_later(writer, n, row):
        if len(written) == rows:
            raise KeyboardInterrupt
        written.append(n)
        write(writer, n, row)

    monkeypatch.setattr(ShardWriter, "write", stop_later)
    with pytest.raises(KeyboardInterrupt):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", **how)
    monkeypatch.setattr(ShardWriter, "write", write)
    extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", **how)
    with h5py.File(tmp_path / "f.h5") as made, h5py.File(tmp_path / "whole.h5") as whole:
        np.testing.assert_array_equal(made["vggish/embedding"], whole["vggish/embedding"])


def test_an_error_of_the_system_is_not_blamed_on_the_segments(tmp_path):
    make_segments(tmp_path / "s.h5", "repeat")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        extract_shard(tmp_path / "s.h5", tmp_path / "file" / "f.h5", encoder="vggish", weights="random")


def test_what_the_encoder_needs_must_be_there(tmp_path):
    make_segments(tmp_path / "s.h5", "repeat")
    with pytest.raises(AVQAError, match=r"s\.h5: has no frames/224, which clip_vit_b32 reads"):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="clip_vit_b32", weights="random")
    with pytest.raises(AVQAError, match=r"outputs.*pach.*choose from"):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="vggish", weights="random", outputs=["pach"])


def test_values_that_are_not_finite_stop_the_stage(tmp_path):
    make_segments(tmp_path / "s.h5", "repeat")
    state = load_encoder("vggish", "random").network.state_dict()
    torch.save({name: tensor * 1e6 for name, tensor in state.items()}, tmp_path / "huge.pt")
    with pytest.raises(AVQAError, match="not finite"):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="vggish", weights=str(tmp_path / "huge.pt"))
    assert not (tmp_path / "f.h5").exists()


def test_each_different_question_once(tmp_path):
    questions = ["How many?", "Is it loud?", "How many?"]
    (tmp_path / "q.txt").write_text("\n".join(questions) + "\n\n")
    pd.DataFrame({"question": questions}).to_parquet(tmp_path / "q.parquet")
    assert read_texts(tmp_path / "q.txt") == read_texts(tmp_path / "q.parquet") == ["How many?", "Is it loud?"]
    encode_texts(tmp_path / "q.txt", tmp_path / "t.h5", encoder="clip_vit_b32", weights="random", batch_size=1)
    expected = load_encoder("clip_vit_b32", "random").encode_text(["How many?", "Is it loud?"], "eot")
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["text"].asstr()[:].tolist() == ["How many?", "Is it loud?"]
        for name in ("words", "sentence"):
            np.testing.assert_allclose(file[name][:], expected[name].half(), rtol=0.05, atol=0.05)
        assert file["length"][:].tolist() == expected["length"].tolist()
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(AVQAError, match=r"empty\.txt: holds no question"):
        read_texts(tmp_path / "empty.txt")
