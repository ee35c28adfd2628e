"""`avqa export`, its ids, files and refusals, and the way back by `avqa import`."""

import io
import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from made_results import feature, make_results, questions

import pipeline
from pipeline.cli import EXPORTS, main
from pipeline.data.containers import CONTAINERS
from pipeline.data.layouts import LAYOUTS
from pipeline.errors import AVQAError
from pipeline.export import IDS, export
from pipeline.export_questions import export_ids
from pipeline.numbering import index_answers, number
from pipeline.verify import verify


def load(folder, name):
    return np.load(folder / f"{name}.npy", allow_pickle=False)


def test_answers_keep_their_numbers_although_the_videos_of_one_failed(tmp_path):
    """A model's outputs are in the order of the numbers, here as in the release's code."""
    failed = {("status", "v000"): 1}
    dataset = make_results(tmp_path, 6, 4, {"vggish": ("embedding",)}, change=failed)
    table = pd.read_parquet(dataset / "questions.parquet")
    table.loc[table["video_id"] == "v000", "answer"] = ["rare", "rarer"]
    numbering = number({}, table)
    answer_id = index_answers(table["answer"], numbering.answers)
    table.assign(answer_id=answer_id).to_parquet(dataset / "questions.parquet")
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(manifest | numbering.as_dict()))
    layout = replace(LAYOUTS["qa-tiger"], folders=(LAYOUTS["qa-tiger"].folders[0],))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYOUTS, "qa-tiger", layout)
        export(dataset, "qa-tiger", tmp_path / "out", force=True)
    found = json.loads((tmp_path / "out" / "annots/music_avqa/answer2idx.json").read_text())["ans2ix"]
    assert found == {"rare": 0, "rarer": 1, "no": 2, "two": 3, "yes": 4}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made"))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


def test_ids_that_are_missing_or_repeat_get_stable_ones_and_a_table(small, tmp_path):
    export(small, "pstp-net", tmp_path / "out", force=True)
    table = pd.read_csv(tmp_path / "out" / "question_ids.csv", dtype=str)
    own = questions([f"v{n:03d}" for n in range(12)])
    assert len(table) == len(own) == table["export_id"].nunique()
    kept = own["question_id"].notna() & ~own["question_id"].duplicated(keep=False)
    assert kept.sum() == len(own) - 3
    assert (table["export_id"][kept] == own["question_id"][kept]).all()
    assert table["export_id"][~kept].str.fullmatch(r"\d{15}").all()
    shuffled = own.sample(frac=1, random_state=0)
    again = pd.Series(export_ids(shuffled), index=shuffled.index).sort_index().astype(str)
    assert (again == table["export_id"]).all()
    assert {Path(name).stem for name in files(tmp_path / "out" / "clip_qst")} == set(table["export_id"])


def test_a_video_whose_id_is_as_long_as_a_file_name_may_be(tmp_path):
    dataset = make_results(tmp_path, ids=[*(f"v{n:03d}" for n in range(11)), "v" + "0" * 249 + "7"])
    export(dataset, "av-master", tmp_path / "out", force=True)
    assert len(list((tmp_path / "out" / "vggish_audio").glob("v*.npy"))) == 12


