"""`avqa verify`: each planted defect is found, with its file, row and remedy, and nothing else is."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import (
    OUTPUTS,
    feature,
    make_index,
    make_results,
    questions,
    shard_lists,
    text_feature,
    write_shard,
    write_text,
)

from pipeline.cli import main
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5
from pipeline.storage.shard_list import digest, read_shard_list, write_shard_list
from pipeline.verify import verify

VIDEOS = [f"v{n:03d}" for n in range(12)]
SHARDS = shard_lists(VIDEOS, 4)
CLS, PATCH = ("clip_vit_b32/cls", "v005"), ("clip_vit_b32/patch", "v005")
AUDIO = ("vggish/embedding", "v005")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made"))


@pytest.fixture
def dataset(made, tmp_path):
    shutil.copytree(made.parent, tmp_path / "results")
    return tmp_path / "results" / "small"


def again(dataset, encoder, change=None, shard="00001", **attributes):
    """Write a shard again, with something wrong, and the index over it if it can be made."""
    collection = dataset.parent / "small_videos"
    (collection / "features" / encoder / f"{shard}.h5").unlink()
    return write_shard(collection, encoder, shard, SHARDS[shard], change, **attributes)


def found(dataset):
    return {(f.level, f.check, Path(f.file).parent.name, Path(f.file).name, f.name) for f in verify(dataset).findings}


def with_rows(key, rows, value):
    values = feature(*key)
    values[rows] = value
    return {key: values}


PLANTED = {
    "a number that is not finite": (
        "vggish",
        with_rows(AUDIO, (2, 7), np.inf),
        ("error", "finite", "vggish", "00001.h5", "v005"),
    ),
    "seconds of zeros": (
        "vggish",
        with_rows(AUDIO, slice(1, 3), 0),
        ("error", "zeros", "vggish", "00001.h5", "v005"),
    ),
    "one second of zeros": (
        "clip_vit_b32",
        with_rows(CLS, 2, 0),
        ("error", "zeros", "clip_vit_b32", "00001.h5", "v005"),
    ),
    "patch rows that are one row": (
        "clip_vit_b32",
        {PATCH: np.repeat(feature(*PATCH)[:, :1], 49, axis=1)},
        ("error", "tokens", "clip_vit_b32", "00001.h5", "v005"),
    ),
    "features of length one": (
        "clip_vit_b32",
        {CLS: feature(*CLS) / np.linalg.norm(feature(*CLS).astype("f4"), axis=1, keepdims=True)},
        ("error", "norm", "clip_vit_b32", "00001.h5", "v005"),
    ),
    "a norm beyond the encoder's": (
        "clip_vit_b32",
        {CLS: feature(*CLS) * np.float16(100)},
        ("error", "norm", "clip_vit_b32", "00001.h5", "v005"),
    ),
    "a constant video": (
        "clip_vit_b32",
        {CLS: np.repeat(feature(*CLS)[:1], 6, axis=0)},
        ("warning", "constant", "clip_vit_b32", "00001.h5", "v005"),
    ),
    "the sound of a video in another shard": (
        "vggish",
        {AUDIO: feature("vggish/embedding", "v002")},
        ("warning", "duplicate", "vggish", "00001.h5", "v005"),
    ),
    "another number of seconds in one modality": (
        "vggish",
        {("num_segments", "v005"): 3, **with_rows(AUDIO, slice(3, 6), feature(*AUDIO)[2])},
        ("error", "seconds", "vggish", "00001.h5", "v005"),
    ),
    "another opinion on which video has sound": (
        "vggish",
        {("has_audio", "v005"): False},
        ("error", "seconds", "vggish", "00001.h5", "v005"),
    ),
    "something after the true seconds": (
        "vggish",
        {("vggish/embedding", "v004"): np.concatenate([feature("vggish/embedding", "v004")[:5], np.ones((1, 128))])},
        ("error", "padding", "vggish", "00001.h5", "v004"),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_defect_is_found_and_nothing_else(dataset, name):
    encoder, change, expected = PLANTED[name]
    again(dataset, encoder, change)
    of_index = {("error", "index", "small", "features.h5", expected[-1])}  # where it says what the shard said before
    assert found(dataset) - of_index == {expected}
    assert (of_index <= found(dataset)) == (expected[1] == "seconds")


def test_good_results_have_no_findings(dataset):
    assert found(dataset) == set()
    assert found(dataset / "features.h5") == set()
    assert found(dataset.parent / "small_videos") == set()
    assert found(dataset.parent / "small_videos" / "features" / "vggish" / "00002.h5") == set()


def test_the_padding_and_the_videos_that_failed_or_are_silent_are_no_defects(dataset):
    constant = np.repeat(feature(*AUDIO)[:1], 6, axis=0)
    changes = {}
    for encoder, output in (("vggish", "embedding"), ("clip_vit_b32", "cls"), ("clip_vit_b32", "patch")):
        shape = feature(f"{encoder}/{output}", "v000").shape
        changes[encoder] = changes.get(encoder, {}) | {(f"{encoder}/{output}", "v004"): np.zeros(shape)}
        changes[encoder] |= {("status", "v004"): 1, ("has_audio", "v005"): False, ("has_audio", "v006"): False}
    changes["vggish"] |= {AUDIO: constant, ("vggish/embedding", "v006"): constant}  # of silence, twice
    for encoder, change in changes.items():
        again(dataset, encoder, change)
    make_index(dataset, dataset.parent / "small_videos", list(OUTPUTS), "clip_vit_b32")
    assert found(dataset) == set()


def test_a_flipped_bit_is_found_in_its_row(dataset):
    path = dataset.parent / "small_videos" / "features" / "clip_vit_b32" / "00001.h5"
    content = bytearray(path.read_bytes())
    content[content.index(feature("clip_vit_b32/cls", "v006").tobytes()) + 99] ^= 4
    path.write_bytes(content)
    assert found(dataset) == {("error", "checksum", "clip_vit_b32", "00001.h5", "v006")}


def test_a_file_without_checksums_is_found(dataset):
    path = dataset.parent / "small_videos" / "features" / "vggish" / "00001.h5"
    with h5py.File(path, "a") as file:
        values = file["vggish/embedding"][:]
        del file["vggish/embedding"]
        file["vggish/embedding"] = values
    assert found(dataset) == {("error", "checksum", "vggish", "00001.h5", "")}


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"weights_sha256": "1" * 64}, "provenance"),
        ({"libraries": {"torch": "9.9"}}, "provenance"),
        ({"source": "other"}, "shard"),
    ],
)
def test_a_shard_that_was_made_otherwise_is_found(dataset, change, check):
    again(dataset, "vggish", **change)
    assert found(dataset) == {("error", check, "vggish", "00001.h5", "")}


def test_a_missing_attribute_is_found(dataset):
    with h5py.File(dataset.parent / "small_videos" / "features" / "vggish" / "00001.h5", "a") as file:
        del file.attrs["weights_sha256"]
    assert found(dataset) == {("error", "provenance", "vggish", "00001.h5", "")}


def test_other_shapes_are_found(dataset):
    path = again(dataset, "vggish")
    with h5py.File(path, "a") as file:
        values = file["vggish/embedding"][:]
        del file["vggish/embedding"]
        file.create_dataset("vggish/embedding", data=np.repeat(values, 2, axis=2), fletcher32=True, chunks=True)
    assert ("error", "shape", "vggish", "00001.h5", "") in found(dataset)
    again(dataset, "vggish", seconds=7)
    assert {check for _, check, *_ in found(dataset)} == {"provenance", "seconds", "index"}


FOREIGN = {
    "numbers as ids": ("video_id", np.arange(4)),
    "one id": ("video_id", "v004"),
    "text as a length": ("num_segments", [b"a"] * 4),
    "a table of lengths": ("num_segments", np.ones((4, 3), "int32")),
    "fractions as lengths": ("num_segments", np.full(4, 1.5)),
    "whole numbers as features": ("vggish/embedding", np.ones((4, 8, 128), "int64")),
    "text as features": ("vggish/embedding", np.full((4, 8, 128), b"a")),
    "a broken link": ("vggish/embedding", h5py.SoftLink("/nowhere")),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_laid_out_otherwise_is_a_finding_and_the_others_are_checked(dataset, name, capsys):
    path = dataset.parent / "small_videos" / "features" / "vggish" / "00001.h5"
    again(dataset, "vggish", with_rows(AUDIO, (2, 7), np.inf))
    shutil.copy(path, path.with_name("00002.h5"))
    place, value = FOREIGN[name]
    with h5py.File(path, "a") as file:
        del file[place]
        file[place] = value
    result = verify(path.parent)
    assert {Path(f.file).name for f in result.findings if f.check == "schema"} == {"00001.h5"}
    assert {Path(f.file).name for f in result.findings if f.check == "finite"} == {"00002.h5"}
    if main(["compare", str(path), str(path.with_name("00000.h5"))]):
        assert "00001.h5" in capsys.readouterr().err


def test_a_decoded_video_without_seconds_is_found(dataset):
    path = again(dataset, "vggish")
    with h5py.File(path, "a") as file:
        file["num_segments"][1] = -1
    assert {(f.level, f.check, f.name) for f in verify(path).findings} == {("error", "seconds", "v005")}


def test_attributes_that_are_lists_are_found(dataset):
    path = again(dataset, "vggish")
    with h5py.File(path, "a") as file:
        file.attrs["schema_version"] = [2, 2]
    assert ("error", "schema", "vggish", "00001.h5", "") in found(dataset)


def test_a_truncated_and_a_missing_file_are_found(dataset):
    path = dataset.parent / "small_videos" / "features" / "vggish" / "00001.h5"
    path.write_bytes(path.read_bytes()[:1000])
    assert found(dataset) == {("error", "schema", "vggish", "00001.h5", "")}
    path.unlink()
    assert ("error", "index", "small", "features.h5", "") in found(dataset)


def test_questions_without_video_or_text_are_found(dataset):
    table = pd.concat([questions(VIDEOS), questions(["v777"])], ignore_index=True)
    table.loc[len(table) - 1, "question"] = "Which?"
    table.to_parquet(dataset / "questions.parquet")
    messages = {finding.message for finding in verify(dataset).findings}
    assert messages == {"lacks the video of a question, v777", "lacks the text of a question, 'Which?'"}


def test_wrong_texts_are_found(dataset):
    path = dataset / "text" / "clip_vit_b32.h5"
    texts = questions(VIDEOS)["question"].unique().tolist()
    words = text_feature("words", texts[1])
    path.unlink()
    write_text(dataset, texts, {("words", texts[1]): np.repeat(words[:1], 77, axis=0)})
    assert found(dataset) == {("error", "tokens", "text", "clip_vit_b32.h5", texts[1])}


def test_an_index_of_other_videos_is_found(dataset):
    with h5py.File(dataset / "features.h5", "a") as file:
        file["row"][...] = file["row"][:][::-1]
    assert {(check, name) for _, check, _, name, _ in found(dataset)} == {("index", "features.h5")}


@pytest.mark.parametrize("copied", [False, True])
def test_equal_features_in_all_modalities_are_an_error_unless_the_files_may_be_copies(dataset, copied):
    collection = dataset.parent / "small_videos"
    shard = SHARDS["00001"]
    if copied:  # v005's file is as large as v002's
        tsv = collection / "shards" / "00001.tsv"
        tsv.write_text(tsv.read_text().replace("\t1005\t", "\t1002\t"))
        shard = [video._replace(size=1002) if video.video_id == "v005" else video for video in shard]
    for encoder, outputs in OUTPUTS.items():
        (collection / "features" / encoder / "00001.h5").unlink()
        change = {(f"{encoder}/{o}", "v005"): feature(f"{encoder}/{o}", "v002") for o in outputs}
        write_shard(collection, encoder, "00001", shard, change)
    if copied:
        manifest = json.loads((dataset / "manifest.json").read_text())
        manifest["shards"]["00001"] = digest(shard)
        (dataset / "manifest.json").write_text(json.dumps(manifest))
        make_index(dataset, collection, list(OUTPUTS), "clip_vit_b32")
    level = "warning" if copied else "error"
    assert found(dataset) == {(level, "duplicate", encoder, "00001.h5", "v005") for encoder in OUTPUTS}
    assert len(verify(dataset).findings) == 3  # one per output


def test_the_command_prints_a_table_writes_json_and_ends_in_status_1(dataset, tmp_path, capsys):
    assert main(["verify", str(dataset), "--json", str(tmp_path / "v.json")]) == 0
    again(dataset, "vggish", with_rows(AUDIO, (2, 7), np.nan))
    assert main(["verify", str(dataset), "--json", str(tmp_path / "v.json")]) == 1
    printed = capsys.readouterr()
    assert "error finite" in printed.out and "row 1 (v005)" in printed.out and "run again" in printed.out
    assert "1 errors" in printed.err
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["errors"] == 1 and len(report["files"]) == 7
    (finding,) = report["findings"]
    assert (finding["row"], finding["name"]) == (1, "v005") and finding["remedy"]
    assert main(["verify", str(tmp_path / "nothing")]) == 1


def test_results_of_a_configuration(dataset, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"dataset: small\nresults: {dataset.parent}\nvideos: {{collection: small_videos, folder: {tmp_path}}}\n"
    )
    assert main(["verify", str(path)]) == 0
    (dataset / "features.h5").unlink()
    assert main(["verify", str(path)]) == 1
    make_index(dataset, dataset.parent / "small_videos", list(OUTPUTS), "clip_vit_b32")
    with open_hdf5(dataset / "features.h5", "index"):
        assert main(["verify", str(path)]) == 0


def test_all_data_sets_of_a_configuration_are_checked(dataset, tmp_path, capsys):
    second = dataset.parent / "second"
    shutil.copytree(dataset, second)
    path = tmp_path / "c.yaml"
    common = f"results: {dataset.parent}\nvideos: {{collection: small_videos, folder: {tmp_path}}}\n"
    path.write_text(f"{common}datasets: {{small: {{}}, second: {{}}, not_begun: {{}}}}\n")
    assert main(["verify", str(path)]) == 0
    assert main(["verify", str(dataset)]) == 0
    both, one = (sum(r.kind == "features" for r in verify(p).files) for p in (path, dataset))
    assert both == one, "what two data sets share is read once"
    (second / "text" / "clip_vit_b32.h5").write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["verify", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "second/text/clip_vit_b32.h5: " in printed and "of not_begun there are no results" in printed


def test_segments_are_checked_too(tmp_path, capsys):
    path = tmp_path / "segments.h5"
    specs = {"audio/16000": DatasetSpec((2, 16000), "float32")}
    specs |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    made = {"kind": "segments", "collection": "c", "shard": "0", "source": "s", "config": {}}
    audio = np.zeros((2, 16000), "float32")
    for bad in (False, True):
        path.unlink(missing_ok=True)
        with ShardWriter(path, 2, specs, made, {"video_id": ["a", "b"]}) as writer:
            for n in range(2):
                audio[1, 5] = np.nan if bad and n else 0
                writer.write(n, {"audio/16000": audio, "num_segments": 2, "has_audio": True, "status": 0})
        assert main(["verify", str(path)]) == bad
    assert "error finite" in capsys.readouterr().out


def test_an_index_that_is_older_than_a_shard_of_other_files_is_found(tmp_path):
    """As after another configuration with the same collection and another folder of videos."""
    dataset = make_results(tmp_path)
    collection = dataset.parent / "small_videos"
    moved = [v._replace(path=f"/other/{v.video_id}.mp4") for v in read_shard_list(collection / "shards" / "00001.tsv")]
    write_shard_list(collection / "shards" / "00001.tsv", moved)
    for encoder in ("clip_vit_b32", "vggish"):
        write_shard(collection, encoder, "00001", moved)
    found = verify(dataset)
    assert {(f.check, f.message) for f in found.findings} == {
        ("index", f"was made before 00001.h5 of {encoder} was made from other files")
        for encoder in ("clip_vit_b32", "vggish")
    }


T, D = 4, 128  # seconds and numbers of the files below


def features_file(path, rows, lengths, pad, **attributes):
    """A features file of an encoder that is not in the table; `rows` N, T, D as they are."""
    specs = {"mine/out": DatasetSpec((T, D), "float16")}
    specs |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    made = {"kind": "features", "collection": "c", "shard": "0", "source": "s", "encoder": "mine"}
    made |= {"weights": "w", "weights_sha256": "0", "pretrained": True, "libraries": {}} | attributes
    made["config"] = {"decode": {"segments": T, "pad": pad}}
    path.unlink(missing_ok=True)
    with ShardWriter(path, len(rows), specs, made, {"video_id": [f"v{n}" for n in range(len(rows))]}) as writer:
        for n, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            per_video = {"num_segments": length, "has_audio": True, "status": int(length == 0)}
            writer.write(n, {"mine/out": row} | per_video)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, T), min_size=1, max_size=4),
    pad=st.sampled_from(["repeat", "zero"]),
    imported=st.booleans(),
    data=st.data(),
)
def test_any_number_after_the_true_seconds_is_found_in_its_row(tmp_path, lengths, pad, imported, data):
    """Features as extraction pads them have no finding. One changed number, in a second that models read although it is
    padding, is found: in imported features, whose padding is as published, where it is not finite; and in the row of a
    video that failed."""
    rows = np.random.default_rng(0).normal(size=(len(lengths), T, D)).astype("float16")
    for row, length in zip(rows, lengths, strict=True):
        row[length:] = row[length - 1] if pad == "repeat" and length else 0
    attributes = {"imported": True} if imported else {}
    path = features_file(tmp_path / "f.h5", rows, lengths, pad, **attributes)
    assert [f.check for f in verify(path).findings] == []
    padded = [(n, t) for n, length in enumerate(lengths) for t in range(length, T)]
    if not padded:
        return
    n, t = data.draw(st.sampled_from(padded))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 7.0, 1e-7]))
    rows[n, t, data.draw(st.integers(0, D - 1))] = value
    features_file(path, rows, lengths, pad, **attributes)
    found = {(f.check, f.row) for f in verify(path).findings}
    if imported and lengths[n] and np.isfinite(value):
        assert found == set()
    else:
        assert found == {("padding" if lengths[n] else "failed", n)}


def test_failed_videos_are_counted_and_named(dataset, tmp_path, capsys):
    for encoder, outputs in OUTPUTS.items():
        gone = {(f"{encoder}/{o}", "v004"): np.zeros(feature(f"{encoder}/{o}", "v004").shape) for o in outputs}
        again(
            dataset, encoder, gone | {("status", "v004"): 1, ("num_segments", "v004"): 0, ("has_audio", "v004"): False}
        )
    make_index(dataset, dataset.parent / "small_videos", list(OUTPUTS), "clip_vit_b32")
    assert main(["verify", str(dataset), "--json", str(tmp_path / "v.json")]) == 0
    printed = capsys.readouterr().out
    assert "failed: v004: could not be decoded" in printed and "0 errors, 0 warnings, 1 failed videos" in printed
    report = json.loads((tmp_path / "v.json").read_text())
    assert report["failed"] == ["v004"]
    assert {Path(f["file"]).name for f in report["files"] if f["failed"]} == {"00001.h5"}
    assert sum(file["failed"] for file in report["files"]) == 2


@pytest.mark.parametrize("name", ["status", "num_segments", "has_audio"])
@pytest.mark.parametrize("row", [0, 5, 11])
def test_an_index_that_says_otherwise_than_its_shards_is_found(dataset, name, row):
    with h5py.File(dataset / "features.h5", "a") as file:
        file[name][row] = {"status": 1, "num_segments": 99, "has_audio": False}[name]
    findings = verify(dataset).findings
    assert {(f.check, f.row, f.name) for f in findings} == {("index", row, VIDEOS[row])}
    assert {f.message.split(" is ")[0] for f in findings} == {name} and len(findings) == len(OUTPUTS)


def virtual(dataset, name, mapping):
    """Map rows of a virtual dataset anew: row -> file below the results, dataset, row there."""
    with h5py.File(dataset / "features.h5", "a") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        layout = h5py.VirtualLayout(shape, dtype)
        for row, (path, source, there) in mapping.items():
            of = h5py.VirtualSource(f"../{path}", source, shape=(4, *shape[1:]), dtype=dtype)
            layout[row] = of[there]
        file.create_virtual_dataset(name, layout)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.integers(0, 11), data=st.data())
def test_virtual_rows_of_other_videos_are_found(made, tmp_path_factory, row, data):
    """Each row by itself, as HDF5 allows; then one row of another video, dataset or none."""
    folder = tmp_path_factory.mktemp("virtual")
    shutil.copytree(made.parent, folder / "results")
    dataset, name = folder / "results" / "small", "clip_vit_b32/cls"

    def place(n):
        return (f"small_videos/features/clip_vit_b32/{n // 4:05d}.h5", name, n % 4)

    right = {n: place(n) for n in range(12)}
    virtual(dataset, name, right)
    assert found(dataset) == set()
    other = data.draw(st.sampled_from([n for n in range(12) if n != row]))
    file, _, there = place(row)
    wrong = {
        "other": place(other),
        "file": (f"x/{file}", name, there),
        "dataset": (file, "num_segments", there),
        "none": None,
    }
    kind = data.draw(st.sampled_from(sorted(wrong)))
    changed = {n: place for n, place in (right | {row: wrong[kind]}).items() if place}
    virtual(dataset, name, changed)
    assert {(f.check, f.row, f.name) for f in verify(dataset).findings} == {("index", row, VIDEOS[row])}


def rows_of_shards(dataset, chosen):
    """Map all virtual rows to these rows of the three shards, each shard's by one mapping, as the index does."""
    with h5py.File(dataset / "features.h5", "a") as file:
        name = "clip_vit_b32/cls"
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        layout, begin = h5py.VirtualLayout(shape, dtype), 0
        for number, rows in enumerate(chosen):
            path = f"../small_videos/features/clip_vit_b32/{number:05d}.h5"
            source = h5py.VirtualSource(path, name, shape=(9, *shape[1:]), dtype=dtype)
            layout[begin : begin + len(rows)] = source[rows]
            begin += len(rows)
        file.create_virtual_dataset(name, layout)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=3, max_size=3), st.data())
