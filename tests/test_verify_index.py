"""`avqa verify`: whether features.h5, questions and manifest belong to the files that models read."""

import json
import shutil

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import questions, text_feature, write_text
from test_verify import SHARDS, VIDEOS, again, dataset, found, made  # noqa: F401

from pipeline.errors import AVQAError
from pipeline.storage.features import FeatureIndex
from pipeline.verify import verify


@pytest.mark.parametrize("name", ["weights", "weights_sha256", "config", "libraries"])
@pytest.mark.parametrize("encoder", ["vggish", "text"])
def test_an_index_that_is_older_than_files_made_in_another_way_is_found(dataset, name, encoder):  # noqa: F811
    """All shards of an encoder agree, and reading them through the index is refused."""
    change = {name: {"other": 1} if name in ("config", "libraries") else "1" * 64}
    if name == "config":
        change[name] = {"decode": {"pad": "repeat"}}
    if encoder == "text":
        texts = questions(VIDEOS)["question"].unique().tolist()
        (dataset / "text" / "clip_vit_b32.h5").unlink()
        write_text(dataset, texts, **change)
    else:
        for shard in SHARDS:
            again(dataset, encoder, shard=shard, **change)
    messages = {f.message for f in verify(dataset).findings}
    groups = {"text", "text_clip_vit_b32"} if encoder == "text" else {encoder}
    assert {message.split(" of ")[1].split(" was ")[0] for message in messages} == groups
    assert all(message.endswith(f"in another way: {name} differ") for message in messages)
    feature = "text/sentence" if encoder == "text" else "vggish/embedding"
    with pytest.raises(AVQAError, match=name):
        FeatureIndex(dataset / "features.h5").read(feature, [0])


