"""`avqa import` of folders that are given one by one, and of files that video_features named."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import shard_file
from published_folders import (
    SPLITS,
    VIDEOS,
    annotate,
    encode_texts_here,
    record,
    run,
    video_array,
)

import pipeline
from pipeline.cli import main
from pipeline.data.array_folder import Times, by_second
from pipeline.verify import verify


def downloads(tmp_path):
    """What MUSIC-AVQA offers: three folders of T × D."""
    folder = tmp_path / "feats"
    annotate(folder / "annotations", SPLITS)
    features = {"vggish/embedding": (128,), "resnet18/pooled": (512,), "r2plus1d_18/pooled": (512,)}
    for name, shape in features.items():
        (folder / name).mkdir(parents=True)
        for video_id in VIDEOS:
            np.save(folder / name / f"{video_id}.npy", video_array(name, video_id, shape))
    return folder, features, [f"{name}={folder / name}" for name in features]


@pytest.mark.parametrize("together", [True, False])
def test_folders_are_imported_alone(tmp_path, capsys, together):
    """Also those of an encoder that the table does not have; the index comes with the texts."""
    folder, features, given = downloads(tmp_path)
    for arguments in [given] if together else [[one] for one in given]:
        assert run(tmp_path, folder, *arguments) == 0
        assert "with `avqa text`, then import again" in capsys.readouterr().out
    encode_texts_here(tmp_path)
    assert run(tmp_path, folder, given[-1]) == 0
    with pipeline.open_features(tmp_path / "results" / "back") as back:
        for name, shape in features.items():
            for video_id in VIDEOS:
                np.testing.assert_array_equal(back[name, video_id], video_array(name, video_id, shape))
    assert [f for f in verify(tmp_path / "results" / "back").findings if f.level == "error"] == []
    shard = shard_file(tmp_path / "results/videos/features/r2plus1d_18")
    assert main(["provenance", str(shard)]) == 0
    assert "avqa import r2plus1d_18/pooled=DIR" in capsys.readouterr().out


def test_a_later_import_that_lacks_a_video_of_an_earlier_one_is_refused(tmp_path, capsys):
    folder, _, given = downloads(tmp_path)
    (folder / "resnet18/pooled" / "v004.npy").unlink()
    assert run(tmp_path, folder, given[0]) == 0
    assert run(tmp_path, folder, given[1]) == 1
    assert "v004 (0 seconds beside 4 of vggish); import all folders in one command" in capsys.readouterr().err
    assert not (tmp_path / "results/videos/features/resnet18").exists()
    assert run(tmp_path, folder, *given[:2], results=str(tmp_path / "other")) == 0
    with h5py.File(shard_file(tmp_path / "other/videos/features/vggish", 1)) as file:
        assert dict(zip(file["video_id"].asstr()[:], file["status"][:], strict=True))["v004"] == 1


def test_what_earlier_imports_say_of_a_video_is_kept(tmp_path):
    """v001 has no array of VGGish and v002 one of 3 s: so it is for the later ResNet as well."""
    folder, _, given = downloads(tmp_path)
    np.save(folder / "vggish/embedding" / "v002.npy", video_array("vggish/embedding", "v002", (128,), 3))
    (folder / "vggish/embedding" / "v001.npy").unlink()
    assert run(tmp_path, folder, *given[:2]) == 0  # v001 is missing: the first folder says what is there
    assert run(tmp_path, folder, given[2]) == 0
    with h5py.File(shard_file(tmp_path / "results/videos/features/r2plus1d_18")) as file:
        assert dict(zip(file["video_id"].asstr()[:], file["num_segments"][:], strict=True))["v002"] == 3


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("vggish=DIR", "is not ENCODER/OUTPUT=DIR"),
        ("DIR", "is not ENCODER/OUTPUT=DIR"),
        ("../x/y=DIR", "is not ENCODER/OUTPUT=DIR"),
        ("vggish/pooled=DIR", "vggish has no output pooled; it has embedding"),
        ("vggish/embedding=/nowhere", "/nowhere: no such folder"),
    ],
)
def test_folders_that_are_given_wrongly(tmp_path, capsys, given, reason):
    folder, _, _ = downloads(tmp_path)
    assert run(tmp_path, folder, given) == 1
    assert reason in capsys.readouterr().err


def write_as_video_features(folder, kind, rows, fps=None, videos=VIDEOS, size=512):
    """video_id -> array of rows, its row n filled with n; with times where there is a frame rate."""
    folder.mkdir(parents=True)
    for video_id in videos:
        np.save(folder / f"{video_id}_{kind}.npy", np.repeat(np.arange(float(rows)), size).reshape(rows, size) + 1)
        if fps:
            np.save(folder / f"{video_id}_fps.npy", np.array(fps))
            np.save(folder / f"{video_id}_timestamps_ms.npy", np.arange(rows) * 1000 / fps)
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "rows", "fps", "expected"),
    [
        ("resnet", "resnet18/pooled", 100, 25, [12, 37, 62, 87]),  # the frame that is shown at second + 0.5
        ("resnet", "resnet18/pooled", 4, 1, [0, 1, 2, 3]),
        ("clip", "clip_vit_b32/cls", 8, 2, [1, 3, 5, 7]),
        ("clip", "clip_vit_b32/cls", 60, 29.97, [14, 44]),  # 2.002 s
        ("vggish", "vggish/embedding", 62, None, [0, 1, 2, 3]),
        ("vggish", "vggish_hop096/embedding", 4, None, [0, 1, 2, 3]),
        ("rgb", "i3d/rgb", 4, 1, None),
    ],
)
def test_rows_of_video_features_are_at_their_seconds(tmp_path, kind, name, rows, fps, expected):
    size = 128 if kind == "vggish" else 512
    folder = write_as_video_features(tmp_path / "made" / kind, kind, rows, fps, size=size)
    annotate(tmp_path / "made" / "annotations", SPLITS)
    assert run(tmp_path, tmp_path / "made", f"{name}={folder}") == 0
    encoder, output = name.split("/")
    with h5py.File(shard_file(tmp_path / f"results/videos/features/{encoder}")) as file:
        assert file[name].dtype == np.float32
        values, seconds = file[name][0, :, 0] - 1, int(file["num_segments"][0])
    if output == "rgb":  # a row's time is when its frames end: 0, 1, 2 and 3 s
        expected = [1, 2, 3]
    assert values[:seconds].tolist() == expected


def test_vggish_of_video_features_after_a_minute(tmp_path):
    """Row k is of 0.96 k to 0.96 (k + 1): second 30 is not row 30."""
    folder = write_as_video_features(tmp_path / "made" / "vggish", "vggish", 62, size=128)
    annotate(tmp_path / "made" / "annotations", SPLITS)
    assert run(tmp_path, tmp_path / "made", f"vggish/embedding={folder}", decode={"segments": 60}) == 0
    with h5py.File(shard_file(tmp_path / "results/videos/features/vggish")) as file:
        rows = file["vggish/embedding"][0, :, 0] - 1
        for second in range(59):
            assert 0.96 * rows[second] <= second + 0.5 < 0.96 * (rows[second] + 1)


def test_files_of_video_features_that_do_not_belong_together(tmp_path, capsys):
    made = tmp_path / "made"
    annotate(made / "annotations", SPLITS)
    stacks = write_as_video_features(made / "r21d", "r21d", 6)
    assert run(tmp_path, made, f"r21d/pooled={stacks}") == 1
    assert "v000_r21d.npy: has no _timestamps_ms.npy beside it" in capsys.readouterr().err
    frames = write_as_video_features(made / "resnet", "resnet", 4, 1)
    np.save(frames / "v001_timestamps_ms.npy", np.arange(3) * 1000)
    assert run(tmp_path, made, f"resnet18/pooled={frames}") == 1
    assert "v001_timestamps_ms.npy: holds (3,) times, expected (4,)" in capsys.readouterr().err
    write_as_video_features(made / "both" / "i3d", "rgb", 4, 1)
    for path in sorted((made / "both" / "i3d").glob("*_rgb.npy")):
        (made / "both" / "i3d" / path.name.replace("_rgb", "_flow")).write_bytes(path.read_bytes())
    assert run(tmp_path, made, f"i3d/pooled={made / 'both' / 'i3d'}") == 1
    assert "holds arrays of flow and rgb; name one of these as the output" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
    assert run(tmp_path, made, f"i3d/flow={made / 'both' / 'i3d'}") == 0


def test_video_ids_that_look_like_names_of_video_features(tmp_path):
    """<id>.npy where the ids themselves end in _clip: they are ids, since the annotations say so."""
    made = tmp_path / "made"
    annotate(made / "annotations", {"test": [record("a_clip", 1, "Is it loud?"), record("b_clip", 2, "Is it loud?")]})
    (made / "clip").mkdir()
    for video_id in ("a_clip", "b_clip"):
        np.save(made / "clip" / f"{video_id}.npy", video_array("clip", video_id, (512,)))
    assert run(tmp_path, made, f"clip_vit_b32/cls={made / 'clip'}") == 0
    with h5py.File(shard_file(tmp_path / "results/videos/features/clip_vit_b32")) as file:
        assert list(file["video_id"].asstr()[:]) == ["a_clip", "b_clip"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(0.01, 3), min_size=1, max_size=80),
    st.floats(0.01, 2),
    st.floats(0, 0.99),
)
def test_the_row_of_a_second_is_the_last_that_started(gaps, last, frame_at):
    starts = np.cumsum([0.0, *gaps])
    end = float(starts[-1] + last)
    found = by_second(Times(starts, end), frame_at)
    for second, row in enumerate(found):
        at = second + frame_at
        assert starts[row] <= at or row == 0
        assert row == len(starts) - 1 or starts[row + 1] > at
    assert len(found) == 1 or len(found) - 1 + frame_at < end <= len(found) + frame_at