def test_an_index_over_scattered_rows_of_shards_is_right(tmp_path_factory, chosen, data):
    """Of a data set about some videos of a collection; and one row of its virtual datasets is of another video."""
    dataset = make_results(tmp_path_factory.mktemp("scattered"), 27, 9)
    table = pd.read_parquet(dataset / "questions.parquet")
    kept = [f"v{9 * shard + row:03d}" for shard, rows in enumerate(chosen) for row in sorted(rows)]
    table[table["video_id"].isin(kept)].to_parquet(dataset / "questions.parquet", index=False)
    manifest = json.loads((dataset / "manifest.json").read_text()) | {"videos": len(kept)}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    make_index(dataset, dataset.parent / "small_videos", list(OUTPUTS), "clip_vit_b32")
    assert found(dataset) == set()
    rows = [sorted(rows) for rows in chosen]
    rows_of_shards(dataset, rows)
    assert found(dataset) == set()
    shard = data.draw(st.integers(0, 2))
    if others := sorted(set(range(9)) - chosen[shard]):
        changed = sorted({*rows[shard][1:], data.draw(st.sampled_from(others))})
        wrong = [n for n, (row, other) in enumerate(zip(rows[shard], changed, strict=True)) if row != other]
        rows_of_shards(dataset, [changed if n == shard else listed for n, listed in enumerate(rows)])
        (finding,) = verify(dataset).findings
        assert finding.check == "index" and finding.message.split(" of the")[0] == f"clip_vit_b32/cls: {len(wrong)}"
        assert finding.name == f"v{9 * shard + rows[shard][wrong[0]]:03d}"


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 1, 3]], ids=["all", "scattered"])
def test_virtual_parts_of_rows_and_copies_are_found(dataset, rows):
    with h5py.File(dataset / "features.h5", "a") as file:
        name, words = "clip_vit_b32/cls", file["text/words"][:]
        shape, dtype = file[name].shape, file[name].dtype
        del file[name], file["text/words"]
        layout = h5py.VirtualLayout(shape, dtype)
        source = h5py.VirtualSource("../small_videos/features/clip_vit_b32/00000.h5", name, shape=(4, *shape[1:]))
        layout[: len(rows), 1:] = source[rows, :-1]  # a second late
        file.create_virtual_dataset(name, layout)
        file["text/words"] = words
    messages = {finding.message for finding in verify(dataset).findings}
    assert messages == {"clip_vit_b32/cls maps parts of rows", "text/words is no virtual dataset"}


def test_an_index_with_other_texts_or_lengths_is_found(dataset):
    with h5py.File(dataset / "features.h5", "a") as file:
        file["text/length"][0] = 8
        file["text_clip_vit_b32/text"][0] = "Who?"
    assert {finding.message for finding in verify(dataset).findings} == {
        "the lengths of texts of text are not those of clip_vit_b32.h5",
        "the texts of text_clip_vit_b32 are not those of clip_vit_b32.h5",
    }


@pytest.mark.parametrize("length", [-1, 0, 78, 2**31 - 1])
def test_an_impossible_length_of_a_text_is_found(dataset, length):
    texts = questions(VIDEOS)["question"].unique().tolist()
    (dataset / "text" / "clip_vit_b32.h5").unlink()
    path = write_text(dataset, texts, {("length", texts[1]): length})
    assert {(f.check, f.row, f.name) for f in verify(path).findings} == {("length", 1, texts[1])}
    for possible in (1, 77):
        path.unlink()
        write_text(dataset, texts, {("length", texts[1]): possible})
        assert verify(path).findings == []