@given(st.lists(st.none() | st.text(max_size=20) | st.integers(-5, 10**17).map(str), min_size=1, max_size=12))
def test_every_id_becomes_a_number_of_its_own(own):
    """Releases make a tensor of an id and name files after it: 7 stays 7, "007", "7.0" and "q7" become others."""
    count = -(-len(own) // 2)
    table = pd.concat([questions([f"v{n:03d}" for n in range(count)])], ignore_index=True)[: len(own)]
    ids = export_ids(table.assign(question_id=own))
    assert all(type(value) is int and 0 <= value < 10**15 for value in ids) and len(set(ids)) == len(ids)
    for value, found in zip(own, ids, strict=True):
        plain = value is not None and re.fullmatch("0|[1-9][0-9]{0,14}", value) and own.count(value) == 1
        assert str(found) == value if plain else found >= 10**14


def test_another_protocol_needs_force_and_is_listed(small, tmp_path, capsys):
    command = ["export", str(small), "--layout", "av-master", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert "clip_vit_l14_336px: clip_vit_b32/cls in place of clip_vit_l14_336/cls" in message
    assert "arrays of shape (6, 128), not (60, 128)" in message and "--force" in message
    assert not (tmp_path / "out").exists()
    assert main([*command, "--force"]) == 0
    assert "in place of clip_vit_l14_336/cls" in capsys.readouterr().out
    np.testing.assert_array_equal(
        load(tmp_path / "out" / "clip_vit_l14_336px", "v003"), feature("clip_vit_b32/cls", "v003").astype("float32")
    )


def test_random_weights_are_another_protocol(tmp_path):
    outputs = {"vggish": ("embedding",), "clip_vit_l14_336": ("cls",)}
    random = {"weights": "random (seed 0)", "pretrained": False}
    dataset = make_results(tmp_path, 2, 4, outputs, "clip_vit_l14_336", seconds=60, **random)
    with pytest.raises(AVQAError, match=r"vggish: its weights are random \(seed 0\), not pretrained ones"):
        export(dataset, "av-master", tmp_path / "out")


def test_a_feature_that_nothing_can_replace_is_named(small, tmp_path):
    with pytest.raises(
        AVQAError, match=r"has no tome_vit_l16_384/tokens, which --visual_patch_dir \(ToMe_feat/tome14\)"
    ):
        export(small, "tspm", tmp_path / "out", force=True)


def test_an_interrupted_export_resumes_and_another_one_is_refused(small, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    export(small, "pstp-net", whole, force=True)
    saved, original = [], np.save

    def save(file, array, allow_pickle):
        if len(saved) == 10:
            raise KeyboardInterrupt
        saved.append(file)
        original(file, array, allow_pickle=allow_pickle)

    monkeypatch.setattr("pipeline.export.np.save", save)
    with pytest.raises(KeyboardInterrupt):
        export(small, "pstp-net", out, force=True)
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    assert len(before) == 10 and not json.loads((out / "export.json").read_text())["complete"]
    export(small, "pstp-net", out, force=True)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert files(out) == files(whole) and json.loads((out / "export.json").read_text())["complete"]
    with pytest.raises(AVQAError, match="holds another export"):
        export(small, "pstp-net", out, dtype="float16", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(AVQAError, match="not of an export"):
        export(small, "pstp-net", tmp_path / "mine", force=True)


def test_equal_questions_share_one_array_on_the_disk(small, tmp_path):
    export(small, "pstp-net", tmp_path / "out", force=True)
    inodes = {os.stat(path).st_ino for path in (tmp_path / "out" / "clip_word").glob("*.npy")}
    assert len(inodes) == questions([f"v{n:03d}" for n in range(12)])["question"].nunique()


def test_files_of_other_tools_have_no_failed_videos(tmp_path):
    dataset = make_results(tmp_path, change={("status", "v003"): 1})
    export(dataset, "datasets", tmp_path / "out")
    assert "v003" not in pq.read_table(tmp_path / "out" / "videos")["video_id"].to_pylist()
    table = pd.read_csv(tmp_path / "out" / IDS, keep_default_na=False)
    assert table.loc[table["left_out"] == "failed", "video_id"].tolist() == ["v003", "v003"]


def test_zeros_share_one_array_on_the_disk(tmp_path):
    failed = {("status", video_id): 1 for video_id in ("v003", "v005", "v006")}
    export(make_results(tmp_path, change=failed), "pstp-net", tmp_path / "out", force=True)
    assert len({os.stat(tmp_path / "out" / "vggish" / f"{video_id}.npy").st_ino for _, video_id in failed}) == 1


def config(tmp_path, out, **changes):
    splits = {split: str(out / f"dataset/split_que_id/music_avqa_{split}.json") for split in ("train", "val", "test")}
    values = {"dataset": "back", "results": str(tmp_path / "back"), "annotations": splits, "decode": {"segments": 6}}
    values |= {"videos": {"collection": "back_videos", "folder": "none"}} | changes
    (tmp_path / "import.yaml").write_text(json.dumps(values))
    return str(tmp_path / "import.yaml")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_export_then_import_then_export_gives_the_same_bytes(small, tmp_path, dtype):
    out = tmp_path / "out"
    export(small, "pstp-net", out, dtype=dtype, force=True)
    assert main(["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out)]) == 0
    back = pipeline.open_features(tmp_path / "back" / "back")
    with pipeline.open_features(small) as features:
        for name in (name for name in features.names if not name.endswith("/length")):
            for key in features.texts if name.startswith("text") else features:
                assert back[name, key].dtype == dtype
                np.testing.assert_array_equal(back[name, key], features[name, key].astype(dtype))
        mine, theirs = (f.videos.set_index("video_id")[["num_segments", "has_audio"]] for f in (back, features))
        pd.testing.assert_frame_equal(mine.sort_index(), theirs.sort_index())
    assert "imported" in back.index.provenance["vggish"]["weights"]
    assert verify(tmp_path / "back" / "back").findings == []
    export(tmp_path / "back" / "back", "pstp-net", tmp_path / "again", dtype=dtype, force=True)
    assert files(tmp_path / "again") == files(out)


def test_zeros_of_failed_videos_come_back_as_failed(tmp_path):
    dataset, out = make_results(tmp_path, change={("status", "v003"): 1}), tmp_path / "out"
    export(dataset, "pstp-net", out, force=True)
    assert not load(out / "vggish", "v003").any()
    assert main(["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out)]) == 0
    with pipeline.open_features(tmp_path / "back" / "back") as back:
        videos = back.videos.set_index("video_id")["status"]
        assert videos[videos != 0].index.tolist() == ["v003"]
        expected = feature("vggish/embedding", "v004").astype("float32")
        np.testing.assert_array_equal(back["vggish/embedding", "v004"], expected)
    export(tmp_path / "back" / "back", "pstp-net", tmp_path / "again", force=True)
    assert files(tmp_path / "again") == files(out)


@pytest.mark.parametrize("change", ["question_id", "anser", "one less"])
def test_annotations_that_changed_since_an_import_are_not_imported_as_they_were(small, tmp_path, capsys, change):
    """The ids of two questions exchanged: by the old ones, each would be given the other's arrays."""
    out = tmp_path / "out"
    export(small, "pstp-net", out, force=True)
    command = ["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out)]
    assert main(command) == 0 and main(command) == 0
    before = files(tmp_path / "back")
    path = out / "dataset/split_que_id/music_avqa_train.json"
    first, second, *others = json.loads(path.read_text())
    if change == "one less":
        others.pop()
    else:
        first[change], second[change] = second[change], first[change]
    path.write_text(json.dumps([first, second, *others]))
    assert main(command) == 1
    assert "questions.parquet: was made from other annotations" in capsys.readouterr().err
    assert files(tmp_path / "back") == before
    (tmp_path / "back" / "back").rename(tmp_path / "away")
    assert main(command) == 0
    assert verify(tmp_path / "back" / "back").findings == []


def test_a_question_that_looks_like_a_missing_value_is_imported(small, tmp_path):
    out = tmp_path / "out"
    export(small, "pstp-net", out, force=True)
    with pipeline.open_features(small) as features:
        question, expected = features.texts[0], features["text/sentence", features.texts[0]]
    for path in (*out.rglob("*.json"), out / IDS):
        path.write_text(path.read_text().replace(question, "null"))
    assert main(["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out)]) == 0
    back = pipeline.open_features(tmp_path / "back" / "back")
    np.testing.assert_array_equal(back["text/sentence", "null"], expected)


def test_published_folders_of_other_lengths_with_videos_missing(tmp_path):
    """Folders as others publish them: no tables, float32, 4 to 8 rows, one video without audio, one text twice."""
    rng = np.random.default_rng(0)
    out = tmp_path / "published"
    shapes = {"vggish_audio": (128,), "clip_vit_l14_336px": (768,)}
    arrays = {}
    for folder, shape in shapes.items():
        (out / folder).mkdir(parents=True)
        for n in range(5):
            arrays[folder, n] = rng.normal(size=(4 + n, *shape)).astype("float32")
            np.save(out / folder / f"v{n:03d}.npy", arrays[folder, n])
    (out / "vggish_audio" / "v002.npy").unlink()
    (out / "dataset/split_que_id").mkdir(parents=True)
    for folder, shape in {"clip_sentence_l14_336px": (1, 768), "clip_word_l14_336px": (1, 77, 768)}.items():
        (out / folder).mkdir()
        for n in range(5):
            np.save(out / folder / f"{n}.npy", np.full(shape, n % 3, "float32"))
    for split, chosen in {"train": (0, 1, 2), "val": (3,), "test": (4,)}.items():
        records = [
            {"video_id": f"v{n:03d}", "question_id": n, "type": '["Audio", "Counting"]', "templ_values": "[]"}
            | {"question_content": f"Is it {n % 3}?", "anser": "yes"}
            for n in chosen
        ]
        (out / f"dataset/split_que_id/music_avqa_{split}.json").write_text(json.dumps(records))
    command = ["import", str(out), "--layout", "av-master", "--config", config(tmp_path, out, shard_size=2)]
    assert main([*command[:-1], config(tmp_path, out, shard_size=2, allow_missing=True)]) == 0
    with pipeline.open_features(tmp_path / "back" / "back") as features:
        assert list(features) == ["v000", "v001", "v003", "v004"]
        assert features.videos["num_segments"].tolist() == [4, 5, 6, 6]
        for n in (0, 1, 3, 4):
            expected = arrays["clip_vit_l14_336px", n][:6]
            found = features["clip_vit_l14_336/cls", f"v{n:03d}"]
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert (found[len(expected) :] == expected[-1]).all()
        assert (features["text/words", "Is it 1?"] == 1).all()


@pytest.mark.parametrize("damage", ["cut", "pickle", "nan", "shape", "folder"])
def test_a_bad_array_is_named(small, tmp_path, capsys, damage):
    out = tmp_path / "out"
    export(small, "pstp-net", out, force=True)
    path = out / "vggish" / "v005.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif damage == "folder":
        (out / "vggish").rename(out / "other")
    else:
        array = np.load(path)
        array[1, 2] = np.nan
        np.save(path, array if damage == "nan" else array[:, :64] * 0)
    assert main(["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out)]) == 1
    assert str(out / "vggish" if damage == "folder" else path) in capsys.readouterr().err


def test_features_that_were_extracted_here_are_not_replaced(small, tmp_path, capsys):
    out = tmp_path / "out"
    export(small, "pstp-net", out, force=True)
    dataset = make_results(tmp_path)
    before = {path: path.read_bytes() for path in dataset.parent.rglob("*.h5")}
    names = {"dataset": "small", "results": str(dataset.parent)}
    names["videos"] = {"collection": "small_videos", "folder": "none"}
    assert main(["import", str(out), "--layout", "pstp-net", "--config", config(tmp_path, out, **names)]) == 1
    assert "was extracted here" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_webdataset(small, tmp_path):
    export(small, "webdataset", tmp_path / "out")
    seen = {}
    for tar in sorted((tmp_path / "out" / "videos").glob("*.tar")):
        with tarfile.open(tar) as archive:
            for entry in archive:
                key, _, suffix = entry.name.partition(".")
                content = io.BytesIO(archive.extractfile(entry).read())
                seen[key, suffix] = json.load(content) if suffix == "json" else np.load(content)
    assert len(seen) == 12 * 4
    np.testing.assert_array_equal(seen["v007", "clip_vit_b32.patch.npy"], feature("clip_vit_b32/patch", "v007"))
    assert seen["v007", "json"] == {"video_id": "v007", "num_segments": 5, "has_audio": True}


def test_safetensors_and_datasets_in_files_of_bounded_size(small, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.export.FILE_BYTES", 2**21)  # four videos of 2 × 6 × 50 × 512 × 4 bytes or so
    export(small, "safetensors", tmp_path / "st")
    parts = sorted((tmp_path / "st" / "videos").glob("*.safetensors"))
    assert len(parts) > 2
    tensors = {k: v for path in parts for k, v in safetensors.numpy.load_file(path).items()}
    np.testing.assert_array_equal(tensors["v004/clip_vit_b32/cls"], feature("clip_vit_b32/cls", "v004"))
    assert len(tensors) == 36
    export(small, "datasets", tmp_path / "hf", dtype="float16")
    table = pq.read_table(tmp_path / "hf" / "videos")
    assert table.num_rows == 12
    n = table["video_id"].to_pylist().index("v004")
    patch = np.array(table["clip_vit_b32/patch"][n].as_py(), "float16")
    np.testing.assert_array_equal(patch, feature("clip_vit_b32/patch", "v004"))
    assert pq.read_table(tmp_path / "hf" / "texts").num_rows == 4


def test_the_command_offers_every_container():
    assert tuple(CONTAINERS) == EXPORTS


@pytest.mark.parametrize("hostile", ["../../evil", "{}/evil", "..", ".evil", "a/../../evil", "a\\b"])
@pytest.mark.parametrize("place", ["features", "left out"])
def test_ids_of_other_peoples_results_lead_to_no_file_outside(tmp_path, hostile, place, capsys):
    """A manifest that is made here has no such ids; these results were made to have one."""
    hostile = hostile.format(tmp_path)
    dataset = make_results(tmp_path, 6, 4, {"vggish": ("embedding",), "resnet18_music_avqa": ("map",)})
    table = pd.read_parquet(dataset / "questions.parquet")
    if place == "features":
        for path in (dataset / "features.h5", *(dataset.parent / "small_videos").rglob("*.h5")):
            with h5py.File(path, "a") as file:
                ids = [hostile if name == "v001" else name for name in file["video_id"].asstr()]
                del file["video_id"]
                file["video_id"] = ids
        table["video_id"] = table["video_id"].replace("v001", hostile)
        table.to_parquet(dataset / "questions.parquet", index=False)
    else:
        row = table[:1].assign(video_id=hostile, reason="missing", record=99)
        row.to_parquet(dataset / "left_out.parquet", index=False)
    before = set(tmp_path.rglob("*"))
    out = tmp_path / "out" / "deep" / "er"
    assert main(["export", str(dataset), "--layout", "avst", "--out", str(out), "--force"]) == 1
    assert f"the video id {hostile!r} could leave the folder of the export" in capsys.readouterr().err
    assert set(tmp_path.rglob("*")) == before
