"""The index over shards, and reading features through it."""

import json
import os
import resource
import shutil
from contextlib import contextmanager

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import make_index, make_results, text_feature, write_statuses, write_text

from pipeline.errors import AVQAError
from pipeline.index import gather_failures
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.features import OPEN_FILES, FeatureIndex
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, read_shard_list, write_shard_list

PROVENANCE = {"encoder": "enc", "weights": "w", "weights_sha256": "0", "pretrained": False, "config": {}}
TEXTS = ["How many?", "Where?"]


def value(shard, row):
    return np.full((3, 4), 100 * shard + row, "float16") + np.arange(12, dtype="float16").reshape(3, 4) / 16


def write_features(path, shard, ids, outputs=("cls",), row=value, **changes):
    datasets = {f"enc/{name}": DatasetSpec((3, 4), "float16") for name in outputs}
    datasets |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    source = digest([Video(name, f"{name}.mp4", 1, 1) for name in ids])
    attributes = {"kind": "features", "shard": f"{shard:05d}", "source": source} | PROVENANCE | changes
    with ShardWriter(path, len(ids), datasets, attributes, {"video_id": ids}) as writer:
        per_video = {"num_segments": np.full(len(ids), 3), "has_audio": np.ones(len(ids)), "status": np.zeros(len(ids))}
        numbers = np.stack([row(shard, n) for n in range(len(ids))])
        writer.write(slice(0, len(ids)), {f"enc/{name}": numbers for name in outputs} | per_video)


def make(tmp_path, shards, wanted=None, per_shard=3, texts=TEXTS):
    """A collection of so many shards, and a data set about the `wanted` videos (default: all)."""
    dataset, collection = tmp_path / "dataset", tmp_path / "collection"
    ids = {s: [f"v{s}-{n}" for n in range(per_shard)] for s in range(shards)}
    sources = {}
    for s, names in ids.items():
        listed = [Video(name, f"{name}.mp4", 1, 1) for name in names]
        write_shard_list(collection / "shards" / f"{s:05d}.tsv", listed)
        write_features(collection / "features" / "enc" / f"{s:05d}.h5", s, names)
        sources[f"{s:05d}"] = digest(listed)
        (collection / "failures").mkdir(exist_ok=True)
        (collection / "failures" / f"{s:05d}.tsv").write_text("video_id\tstage\treason\tseconds\n")
    wanted = wanted or [name for names in ids.values() for name in names]
    dataset.mkdir()
    kind = {"split": "test", "part": None, "scenario": "Audio", "type": "Counting", "file": "test.json"}
    pd.DataFrame({"video_id": wanted}).assign(**kind).to_parquet(dataset / "questions.parquet")
    (dataset / "absent.tsv").write_text("video_id\treason\tfile\tsplit\tpart\tscenario\ttype\tquestions\n")
    needed = [s for s, names in ids.items() if set(names) & set(wanted)]
    manifest = {"videos": len(wanted), "shards": {f"{s:05d}": sources[f"{s:05d}"] for s in needed}}
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    specs = {"words": DatasetSpec((5, 4), "float16"), "sentence": DatasetSpec((4,), "float16")}
    specs["length"] = DatasetSpec((), "int32")
    attributes = {"kind": "text", "shard": ""} | PROVENANCE
    with ShardWriter(dataset / "text" / "enc.h5", len(texts), specs, attributes, {"text": texts}) as writer:
        numbers = np.arange(len(texts)) % 2048  # exact in float16
        rows = {"words": numbers[:, None, None].repeat(20, 1), "sentence": numbers[:, None].repeat(4, 1)}
        writer.write(slice(0, len(texts)), rows | {"length": np.full(len(texts), 2)})
    return dataset, collection


@contextmanager
def open_files_limited_to(number):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def expected(index, rows):
    return np.stack([value(*map(int, index.video_id[row][1:].split("-"))) for row in rows])


def test_more_shards_than_files_may_be_open(tmp_path):
    dataset, collection = make(tmp_path, 90)
    make_index(dataset, collection, ["enc"], "enc")
    already = len(os.listdir("/proc/self/fd"))
    with open_files_limited_to(already + OPEN_FILES + 10):
        index = FeatureIndex(dataset / "features.h5")
        np.testing.assert_array_equal(index.read("enc/cls"), expected(index, range(270)))
        rows = np.random.default_rng(0).permutation(270)
        np.testing.assert_array_equal(index.read("enc/cls", rows), expected(index, rows))
        index.close()
    assert len(os.listdir("/proc/self/fd")) == already