def map_again(folder, name, dtype="float16", **changes):
    """Make a virtual dataset again, with another type, or `rows` or `seconds` in place of what its files have."""
    with h5py.File(folder / "features.h5", "a") as file:
        rows, *shape = file[name].shape
        del file[name]
        if dtype is None:
            return
        shape[0] = changes.get("seconds", shape[0])
        layout = h5py.VirtualLayout((changes.get("rows", rows), *shape), dtype)
        if name.startswith("text/"):
            layout[:] = h5py.VirtualSource("text/clip_vit_b32.h5", name[5:], (rows, *shape), "float16")
        else:
            for n, shard in enumerate(SHARDS):
                path = f"../small_videos/features/{name.split('/')[0]}/{shard}.h5"
                layout[4 * n : 4 * n + 4] = h5py.VirtualSource(path, name, (4, *shape), "float16")
        file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("name", ["clip_vit_b32/cls", "text/sentence"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", None])
def test_an_index_with_numbers_of_another_type_or_without_an_output_is_found(dataset, name, dtype):  # noqa: F811
    """HDF5 converts what it reads: features would become whole numbers."""
    map_again(dataset, name)
    assert found(dataset) == set()
    map_again(dataset, name, dtype)
    findings = verify(dataset).findings
    word = f"{name} is {dtype}" if dtype in ("int16", "float32") else f"has no {name}"
    assert findings and all(f.check == "index" and f.message.startswith(word) for f in findings)


def test_an_index_with_other_numbers_of_rows_or_seconds_is_found(dataset):  # noqa: F811
    map_again(dataset, "clip_vit_b32/cls", rows=13)
    map_again(dataset, "vggish/embedding", seconds=5)
    messages = {f.message for f in verify(dataset).findings}
    assert "clip_vit_b32/cls has 13 rows, expected 12" in messages
    assert "vggish/embedding is float16 (12, 5, 128), by 00000.h5 it is float16 (12, 6, 128)" in messages


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_answers_with_other_numbers_than_the_manifest_says_are_found(made, tmp_path_factory, data):  # noqa: F811
    results = tmp_path_factory.mktemp("numbers") / "results"
    shutil.copytree(made.parent, results)
    folder = results / "small"
    table = pd.read_parquet(folder / "questions.parquet")
    manifest = json.loads((folder / "manifest.json").read_text())
    answers = manifest["answers"]
    if data.draw(st.booleans(), label="in the table"):
        row = data.draw(st.integers(0, len(table) - 1))
        other = data.draw(st.sampled_from([n for n in range(-1, 4) if n != table.at[row, "answer_id"]]))
        table.loc[row, "answer_id"] = other
        table.to_parquet(folder / "questions.parquet", index=False)
        wrong = 1
    else:
        numbers = data.draw(st.lists(st.sampled_from([*answers, "maybe"]), unique=True).filter(lambda x: x != answers))
        (folder / "manifest.json").write_text(json.dumps(manifest | {"answers": numbers}))
        place = {answer: n for n, answer in enumerate(numbers)}
        wrong = sum(place.get(answer, -1) != answers.index(answer) for answer in table["answer"])
    findings = verify(folder).findings
    expected = f"numbers {wrong} questions' answers otherwise than questions.parquet"
    assert [f.message.split(", as")[0] for f in findings] == ([expected] if wrong else [])


def test_a_manifest_that_is_damaged_or_missing_is_found(dataset):  # noqa: F811
    for damage in (b'{"answers": ["yes', b"{}", None):
        (dataset / "manifest.json").write_bytes(damage or b"")
        if damage is None:
            (dataset / "manifest.json").unlink()
        assert found(dataset) == {("error", "questions", "small", "manifest.json", "")}


def test_an_imported_shard_among_extracted_ones_is_found(dataset):  # noqa: F811
    """Of what is imported, the padding is as published and is not checked."""
    again(dataset, "vggish", imported=True)
    assert found(dataset) == {("error", "provenance", "vggish", "00001.h5", "")}


@pytest.mark.parametrize("outputs", [("sentence",), ("words",), ("words", "sentence")])
@pytest.mark.parametrize("other", ["Is it  LOUD?", "Is it loud? ", "Is it quiet?"])
def test_texts_with_the_features_of_others_are_named(tmp_path, outputs, other):
    """But for those that differ in case and white space only, as encoders read them."""
    texts = ["Is it loud?", "Who plays?", other]
    same = {(output, other): text_feature(output, texts[0]) for output in outputs}
    findings = verify(write_text(tmp_path, texts, same)).findings
    expected = [] if other != "Is it quiet?" else [("warning", "duplicate", 2, other)] * len(outputs)
    assert [(f.level, f.check, f.row, f.name) for f in findings] == expected
    assert all("row 0, 'Is it loud?'" in f.message for f in findings)


FOREIGN = {
    "numbers": np.arange(12),
    "one text": "x",
    "equal texts": [b"a"] * 12,
    "bytes that are no text": [b"\xff\xfe"] * 3,
    "one number": 1.0,
    "nothing": np.zeros(0),
    "a table": np.ones((12, 3)),
    "fractions": np.full(12, 1.5),
    "too few": np.arange(3, dtype="int32"),
    "too large": np.array([2**40] * 12),
    "a broken link": h5py.SoftLink("/nowhere"),
    "a group": None,
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), foreign=st.sampled_from(sorted(FOREIGN)))
def test_an_index_that_is_laid_out_otherwise_is_a_finding(made, tmp_path_factory, data, foreign):  # noqa: F811
    results = tmp_path_factory.mktemp("foreign") / "results"
    shutil.copytree(made.parent, results)
    with h5py.File(results / "small" / "features.h5", "a") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name = data.draw(st.sampled_from(names))
        del file[name]
        if FOREIGN[foreign] is None:
            file.create_group(name)
        elif not (name.endswith("/sources") and foreign == "a broken link"):  # an earlier version had none
            file[name] = FOREIGN[foreign]
        else:
            return
    findings = verify(results / "small").findings
    assert findings and all(f.level == "error" and f.check in ("index", "questions") for f in findings)
