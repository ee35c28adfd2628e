"""Annotations and videos to tables and shards."""

import json
import os

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import AVQAError
from pipeline.manifest import build_manifest, fill_slots, read_annotations
from pipeline.storage.shard_list import read_shard_list


def record(video_id="00000001", answer="yes", **changes):
    return {
        "video_id": video_id,
        "question_id": 7,
        "type": '["Audio-Visual", "Existential"]',
        "question_content": "Is the <Object> in the video always playing?",
        "templ_values": '["violin"]',
        "question_deleted": 0,
        "anser": answer,
        **changes,
    }


@pytest.fixture
def data(tmp_path):
    """A data set of five one-byte 'videos': the manifest looks at files, not into them."""
    (tmp_path / "videos").mkdir()
    for n in range(5):
        (tmp_path / "videos" / f"v{n}.mp4").write_bytes(b"x" * (n + 1))
    splits = {
        "train": [record("v0", "two"), record("v1", "yes"), record("v0", "two")],
        "val": [record("v2", "yes")],
        "test": [record("v3", "no"), record("v4", "two")],
    }
    for name, records in splits.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    return {
        "dataset": "tiny",
        "results": str(tmp_path / "results"),
        "videos": {"folder": str(tmp_path / "videos"), "pattern": "{video_id}.mp4", "follow_links": False},
        "annotations": {name: str(tmp_path / f"{name}.json") for name in splits},
        "allow_missing": False,
        "shard_size": 2,
    }


def shards(config):
    folder = os.path.join(config["results"], config["dataset"], "shards")
    return {name: read_shard_list(os.path.join(folder, name)) for name in sorted(os.listdir(folder))}


def questions(config):
    return pd.read_parquet(os.path.join(config["results"], config["dataset"], "questions.parquet"))


def test_tables_and_shards(data):
    build_manifest(data)
    table = questions(data)
    assert table["question"].unique().tolist() == ["Is the violin in the video always playing?"]
    assert table["answer_id"].tolist() == [0, 1, 0, 1, -1, 0]  # two, yes in order of appearance; no never in training
    assert (table["scenario"].iloc[0], table["type"].iloc[0]) == ("Audio-Visual", "Existential")
    assert {k: [v.video_id for v in s] for k, s in shards(data).items()} == {
        "00000.tsv": ["v0", "v1"],
        "00001.tsv": ["v2", "v3"],
        "00002.tsv": ["v4"],
    }
    assert table["video_row"].tolist() == [0, 1, 0, 2, 3, 4]
    assert shards(data)["00001.tsv"][0].size == 3


def test_new_videos_go_to_the_end_and_a_replaced_one_touches_one_shard(data, tmp_path):
    build_manifest(data)
    folder = tmp_path / "results" / "tiny"
    before = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    (tmp_path / "videos" / "v2.mp4").write_bytes(b"another")
    (tmp_path / "videos" / "a_new_one.mp4").write_bytes(b"x")
    train = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([record("a_new_one"), *train]))
    build_manifest(data)
    assert [v.video_id for s in shards(data).values() for v in s] == ["v0", "v1", "v2", "v3", "v4", "a_new_one"]
    after = {p.name: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    assert {name for name in before if before[name] == after[name]} == {"00000.tsv"}


def test_doing_it_again_changes_no_file(data, tmp_path):
    build_manifest(data)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*")}
    build_manifest(data)
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "results").rglob("*")}


def test_fewer_videos_leave_no_stale_shard(data, tmp_path):
    build_manifest(data)
    (tmp_path / "test.json").write_text(json.dumps([record("v3", "no")]))
    build_manifest(data)
    assert list(shards(data)) == ["00000.tsv", "00001.tsv"]


def test_missing_videos_are_counted_and_can_be_allowed(data, tmp_path):
    (tmp_path / "videos" / "v0.mp4").unlink()
    (tmp_path / "videos" / "v3.mp4").unlink()
    with pytest.raises(AVQAError, match=r"2 videos that 3 questions ask about are missing.*v0, v3.*allow_missing"):
        build_manifest(data)
    build_manifest(data | {"allow_missing": True})
    assert questions(data)["video_id"].tolist() == ["v1", "v2", "v4"]