def test_as_many_videos_and_texts_as_the_largest_data_sets_have(tmp_path):
    texts = [
        f"{n}: which of the two instruments makes the sound first, and how long does it last?" for n in range(60_000)
    ]
    dataset, collection = make(tmp_path, shards=2, per_shard=30_000, texts=texts)
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    assert list(index.texts) == texts
    assert len(index.video_id) == 60_000 and index.video_id[-1] == "v1-29999"
    np.testing.assert_array_equal(index.read("enc/cls", [59_999]), expected(index, [59_999]))
    assert (index.read("text/sentence", [2047]) == 2047).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sets(st.integers(0, 8), min_size=1), min_size=1, max_size=4), st.randoms())
def test_any_rows_of_a_shard_are_one_mapping_of_the_index(tmp_path_factory, chosen, random):
    """As of a data set about every other video of a collection: 28,000 mappings took 13 s for each output. Any HDF5
    reader gets the same through them as this project does from the shards."""
    wanted = [f"v{s}-{n}" for s, rows in enumerate(chosen) for n in rows]
    random.shuffle(wanted)
    dataset, collection = make(tmp_path_factory.mktemp("rows"), len(chosen), wanted, per_shard=9)
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    assert list(index.video_id) == [f"v{s}-{n}" for s, rows in enumerate(chosen) for n in sorted(rows)]
    whole = expected(index, range(len(wanted)))
    np.testing.assert_array_equal(index.read("enc/cls"), whole)
    assert index.num_segments.tolist() == [3] * len(wanted) and index.has_audio.all() and not index.status.any()
    with h5py.File(dataset / "features.h5") as file:
        virtual = file["enc/cls"]
        assert len(virtual.virtual_sources()) == len(chosen)
        np.testing.assert_array_equal(virtual[:], whole)
        begin, end = sorted(random.choices(range(len(wanted) + 1), k=2))
        np.testing.assert_array_equal(virtual[begin:end, 1:], whole[begin:end, 1:])


def test_more_shards_than_an_attribute_holds_texts(tmp_path):
    """One shard per video, each a copy of the first with its own id and source: made in seconds, not in minutes."""
    count, (dataset, collection) = 4200, make(tmp_path, shards=1, per_shard=1)
    first, sources = collection / "features" / "enc" / "00000.h5", {}
    for n in range(count):
        name, listed = f"{n:05d}", [Video(f"v{n}-0", f"v{n}-0.mp4", 1, 1)]
        write_shard_list(collection / "shards" / f"{name}.tsv", listed)
        sources[name] = digest(listed)
        if n:
            shutil.copy(first, first.with_name(f"{name}.h5"))
            with h5py.File(first.with_name(f"{name}.h5"), "r+") as file:
                file.attrs["source"], file["video_id"][0] = sources[name], f"v{n}-0"
    pd.DataFrame({"video_id": [f"v{n}-0" for n in range(count)]}).to_parquet(dataset / "questions.parquet")
    (dataset / "manifest.json").write_text(json.dumps({"videos": count, "shards": sources}))
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    assert [path.name for path in index.files["enc"]] == [f"{n:05d}.h5" for n in range(count)]
    np.testing.assert_array_equal(index.read("enc/cls", [count - 1])[0], value(0, 0))
    assert index.video_id[-1] == f"v{count - 1}-0"


def test_an_index_of_an_earlier_version_with_its_lists_as_attributes(tmp_path):
    dataset, collection = make(tmp_path, shards=2)
    make_index(dataset, collection, ["enc"], "enc")
    with h5py.File(dataset / "features.h5", "r+") as file:
        for group in (item for item in file.values() if isinstance(item, h5py.Group)):
            for name in {"files", "sources"} & set(group):
                group.attrs[name] = group[name].asstr()[:].tolist()
                del group[name]
    index = FeatureIndex(dataset / "features.h5")
    np.testing.assert_array_equal(index.read("enc/cls", [5]), expected(index, [5]))
    assert (index.read("text/sentence", [1]) == 1).all()


