"""Segments and questions to features files."""

import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.extract
from extractors import ENCODERS, AudioInput, EncoderSpec, FrameInput, Transform, load_encoder
from extractors.base import Encoder
from pipeline.cli import main
from pipeline.errors import AVQAError
from pipeline.extract import extract_shard
from pipeline.provenance import provenance
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.text import encode_texts, read_texts

SECONDS = 5
LENGTHS = [5, 2, 0, 1, 4]  # the third video failed


def write_segments(path, inputs, lengths, pad="repeat", **attributes):
    """A segments file with `inputs` (key -> N, T, …), padded as decoding pads; returns them."""
    for values in inputs.values():
        for n, length in enumerate(lengths):
            values[n, length:] = values[n, length - 1] if pad == "repeat" and length else 0
    datasets = {key: DatasetSpec(values.shape[1:], values.dtype.name) for key, values in inputs.items()}
    datasets |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    attributes = {"kind": "segments", "collection": "c", "shard": "00007", "source": "abc", **attributes}
    attributes["config"] = {"pad": pad}
    videos = [f"v{n}" for n in range(len(lengths))]
    with ShardWriter(path, len(lengths), datasets, attributes, {"video_id": videos}) as writer:
        for n, length in enumerate(lengths):
            row = {"num_segments": length, "has_audio": True, "status": int(length == 0)}
            writer.write(n, {key: values[n] for key, values in inputs.items()} | row)
    return inputs


def make_segments(path, pad="repeat"):
    audio = (np.random.default_rng(0).standard_normal((len(LENGTHS), SECONDS, 16000)) / 5).astype("float32")
    return write_segments(path, {"audio/16000": audio}, LENGTHS, pad)["audio/16000"]


class Identity(Encoder):
    """Gives what it is given: its outputs are its windows."""

    def build(self):
        return torch.nn.Linear(1, 1)

    def fetch(self, tag):
        raise NotImplementedError

    def forward(self, *windows):
        assert [str(w.dtype) for w in windows] == [f"torch.{input.dtype}" for input in self.spec.inputs]
        return dict(zip(self.spec.outputs, windows, strict=True))


def register(monkeypatch, *inputs):
    """An encoder `identity` with outputs a, b, … for its inputs."""
    shapes = [(i.seconds * i.rate,) if isinstance(i, AudioInput) else i.shape for i in inputs]
    spec = EncoderSpec(f"{__name__}:Identity", "identity", inputs, dict(zip("abc", shapes, strict=False)))
    monkeypatch.setitem(ENCODERS, "identity", spec)


def counting(shape, dtype):
    """Different numbers that float16 holds exactly, none of them 0."""
    return (np.arange(math.prod(shape)) % 251 + 1).reshape(shape).astype(dtype)


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
        for n, length in enumerate(LENGTHS):
            expected = np.zeros((SECONDS, 128), "float32")
            for i in range(length):
                expected[i] = encoder.encode(audio[n, i : i + 1])["embedding"][0]
            if length and pad == "repeat":
                expected[length:] = expected[length - 1]
            np.testing.assert_allclose(file["vggish/embedding"][n], expected, rtol=2e-3, atol=2e-3)
        assert file["num_segments"][:].tolist() == LENGTHS and file["status"][:].tolist() == [0, 0, 1, 0, 0]