@pytest.mark.parametrize("video_id", ["../v0", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\nb", "a\x00"])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, video_id):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record(), record(video_id)]))
    with pytest.raises(AVQAError, match=r"train\.json: record 1: video_id"):
        read_annotations(path, "train")


@given(st.text(min_size=1, max_size=12))
def test_no_id_leads_out_of_the_folder(tmp_path_factory, video_id):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps([record(video_id)]))
    try:
        read_annotations(path, "train")
    except AVQAError:
        return
    inside = os.path.normpath(os.path.join("folder", video_id + ".mp4"))
    assert os.path.dirname(inside) == "folder" and "\t" not in video_id


def test_links_out_of_the_folder_and_special_files_are_refused(data, tmp_path):
    target = tmp_path / "secret.mp4"
    target.write_bytes(b"x")
    (tmp_path / "videos" / "v1.mp4").unlink()
    (tmp_path / "videos" / "v1.mp4").symlink_to(target)
    with pytest.raises(AVQAError, match=r"v1\.mp4.*follow_links"):
        build_manifest(data)
    build_manifest(data | {"videos": data["videos"] | {"follow_links": True}})
    (tmp_path / "videos" / "v1.mp4").unlink()
    os.mkfifo(tmp_path / "videos" / "v1.mp4")
    with pytest.raises(AVQAError, match=r"v1\.mp4.*not a regular file"):
        build_manifest(data)


def test_csv_with_the_same_columns_reads_the_same(tmp_path):
    records = [record("00000093"), record("00000094", "no", templ_values='["piano"]')]
    (tmp_path / "a.json").write_text(json.dumps(records))
    pd.DataFrame(records).to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(
        read_annotations(tmp_path / "a.json", "train"), read_annotations(tmp_path / "a.csv", "train")
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"type": "Audio"}, "type"),
        ({"type": '["Audio"]'}, "type"),
        ({"templ_values": "[]"}, "1 slots, templ_values 0"),
        ({"templ_values": '["a", "b"]'}, "1 slots, templ_values 2"),
        ({"templ_values": "[1]"}, "templ_values"),
        ({"question_id": "seven"}, "question_id"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, named):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([record(), record(**changes)]))
    with pytest.raises(AVQAError, match=rf"bad\.json: record 1: .*{named}"):
        read_annotations(path, "train")


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", '[{"video_id": "a"}]', "\x00\xff"])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(AVQAError, match=r"odd\.json"):
        read_annotations(tmp_path / "odd.json", "train")


@given(st.lists(st.tuples(st.text("abc ", max_size=5), st.text("xyz<>", min_size=1, max_size=5)), max_size=4))
def test_slots_are_filled_in_order(pieces):
    template = "Q " + "".join(f"{before}<Slot>" for before, _ in pieces) + "?"
    expected = "Q " + "".join(before + filler for before, filler in pieces) + "?"
    assert fill_slots(template, [filler for _, filler in pieces]) == expected


@pytest.mark.parametrize(
    ("name", "records", "videos", "texts"),
    [
        ("music_avqa_test", 9129, 6399, 1298),
        ("music_avqa_val", 4568, 3815, 893),
        ("music_avqa_train_fake", 6233, 1861, 1092),
        ("music_avqa_test_real", 7402, 5126, 1023),
        ("music_avqa_v2_test_balance", 10819, 7138, 1416),
        ("music_avqa_v2_test_bias", 9119, 6456, 1307),
    ],
)
def test_official_annotations(shared, name, records, videos, texts):
    table = read_annotations(shared / "annotations" / f"{name}.json", "test")
    assert (len(table), table["video_id"].nunique(), table["question"].nunique()) == (records, videos, texts)
    assert not table["question"].str.contains("[<>？]").any()