def test_a_file_that_cannot_be_opened_is_an_error_and_not_a_number(tmp_path):
    dataset, collection = make(tmp_path, 8)
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    with (
        open_files_limited_to(len(os.listdir("/proc/self/fd")) + 1),
        pytest.raises(AVQAError, match=r"\.h5: cannot be read.*Too many open files"),
    ):
        index.read("enc/cls")


@pytest.mark.parametrize("shards", [1, 3])
def test_a_data_set_about_some_of_the_videos(tmp_path, shards):
    wanted = [f"v{s}-{n}" for s in range(shards) for n in (4, 0, 2)]
    dataset, collection = make(tmp_path, 4, wanted, per_shard=5)
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    assert list(index.video_id) == [f"v{s}-{n}" for s in range(shards) for n in (0, 2, 4)]
    rows = np.arange(len(wanted))
    np.testing.assert_array_equal(index.read("enc/cls", rows[::-1]), expected(index, rows[::-1]))
    np.testing.assert_array_equal(index.read("text/words", [1, 0, 1])[:, 0, 0], [1, 0, 1])
    with h5py.File(dataset / "features.h5") as file:  # any HDF5 reader sees the same
        np.testing.assert_array_equal(file["enc/cls"][:], expected(index, rows))
        assert list(file["video_id"].asstr()[:]) == list(index.video_id)
    os.rename(tmp_path / "dataset", tmp_path / "elsewhere")
    np.testing.assert_array_equal(
        FeatureIndex(tmp_path / "elsewhere" / "features.h5").read("enc/cls", [0])[0], value(0, 0)
    )


def test_numbers_that_are_not_finite_are_an_error(tmp_path):
    dataset, collection = make(tmp_path, 2)
    path = collection / "features" / "enc" / "00001.h5"
    path.unlink()
    write_features(path, 1, ["v1-0", "v1-1", "v1-2"], row=lambda s, n: value(s, n) * (np.nan if n == 1 else 1))
    make_index(dataset, collection, ["enc"], "enc")
    index = FeatureIndex(dataset / "features.h5")
    index.read("enc/cls", [0, 3, 5])
    with pytest.raises(AVQAError, match=r"00001\.h5: enc/cls of video v1-1 is not finite"):
        index.read("enc/cls", [5, 4, 3])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights_sha256": "1"}, "weights_sha256"),
        ({"libraries": "torch 9"}, "libraries"),
    ],
)
def test_a_mixture_is_refused(tmp_path, changes, named):
    dataset, collection = make(tmp_path, 3)
    path = collection / "features" / "enc" / "00002.h5"
    path.unlink()
    write_features(path, 2, ["v2-0", "v2-1", "v2-2"], **changes)
    with pytest.raises(AVQAError, match=rf"00002\.h5: {named} differ from .*00000\.h5"):
        make_index(dataset, collection, ["enc"], "enc")


def test_shards_of_other_videos_and_lost_shards_are_refused(tmp_path):
    dataset, collection = make(tmp_path, 2)
    make_index(dataset, collection, ["enc"], "enc")
    path = collection / "features" / "enc" / "00001.h5"
    path.unlink()
    with pytest.raises(AVQAError, match=r"1 of its shards are missing, as .*00001\.h5"):
        FeatureIndex(dataset / "features.h5")
    write_features(path, 1, ["v1-0", "v1-2", "v1-1"])
    with pytest.raises(AVQAError, match=r"00001\.h5: its videos are not those of its shard list"):
        make_index(dataset, collection, ["enc"], "enc")
    pd.DataFrame({"video_id": ["v0-0", "new"]}).to_parquet(dataset / "questions.parquet")
    with pytest.raises(AVQAError, match="1 videos are in no shard, as new"):
        make_index(dataset, collection, ["enc"], "enc")


def test_damage_is_found_and_named(tmp_path):
    dataset, collection = make(tmp_path, 3)
    make_index(dataset, collection, ["enc"], "enc")
    path = collection / "features" / "enc" / "00001.h5"
    content = bytearray(path.read_bytes())
    at = content.index(value(1, 2).tobytes())
    content[at + 3] ^= 64
    path.write_bytes(content)
    with pytest.raises(AVQAError, match=r"00001\.h5: cannot be read"):
        FeatureIndex(dataset / "features.h5").read("enc/cls")


