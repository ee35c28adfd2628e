"""Annotations and videos to tables and shards."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from made_results import write_statuses
from media.oracle import VIDEO, X264, clip

from extractors import FrameInput
from pipeline.config import videos_fingerprint
from pipeline.decode import decode_shard
from pipeline.errors import AVQAError
from pipeline.index import gather_failures
from pipeline.manifest import build_manifest, read_manifest
from pipeline.plan import count_videos
from pipeline.storage.shard_list import Video, digest, read_shard_list


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
        "format": "music_avqa",
        "videos": {
            "collection": "clips",
            "folder": str(tmp_path / "videos"),
            "pattern": "{video_id}.mp4",
            "follow_links": False,
        },
        "annotations": {name: str(tmp_path / f"{name}.json") for name in splits},
        "allow_missing": False,
        "shard_size": 2,
    }


def shards(config):
    """The lists of a collection as they are now, by the shard's number; a list's name ends in its digest."""
    collection = Path(config["results"], config["videos"]["collection"])
    table, lists = pd.read_parquet(collection / "videos.parquet"), {}
    for path in sorted((collection / "shards").glob("*.tsv")):
        videos, (number, digits) = read_shard_list(path), path.stem.split("-")
        assert digest(videos).startswith(digits)
        rows = table[table["shard"] == int(number)].sort_values("row")[list(Video._fields)]
        if [tuple(row) for row in rows.itertuples(index=False)] == videos:
            lists[number] = videos
    return lists


def shards_of(dataset):
    """The numbers of the shards of a data set."""
    return [name.split("-")[0] for name in read_manifest(dataset)["shards"]]


def questions(config):
    return pd.read_parquet(os.path.join(config["results"], config["dataset"], "questions.parquet"))


def test_tables_and_shards(data):
    build_manifest(data)
    table = questions(data)
    assert table["question"].unique().tolist() == ["Is the violin in the video always playing?"]
    assert table["answer_id"].tolist() == [0, 1, 0, 1, -1, 0]  # two, yes in order of appearance; no never in training
    assert (table["scenario"].iloc[0], table["type"].iloc[0]) == ("Audio-Visual", "Existential")
    assert {k: [v.video_id for v in s] for k, s in shards(data).items()} == {
        "00000": ["v0", "v1"],
        "00001": ["v2", "v3"],
        "00002": ["v4"],
    }
    assert shards(data)["00001"][0].size == 3


def test_new_videos_go_to_the_end_and_a_replaced_one_touches_one_shard(data, tmp_path):
    build_manifest(data)
    folder = tmp_path / "results" / "clips" / "shards"
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (tmp_path / "videos" / "v2.mp4").write_bytes(b"another")
    (tmp_path / "videos" / "a_new_one.mp4").write_bytes(b"x")
    train = json.loads((tmp_path / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps([record("a_new_one"), *train]))
    build_manifest(data)
    assert [[v.video_id for v in s] for s in shards(data).values()] == [
        ["v0", "v1"],
        ["v2", "v3"],
        ["v4"],
        ["a_new_one"],
    ]
    after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert {name: after[name] for name in before} == before, "a list never changes"
    assert sorted(name.split("-")[0] for name in after.keys() - before.keys()) == ["00001", "00003"]
    assert shards_of(tmp_path / "results" / "tiny") == ["00000", "00001", "00002", "00003"]


def test_doing_it_again_changes_no_file(data, tmp_path):
    build_manifest(data)
    state = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "results").rglob("*.*")
        if p.name not in ("manifest.json", "absent.tsv")
    }
    build_manifest(data)
    assert state == {p: p.stat().st_mtime_ns for p in state}


def test_fewer_questions_move_no_video(data, tmp_path):
    build_manifest(data)
    before = shards(data)
    (tmp_path / "test.json").write_text(json.dumps([record("v3", "no")]))
    build_manifest(data)
    assert shards(data) == before
    assert shards_of(tmp_path / "results" / "tiny") == ["00000", "00001"]


def test_a_removed_video_leaves_a_hole(data, tmp_path):
    build_manifest(data)
    before = shards(data)
    (tmp_path / "videos" / "v2.mp4").unlink()
    build_manifest(data | {"allow_missing": True})
    after = shards(data)
    assert after["00001"][0].gone and after["00001"][0].video_id == "v2"
    assert [name for name in before if before[name] != after[name]] == ["00001"]
    assert "v2" not in questions(data)["video_id"].tolist()


def test_data_sets_of_one_collection_share_its_shards(data, tmp_path):
    build_manifest(data)
    before = shards(data)
    (tmp_path / "videos" / "extra.mp4").write_bytes(b"x")
    for split, records in {"train": [record("v3"), record("extra")], "test": [record("v0")]}.items():
        (tmp_path / f"other-{split}.json").write_text(json.dumps(records))
    annotations = {split: str(tmp_path / f"other-{split}.json") for split in ("train", "test")}
    build_manifest(data | {"dataset": "other", "annotations": annotations})
    assert {name: s for name, s in shards(data).items() if name in before} == before
    assert [v.video_id for v in shards(data)["00003"]] == ["extra"]
    assert shards_of(tmp_path / "results" / "other") == ["00000", "00001", "00003"]
    (tmp_path / "videos" / "extra.mp4").unlink()
    build_manifest(data)  # looks after all videos of the collection, not only after its own
    assert shards(data)["00003"][0].gone


@pytest.mark.parametrize("video_id", ['"quoted', 'a"b', "'", "vidéo", "a b", "#", "\u2028x"])
def test_any_plain_file_name_is_an_id(data, tmp_path, video_id):
    (tmp_path / "videos" / f"{video_id}.mp4").write_bytes(b"x")
    (tmp_path / "test.json").write_text(json.dumps([record(video_id)]))
    build_manifest(data)
    assert video_id in [v.video_id for s in shards(data).values() for v in s]
    build_manifest(data)


def test_ids_that_are_used_twice_are_counted(data, tmp_path, caplog):
    with caplog.at_level("WARNING"):
        build_manifest(data)
    assert "3 questions have a question_id" in caplog.text


def test_missing_videos_are_counted_and_can_be_allowed(data, tmp_path):
    (tmp_path / "videos" / "v0.mp4").unlink()
    (tmp_path / "videos" / "v3.mp4").unlink()
    with pytest.raises(AVQAError, match=r"2 videos that 3 questions need are missing.*v0, v3.*allow_missing"):
        build_manifest(data)
    build_manifest(data | {"allow_missing": True})
    assert questions(data)["video_id"].tolist() == ["v1", "v2", "v4"]


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("why", ["file", "ids", "videos", "names"])
def test_a_split_that_training_needs_and_that_has_no_questions_is_named_at_once(data, tmp_path, why, split):
    """Not after hours of extraction and training. A data set that is only scored needs the test split alone."""
    kept = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "val", "test")}
    (tmp_path / "all.csv").write_text(
        "video_id,question,answer,split\n"
        + "".join(f"{r['video_id']},Is it?,{r['anser']},{s}\n" for s in kept for r in kept[s] if s != split)
    )
    named, changes = "all.csv", {"annotations": str(tmp_path / "all.csv"), "format": "plain"}
    if why == "ids":
        ids = "|".join({r["video_id"] for s in kept for r in kept[s] if s != split})
        named, changes = f"{split}.json", {"video_ids": ids}
    if why == "videos":
        for r in kept[split]:
            (tmp_path / "videos" / f"{r['video_id']}.mp4").unlink(missing_ok=True)
        named, changes = "videos", {"allow_missing": True}
    if why == "names":
        changes = {"annotations": {s: path for s, path in data["annotations"].items() if s != split}}
        named = "annotations"
    with pytest.raises(AVQAError, match=rf"{named}: .*split {split}.*training needs the splits train, val and test"):
        build_manifest(data | changes | {"trained_on": ["tiny"]})
    assert not (tmp_path / "results").exists()
    if split == "test":
        with pytest.raises(AVQAError, match=r"split test.*scoring needs the split test"):
            build_manifest(data | changes | {"trained_on": ["other"]})
    else:
        build_manifest(data | changes | {"trained_on": ["other"]})
    build_manifest(data | changes | {"trained_on": []})  # its features alone are wanted


def with_audio(data, tmp_path, **changes):
    """Audio files for all videos, in a folder of their own."""
    for n in range(5):
        path = tmp_path / "videos" / "audio" / f"v{n}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"a" * (10 + n))
    return data | {"videos": data["videos"] | {"audio_pattern": "audio/{video_id}.wav"} | changes}


@pytest.mark.parametrize("alone", [False, True])
def test_a_replaced_audio_file_makes_its_shard_due(data, tmp_path, alone):
    config = with_audio(data, tmp_path, **({"pattern": None} if alone else {}))
    build_manifest(config)
    before = shards(config)
    first = before["00000"][0]
    assert (first.audio_path, first.audio_size) == (str(tmp_path / "videos" / "audio" / "v0.wav"), 10)
    assert bool(first.path) is not alone and not first.gone
    fingerprint = videos_fingerprint(config["videos"])
    os.utime(tmp_path / "videos" / "audio" / "v2.wav")
    assert videos_fingerprint(config["videos"]) != fingerprint
    build_manifest(config)
    after = shards(config)
    assert [name for name in after if after[name] != before[name]] == ["00001"]
    assert digest(after["00001"]) != digest(before["00001"])
    (tmp_path / "videos" / "audio" / "v3.wav").unlink()
    with pytest.raises(AVQAError, match=r"1 videos that 1 questions need .* or lack their audio file.*v3"):
        build_manifest(config)
    build_manifest(config | {"allow_missing": True})
    assert [v.video_id for s in shards(config).values() for v in s if v.gone] == ["v3"]


def test_lists_without_audio_files_stay_as_they_were(data, tmp_path):
    """Otherwise all features of an older version would be made again."""
    build_manifest(data)
    (path,) = (tmp_path / "results" / "clips" / "shards").glob("00002-*.tsv")
    lines = path.read_text().splitlines()
    assert lines[0].split("\t") == ["video_id", "path", "size", "mtime_ns"] and len(lines[1].split("\t")) == 4
    known = hashlib.sha256(lines[1].encode()).hexdigest()
    assert digest(shards(data)["00002"]) == known


def test_audio_files_stay_within_the_folder(data, tmp_path):
    config = with_audio(data, tmp_path)
    (tmp_path / "secret.wav").write_bytes(b"x")
    path = tmp_path / "videos" / "audio" / "v1.wav"
    path.unlink()
    path.symlink_to(tmp_path / "secret.wav")
    with pytest.raises(AVQAError, match=r"v1\.wav.*follow_links"):
        build_manifest(config)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(AVQAError, match=r"v1\.wav.*not a regular file"):
        build_manifest(config)


@pytest.mark.parametrize("target", ["nowhere.mp4", "v1.mp4"])
def test_a_link_that_leads_nowhere_is_a_missing_video(data, tmp_path, target):
    """To a file that is not there, or to itself."""
    path = tmp_path / "videos" / "v1.mp4"
    path.unlink()
    path.symlink_to(tmp_path / "videos" / target)
    assert videos_fingerprint(data["videos"])
    with pytest.raises(AVQAError, match=r"1 videos that 1 questions need are missing.*v1.*allow_missing"):
        build_manifest(data)
    build_manifest(data | {"allow_missing": True})
    assert "v1" not in questions(data)["video_id"].tolist()


@pytest.mark.parametrize(("pattern", "counts"), [("{video_id}.mp4", False), ("a/{video_id}/clip.mp4", True)])
def test_the_fingerprint_sees_subfolders_that_the_pattern_names(data, tmp_path, pattern, counts):
    videos = data["videos"] | {"pattern": pattern}
    inner = tmp_path / "videos" / "a" / "v0" / "clip.mp4"
    seen = [videos_fingerprint(videos)]
    inner.parent.mkdir(parents=True)
    for content in ("x", "another"):  # appears, is replaced
        inner.write_text(content)
        seen.append(videos_fingerprint(videos))
    inner.unlink()
    seen.append(videos_fingerprint(videos))
    assert len(set(seen)) == (3 if counts else 1) and seen[0] == seen[-1]


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


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_damaged_tables_are_written_again(data, damage):
    build_manifest(data)
    tables = [os.path.join(data["results"], name) for name in ("tiny/questions.parquet", "clips/videos.parquet")]
    whole = [pd.read_parquet(path) for path in tables]
    for path in map(Path, tables):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(AVQAError, match=r"questions\.parquet: cannot be read .*`avqa manifest` writes it again"):
        count_videos(data)
    build_manifest(data)
    for path, table in zip(tables, whole, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(path), table)


@pytest.mark.parametrize("content", [b"x", b""])
def test_a_file_system_without_times_hides_no_failure(data, tmp_path, content):
    """SquashFS and object stores may say that all files are of 1970."""
    clip(tmp_path / "videos" / "v0.mp4", *VIDEO, *X264)
    (tmp_path / "videos" / "v1.mp4").write_bytes(content)
    for path in (tmp_path / "videos").iterdir():
        os.utime(path, ns=(0, 0))
    config = data | {"shard_size": 8}
    build_manifest(config)
    listed = shards(config)["00000"]
    assert not any(video.gone for video in listed)
    collection = Path(config["results"]) / "clips"
    inputs, failures = [FrameInput(16)], collection / "failures" / "key" / "00000.tsv"
    failures.parent.mkdir(parents=True)
    options = {"segments": 1, "backend": "pyav", "pad": "repeat", "frame_at": 0.5, "frame_selection": "exact"}
    options |= {"inputs": inputs, "collection": "clips", "shard": "00000", "selective": True, "workers": 1}
    decode_shard(listed, tmp_path / "s.h5", failures=failures, **options)
    dataset = Path(config["results"]) / "tiny"
    (path,) = (collection / "shards").glob("*.tsv")
    failures.rename(failures.with_name(path.name))
    write_statuses(dataset, {video.video_id: int(video.video_id != "v0") for video in listed})
    with pytest.raises(AVQAError, match="4 of 5 videos failed"):
        gather_failures(dataset, collection, failures.parent, 0.5)
    (tmp_path / "videos" / "v1.mp4").unlink()
    build_manifest(config | {"allow_missing": True})
    assert [video.video_id for video in shards(config)["00000"] if video.gone] == ["v1"]
    gather_failures(dataset, collection, failures.parent, 0.75)


@pytest.mark.parametrize("folder", ["v0_flip", "part_v0_flip"])
def test_a_mirrored_video_of_which_the_id_is_in_the_folders_name(data, tmp_path, folder):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "v0.mp4").write_bytes(b"x")
    (tmp_path / folder / "v1_flip.mp4").write_bytes(b"x")
    (tmp_path / "train.json").write_text(json.dumps([record(name) for name in ("v0", "v0_flip", "v1_flip")]))
    videos = data["videos"] | {"folder": str(tmp_path / folder)}
    build_manifest(data | {"videos": videos, "annotations": {"train": str(tmp_path / "train.json")}, "shard_size": 8})
    for _ in range(2):  # as found, and as listed
        listed = shards(data)["00000"]
        assert [video.video_id for video in listed if video.mirrored] == ["v0_flip"]
        build_manifest(data | {"annotations": {"test": str(tmp_path / "test.json")}})