@settings(max_examples=40, deadline=None)
@given(
    seconds=st.integers(1, 6),
    rate=st.sampled_from([4, 5, 7, 10]),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    batch_size=st.integers(1, 9),
    pad=st.sampled_from(["repeat", "zero"]),
    hop=st.sampled_from([None, 3, 4, 11]),
)
def test_a_window_is_centred_on_its_second_within_the_video(seconds, rate, lengths, batch_size, pad, hop):
    """Oracle: sample by sample. Window i begins seconds/2 before i + 0.5, or half a sample later if that falls between
    two samples, or with a hop at i * hop; what is not within the video's true length is 0, whatever the padded seconds
    hold."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch, AudioInput(rate, seconds, hop), FrameInput(2, fps=3, transform=Transform("bilinear", 4)))
        inputs = {
            f"audio/{rate}": counting((len(lengths), 6, rate), "float32"),
            "frames/2-bilinear-4-3fps": counting((len(lengths), 6, 3, 2, 2, 3), "uint8"),
        }
        audio, frames = write_segments(Path(folder, "s.h5"), inputs, lengths, pad).values()
        out = Path(folder, "f.h5")
        extract_shard(Path(folder, "s.h5"), out, encoder="identity", weights="random", batch_size=batch_size)
        with h5py.File(out) as file:
            for n, length in enumerate(lengths):
                samples = audio[n].reshape(-1)
                for i in range(6):
                    second = min(i, length - 1) if pad == "repeat" else i  # padded rows
                    expected = [0.0] * (seconds * rate)
                    if 0 <= second < length:
                        begin = second * hop if hop else math.ceil(rate * (second + 0.5 - seconds / 2))
                        for k in range(seconds * rate):
                            if 0 <= begin + k < length * rate:
                                expected[k] = samples[begin + k]
                    assert file["identity/a"][n, i].tolist() == expected, (n, i)
                np.testing.assert_array_equal(file["identity/b"][n], frames[n] if length else 0)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_run_that_stopped_ends_in_the_same_numbers(tmp_path, monkeypatch, rows, again):
    """To the last bit, although a product may depend on what else is in its batch. Writing fails for good, or once."""
    make_segments(tmp_path / "s.h5")
    how = {"encoder": "vggish", "weights": "random", "dtype": "float32", "batch_size": 4}
    extract_shard(tmp_path / "s.h5", tmp_path / "whole.h5", **how)
    write, written = ShardWriter.write, []

    def stop_later(writer, n, row):
        if len(written) == rows:
            if not again:
                written.append(None)
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


class Cramped(Identity):
    """A device whose memory holds three windows."""

    sizes: ClassVar = []

    def forward(self, *windows):
        self.sizes.append(len(windows[0]))
        if len(windows[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(*windows)


def test_batches_that_do_not_fit_are_halved(tmp_path, monkeypatch):
    register(monkeypatch, AudioInput(4))
    monkeypatch.setitem(ENCODERS, "identity", replace(ENCODERS["identity"], loader=f"{__name__}:Cramped"))
    audio = write_segments(tmp_path / "s.h5", {"audio/4": counting((4, 5, 4), "float32")}, [5, 5, 5, 5])["audio/4"]
    extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="identity", weights="random", batch_size=10)
    with h5py.File(tmp_path / "f.h5") as file:
        np.testing.assert_array_equal(file["identity/a"], audio)
    assert Cramped.sizes == [10, 5, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]  # what failed once is not tried again
    monkeypatch.setattr(Cramped, "forward", lambda *_: exec("raise torch.OutOfMemoryError('one is too many')"))
    with pytest.raises(torch.OutOfMemoryError, match="one is too many"):
        extract_shard(tmp_path / "s.h5", tmp_path / "g.h5", encoder="identity", weights="random", batch_size=10)


def test_a_file_is_finished_only_with_the_outputs_that_are_configured(tmp_path, monkeypatch):
    register(monkeypatch, AudioInput(4), AudioInput(5))
    inputs = {f"audio/{rate}": counting((2, 3, rate), "float32") for rate in (4, 5)}
    write_segments(tmp_path / "s.h5", inputs, [3, 2])

    def extract(*outputs):
        out = tmp_path / "f.h5"
        extract_shard(tmp_path / "s.h5", out, encoder="identity", weights="random", outputs=list(outputs))
        with h5py.File(out) as file:
            return sorted(file["identity"]), out.stat().st_mtime_ns

    first, _ = extract("a")
    both, made = extract("a", "b")
    assert (first, both) == (["a"], ["a", "b"])
    assert extract("b", "a") == (both, made)  # the same file, left as it is
    assert extract("b")[0] == ["b"]


def test_what_decides_the_numbers_is_recorded(tmp_path):
    audio = (np.random.default_rng(0).standard_normal((1, 2, 16000)) / 5).astype("float32")
    write_segments(tmp_path / "s.h5", {"audio/16000": audio}, [2], libraries={"av": "18.1"})
    extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="vggish", weights="random", dtype="float32")
    with h5py.File(tmp_path / "f.h5") as file:
        found = dict(file.attrs)
    assert {"kind": "features", "encoder": "vggish", "shard": "00007", "collection": "c"}.items() <= found.items()
    assert not found["pretrained"] and len(found["weights_sha256"]) == 64
    assert json.loads(found["config"]) == {"dtype": "float32", "decode": {"pad": "repeat"}}
    libraries = json.loads(found["libraries"])
    assert libraries.keys() == {"av", "torch", "torchvggish"} and libraries["av"] == "18.1"


def test_failed_videos_are_counted_in_the_log(tmp_path, caplog):
    make_segments(tmp_path / "s.h5")
    extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="vggish", weights="random")
    assert f"s.h5: 1 of {len(LENGTHS)} videos failed; their features are zeros" in caplog.text


def test_features_of_an_earlier_version_of_the_numbers_are_made_again(tmp_path, monkeypatch):
    """The file records the version where it is not 1; a finished file of another version is no finished file."""
    register(monkeypatch, AudioInput(4))
    write_segments(tmp_path / "s.h5", {"audio/4": counting((1, 2, 4), "float32")}, [2])

    def made():
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="identity", weights="random")
        with h5py.File(tmp_path / "f.h5") as file:
            return json.loads(file.attrs["libraries"]).get("encoder"), (tmp_path / "f.h5").stat().st_mtime_ns

    first = made()
    assert first[0] is None and made() == first
    monkeypatch.setitem(ENCODERS, "identity", replace(ENCODERS["identity"], versions={"": 2}))
    second = made()
    assert second[0] == 2 and second[1] != first[1] and made() == second
    monkeypatch.setitem(ENCODERS, "identity", replace(ENCODERS["identity"], versions={"another tag": 3, "": 2}))
    assert made() == second


def test_an_error_of_the_system_is_not_blamed_on_the_segments(tmp_path):
    make_segments(tmp_path / "s.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        extract_shard(tmp_path / "s.h5", tmp_path / "file" / "f.h5", encoder="vggish", weights="random")


def test_the_inputs_of_the_encoder_must_be_there(tmp_path, monkeypatch):
    make_segments(tmp_path / "s.h5")
    with pytest.raises(AVQAError, match=r"s\.h5: has no frames/224-bicubic, an input of clip_vit_b32"):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="clip_vit_b32", weights="random")
    with pytest.raises(AVQAError, match=r"outputs.*pach.*choose from"):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", encoder="vggish", weights="random", outputs=["pach"])
    write_segments(tmp_path / "other.h5", {"audio/16000": np.ones((1, 2, 8000), "float32")}, [2])
    with pytest.raises(AVQAError, match=r"other\.h5: audio/16000 holds float32 \(8000,\) per second, expected"):
        extract_shard(tmp_path / "other.h5", tmp_path / "f.h5", encoder="vggish", weights="random")


def test_values_that_are_not_finite_stop_the_stage(tmp_path):
    make_segments(tmp_path / "s.h5")
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
    with pytest.raises(AVQAError, match=r"vggish has no text outputs; use one of clip_vit_l14.*siglip2"):
        encode_texts(tmp_path / "q.txt", tmp_path / "t.h5", encoder="vggish", weights="random")


def test_prompts_are_encoded_where_they_are_asked_for(tmp_path):
    """Without them, a file has half as many texts; the command that makes it again says which it is."""
    table = pd.DataFrame({"question": ["Is it loud?", "Is it?"], "prompt": ["It is loud.", None]})
    table.to_parquet(tmp_path / "q.parquet")
    common = ("--encoder", "clip_vit_b32", "--weights", "random")
    expected = {"with": [*table["question"], "It is loud."], "without": table["question"].tolist()}
    for name, flag in (("with", ["--prompts"]), ("without", [])):
        assert main(["text", str(tmp_path / "q.parquet"), *common, *flag, "--out", str(tmp_path / f"{name}.h5")]) == 0
        with h5py.File(tmp_path / f"{name}.h5") as file:
            assert file["text"].asstr()[:].tolist() == expected[name]
        assert ("--prompts" in provenance(tmp_path / f"{name}.h5")) == bool(flag)


def test_questions_without_their_last_character_keep_their_names(tmp_path):
    """Options and prompts are encoded whole. The file says which of the two it holds; others say nothing, as before."""
    marks = ["How many?", "How many？", "Is it loud? ", "?", "aé"]
    table = pd.DataFrame(
        {"question": marks, "prompt": ["It is loud."] + [None] * 4, "choices": [["two?"], *[None] * 4]}
    )
    table.to_parquet(tmp_path / "q.parquet")
    whole, short = tmp_path / "whole.h5", tmp_path / "short.h5"
    common = {"encoder": "clip_vit_b32", "weights": "random"}
    encode_texts(tmp_path / "q.parquet", whole, **common, prompts=True)
    encode_texts(tmp_path / "q.parquet", short, **common, drop_last_character=True, prompts=True)
    short_forms = {"How many?": "How many", "How many？": "How many", "Is it loud? ": "Is it loud", "?": "", "aé": "a"}
    texts = sorted([*marks, "two?", "It is loud."])
    expected = load_encoder("clip_vit_b32", "random").encode_text([short_forms.get(t, t) for t in texts], "eot")
    with h5py.File(whole) as plain, h5py.File(short) as file:
        assert file["text"].asstr()[:].tolist() == plain["text"].asstr()[:].tolist() == texts
        for name in ("words", "sentence"):
            np.testing.assert_allclose(file[name][:], expected[name].half(), rtol=0.05, atol=0.05)
        how_many = [texts.index("How many?"), texts.index("How many？")]
        np.testing.assert_array_equal(*file["words"][:][how_many])
        assert (file["length"][:] - plain["length"][:]).tolist() == [-int(text in short_forms) for text in texts]
        assert json.loads(file.attrs["config"])["drop_last_character"] is True
        assert set(json.loads(plain.attrs["config"])) == {"dtype", "sentence"}
    assert "--drop-last-character" in provenance(short) and "--drop-last" not in provenance(whole)


def test_the_times_of_an_extraction_say_which_part_is_slow(tmp_path, monkeypatch):
    """Reading of each of the four batches is made to take 0.1 s; a second run finds the file and keeps the times."""
    make_segments(tmp_path / "s.h5")
    read = pipeline.extract.read_windows

    def slowly(*arguments):
        time.sleep(0.1)
        return read(*arguments)

    monkeypatch.setattr(pipeline.extract, "read_windows", slowly)
    arguments = {"encoder": "vggish", "weights": "random", "batch_size": 3, "timing": tmp_path / "times.json"}
    for _ in range(2):
        extract_shard(tmp_path / "s.h5", tmp_path / "f.h5", **arguments)
        found = json.loads((tmp_path / "times.json").read_text())
        assert found["items"] == sum(LENGTHS) and found["jobs"] == 1
        assert sorted(found["parts"]) == ["encoder", "reading", "start", "writing"]
        assert 0.4 <= found["parts"]["reading"] < found["wall"] and all(s > 0 for s in found["parts"].values())