def test_too_many_failures_are_an_error_but_removed_files_do_not_count(tmp_path):
    dataset, collection = make(tmp_path, 2)
    write_statuses(dataset, {f"v{n}-{m}": int((n, m) in ((1, 0), (1, 2))) for n in range(2) for m in range(3)})
    tables = collection / "failures" / "key"
    tables.mkdir(parents=True)
    (tables / "00001.tsv").write_text(
        "video_id\tstage\treason\tseconds\nv1-0\tdecode\tpyav: is empty\t0.1\nv1-2\tdecode\tpyav: is gone\t0.1\n"
    )
    with pytest.raises(AVQAError, match=r"failures\.tsv: 2 of 6 videos failed, more than max_failed_fraction"):
        gather_failures(dataset, collection, tables, 0.2)
    assert (dataset / "too_many_failures.tsv").read_text().count("\n") == 3 and not (dataset / "failures.tsv").exists()
    ledger = pd.read_csv(dataset / "missing.tsv", sep="\t")
    assert ledger[["video_id", "reason", "questions"]].to_numpy().tolist() == [
        ["v1-0", "failed", 1],
        ["v1-2", "failed", 1],
    ]
    write_shard_list(
        collection / "shards" / "00001.tsv",
        [Video("v1-0", "a", 1, 1), Video("v1-1", "b", 1, 1), Video("v1-2", "c", 0, 0, gone=True)],
    )
    gather_failures(dataset, collection, tables, 0.2)
    assert pd.read_csv(dataset / "failures.tsv", sep="\t")["video_id"].tolist() == ["v1-0"]
    gather_failures(dataset, collection, tables, 0.0)  # one video alone never stops a run


def test_an_index_over_fewer_videos_or_shards_than_the_manifest_says_is_refused(tmp_path):
    dataset, collection = make(tmp_path, 3)
    whole = (dataset / "questions.parquet").read_bytes()
    pd.read_parquet(dataset / "questions.parquet").iloc[1:].to_parquet(dataset / "questions.parquet")
    with pytest.raises(AVQAError, match=r"is about 8 videos, manifest\.json says 9"):
        make_index(dataset, collection, ["enc"], "enc")
    (dataset / "questions.parquet").write_bytes(whole)
    (collection / "features" / "enc" / "00002.h5").unlink()
    with pytest.raises(AVQAError, match=r"00002\.h5: no such file"):
        make_index(dataset, collection, ["enc"], "enc")


def test_an_index_over_features_of_another_version_of_a_video_is_refused(tmp_path):
    dataset, collection = make(tmp_path, 2)
    listed = read_shard_list(collection / "shards" / "00001.tsv")
    write_shard_list(collection / "shards" / "00001.tsv", [listed[0]._replace(size=7), *listed[1:]])
    with pytest.raises(AVQAError, match=r"00001\.h5: was made from other files than its shard list says"):
        make_index(dataset, collection, ["enc"], "enc")


@pytest.mark.parametrize("changed", [{"source": "of other videos"}, {"weights": "other"}, {"config": "{}"}])
def test_a_shard_that_was_made_again_is_not_read_for_the_old_one(tmp_path, changed):
    dataset = make_results(tmp_path)
    path = dataset.parent / "small_videos" / "features" / "vggish" / "00001.h5"
    with h5py.File(path, "r+") as file:
        file.attrs.update(changed)
    index = FeatureIndex(dataset / "features.h5")
    assert index.read("vggish/embedding", [0]).shape[0] == 1, "of another shard"
    assert index.read("clip_vit_b32/cls", [4]).shape[0] == 1, "of another encoder"
    with pytest.raises(AVQAError, match=rf"00001.h5: was made again since .*: {next(iter(changed))} differ; run the"):
        index.read("vggish/embedding", [4])
    index.close()


def test_texts_that_were_encoded_again_in_another_order_are_not_read_for_the_old_ones(tmp_path):
    dataset = make_results(tmp_path)
    index = FeatureIndex(dataset / "features.h5")
    (dataset / "text" / "clip_vit_b32.h5").unlink()
    write_text(dataset, list(index.texts[::-1]))
    with pytest.raises(AVQAError, match=r"clip_vit_b32.h5: was made again since .*: texts differ; run the workflow"):
        index.read("text/sentence", [0])
    (dataset / "text" / "clip_vit_b32.h5").unlink()
    write_text(dataset, list(index.texts))
    np.testing.assert_array_equal(index.read("text/sentence", [0])[0], text_feature("sentence", index.texts[0]))
    index.close()
