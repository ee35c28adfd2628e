"""A shard's videos in worker processes: the results, and the effect of files that hang, crash or take all memory."""

import csv
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from media.oracle import AUDIO, VIDEO, X264, clip

from extractors import AudioInput, FrameInput, Transform
from pipeline.decode import decode_shard
from pipeline.errors import AVQAError
from pipeline.media.container import MachineError
from pipeline.media.segments import read_segments
from pipeline.media.worker import Limits, Worker, inputs_from_json
from pipeline.storage.shard_list import Video

INPUTS = (
    FrameInput(16),
    FrameInput(32, fps=2, transform=Transform("bilinear", 40)),
    AudioInput(16000),
    AudioInput(8000),
)
OPTIONS = {
    "segments": 3,
    "inputs": INPUTS,
    "backend": "pyav",
    "pad": "repeat",
    "frame_at": 0.5,
    "frame_selection": "exact",
    "selective": True,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good and bad files, by name."""
    folder = tmp_path_factory.mktemp("videos")
    clip(folder / "good.mp4", *VIDEO, *AUDIO, *X264, "-c:a", "aac")
    clip(folder / "short.mp4", "-t", 1.2, "-i", folder / "good.mp4", *X264, "-an")
    clip(folder / "audio.mp4", "-i", folder / "good.mp4", "-vn", "-c", "copy")
    # Many pixels in a small file.
    clip(folder / "huge.mp4", "-f", "lavfi", "-i", "color=blue:s=8000x6000:d=0.2:r=10", *X264, "-threads", 1)
    (folder / "text.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    whole = (folder / "good.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def decode(videos, names, out, **changes):
    listed = [Video(name, os.fspath(videos / name), 1, 1) for name in names]
    options = OPTIONS | {"collection": "c", "shard": "0", "workers": 2, "failures": out.with_suffix(".tsv")} | changes
    decode_shard(listed, out, **options)
    with h5py.File(out) as file:
        rows = {name: file[name][:] for name in ("num_segments", "has_audio", "status", *(i.key for i in INPUTS))}
        assert [name.decode() for name in file["backend"]] == ["" if failed else "pyav" for failed in rows["status"]]
    with open(out.with_suffix(".tsv"), newline="") as file:
        failures = {line.pop("video_id"): line for line in csv.DictReader(file, delimiter="\t")}
    assert list(failures) == [name for n, name in enumerate(names) if rows["status"][n]]
    return rows, failures


def same_as_read_segments(rows, n, path):
    want = read_segments(path, **OPTIONS)
    assert rows["status"][n] == 0
    assert rows["num_segments"][n] == want.num_segments and rows["has_audio"][n] == want.has_audio
    assert all(np.array_equal(rows[key][n], want.data[key]) for key in want.data) and len(want.data) == len(INPUTS)


def workers_of(process):
    found = []
    for child in process.children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "pipeline.media.worker" in child.cmdline():
                found.append(child)
    return found


@pytest.fixture
def disturb(monkeypatch):
    """disturb(act, times): `act` on a worker's process when it is given a video, the first `times` times.

    Whatever happens, only the backend that was asked for may be tried."""
    read, left = Worker.read, []

    def disturbed(worker, *args, **options):
        assert options["backend"] == "pyav"
        worker.start()
        if not left:
            return read(worker, *args, **options)
        left.pop()(psutil.Process(worker.process.pid))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker, "start", lambda: None)  # or one that is dead by now would be replaced at once
            return read(worker, *args, **options)

    monkeypatch.setattr(Worker, "read", disturbed)
    yield lambda act, times=1: left.extend([act] * times)
    assert not left and not workers_of(psutil.Process())


def test_good_and_bad_files(videos, tmp_path):
    names = ["good.mp4", "text.mp4", "short.mp4", "torn.mp4", "audio.mp4", "gone.mp4"]
    rows, failures = decode(videos, names, tmp_path / "s.h5", timing=tmp_path / "times.json")
    times = json.loads((tmp_path / "times.json").read_text())
    assert times["items"] == rows["num_segments"][[0, 2]].sum()  # seconds of the videos that are decoded
    assert sorted(times["parts"]) == ["decoders", "start", "writing"]
    # Each of the two workers is busy for at most the time of the job.
    assert all(0 < seconds < times["wall"] for seconds in times["parts"].values())
    same_as_read_segments(rows, 0, videos / "good.mp4")
    same_as_read_segments(rows, 2, videos / "short.mp4")
    assert list(rows["status"]) == [0, 1, 0, 1, 1, 1]
    assert not any(rows[item.key][[1, 3, 4, 5]].any() for item in INPUTS)
    assert all(failure["stage"] == "decode" and float(failure["seconds"]) >= 0 for failure in failures.values())
    assert failures["text.mp4"]["reason"].startswith("pyav: does not begin like")
    assert failures["torn.mp4"]["reason"].startswith("pyav: cannot be opened as mov")
    assert failures["audio.mp4"]["reason"] == "pyav: has no video stream"
    with h5py.File(tmp_path / "s.h5") as file:
        assert list(file["video_id"].asstr()) == names
        assert file.attrs["kind"] == "segments"
        assert [file[item.key].chunks for item in INPUTS[:2]] == [(1, 1, 16, 16, 3), (1, 1, 1, 32, 32, 3)]
        assert tuple(inputs_from_json(json.loads(file.attrs["config"])["inputs"])) == INPUTS
    again = decode(videos, names, tmp_path / "s.h5")
    assert again[1] == failures
    (tmp_path / "s.tsv").unlink()
    lost = decode(videos, names, tmp_path / "s.h5")[1]  # which checks that all of them are listed
    assert all("earlier run" in failure["reason"] for failure in lost.values())


def test_the_audio_of_many_seconds_is_read_in_parts(videos, tmp_path):
    """HDF5 reads whole chunks, and none of 4 GiB: a chunk must not grow with the number of seconds."""
    rows, _ = decode(videos, ["good.mp4"], tmp_path / "s.h5", segments=130)
    want = read_segments(videos / "good.mp4", **OPTIONS | {"segments": 130})
    assert all(np.array_equal(rows[key][0], want.data[key]) for key in want.data)
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["audio/16000"].shape == (1, 130, 16000) and file["audio/16000"].chunks == (1, 60, 16000)


@pytest.mark.parametrize("names", [["good.mp4", "unheard.mp4", "text.mp4"], ["unheard.mp4", "unheard.mkv"]])
def test_a_video_without_its_sound_is_no_failure_and_is_listed(videos, tmp_path, names):
    """Beside the table of failures; data sets' failures.tsv has the line, which counts as no failed video."""
    sound = (videos / "good.mp4").read_bytes().replace(b"mp4a", b"ac-4").replace(b"esds", b"free")
    (videos / "unheard.mp4").write_bytes(sound)  # a codec that FFmpeg has no decoder for
    clip(videos / "unheard.mkv", "-i", videos / "good.mp4", "-c:v", "copy", "-c:a", "g722", "-ar", 16000)
    rows, failures = decode(videos, names, tmp_path / "s.h5")
    with open(tmp_path / "s.unheard.tsv", newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t"))
    unheard = [name for name in names if name.startswith("unheard")]
    assert [(line["video_id"], line["stage"]) for line in lines] == [(name, "audio") for name in unheard]
    assert "ac4" in lines[0]["reason"] and ("g722" in lines[-1]["reason"]) == ("unheard.mkv" in names)
    assert not set(unheard) & set(failures)
    for n, name in enumerate(names):
        assert rows["status"][n] == (name == "text.mp4") and rows["has_audio"][n] == (name == "good.mp4")
        if rows["status"][n] == 0:
            same_as_read_segments(rows, n, videos / name)
    decode(videos, ["good.mp4"], tmp_path / "other.h5", failures=tmp_path / "other.tsv")
    assert not (tmp_path / "other.unheard.tsv").exists()


@pytest.mark.parametrize("alone", [False, True])
def test_audio_files(videos, tmp_path, alone):
    """In place of the videos' own audio, or without any video; a bad one is a failure like any other."""
    clip(tmp_path / "a b.wav", "-f", "lavfi", "-i", "sine=500:d=2.8:r=22050")
    (tmp_path / "text.wav").write_text("#EXTM3U\n/etc/passwd\n")
    inputs = INPUTS[2:] if alone else INPUTS
    path = "" if alone else os.fspath(videos / "short.mp4")
    listed = [Video(n, path, 1, 1, os.fspath(tmp_path / n), 1, 1) for n in ("a b.wav", "text.wav", "gone.wav")]
    options = OPTIONS | {"inputs": inputs, "collection": "c", "shard": "0", "workers": 1}
    decode_shard(listed, tmp_path / "s.h5", **options, failures=tmp_path / "s.tsv")
    want = read_segments(path or None, audio_path=tmp_path / "a b.wav", **OPTIONS | {"inputs": inputs})
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["status"][:].tolist() == [0, 1, 1] and file["has_audio"][:].tolist() == [True, False, False]
        assert file["num_segments"][0] == want.num_segments == 3
        assert sorted(want.data) == sorted(item.key for item in inputs)
        for key, rows in want.data.items():
            np.testing.assert_array_equal(file[key][0], rows)
            assert not file[key][1:].any()
        assert {"soundfile", "soxr"} <= json.loads(file.attrs["libraries"]).keys()
    lines = (tmp_path / "s.tsv").read_text().splitlines()
    assert [line.split("\t")[:3] for line in lines[1:]] == [
        ["text.wav", "decode", "pyav: does not begin like WAV, FLAC, Ogg or MP3; convert it"],
        ["gone.wav", "decode", "pyav: cannot be opened (No such file or directory)"],
    ]


def test_a_worker_that_hangs_is_replaced(videos, tmp_path, disturb):
    disturb(psutil.Process.suspend)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1, limits=Limits(seconds=2))
    same_as_read_segments(rows, 0, videos / "good.mp4")
    same_as_read_segments(rows, 1, videos / "short.mp4")
    assert not failures


def test_a_video_that_always_hangs_is_recorded(videos, tmp_path, disturb):
    disturb(psutil.Process.suspend, times=2)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1, limits=Limits(seconds=2))
    late = "took longer than its limit of 2 s"
    assert failures["good.mp4"]["reason"] == f"pyav: {late}; then {late}"
    assert float(failures["good.mp4"]["seconds"]) >= 4
    same_as_read_segments(rows, 1, videos / "short.mp4")


def test_a_worker_that_is_killed_costs_nothing(videos, tmp_path, disturb):
    disturb(psutil.Process.kill)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    assert not failures
    for n, name in enumerate(("good.mp4", "short.mp4")):
        same_as_read_segments(rows, n, videos / name)


def crash(process):
    process.send_signal(signal.SIGSEGV)


def test_a_decoder_that_crashes_is_tried_once_more(videos, tmp_path, disturb):
    disturb(crash)
    rows, failures = decode(videos, ["good.mp4"], tmp_path / "s.h5", workers=1)
    assert not failures
    same_as_read_segments(rows, 0, videos / "good.mp4")


@pytest.mark.parametrize("acts", [(crash, crash), (crash, psutil.Process.kill), (psutil.Process.kill, crash)])
def test_a_video_on_which_decoders_die_is_recorded(videos, tmp_path, disturb, acts):
    for act in acts:
        disturb(act)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    died = [f"the decoder died of {'SIGSEGV' if act is crash else 'SIGKILL'}" for act in reversed(acts)]
    assert failures["good.mp4"]["reason"] == f"pyav: {'; then '.join(died)}"
    same_as_read_segments(rows, 1, videos / "short.mp4")


def test_a_video_whose_decoder_is_killed_twice_is_no_failure_of_the_video(videos, tmp_path, disturb):
    """An OOM killer is short of memory, and may not be the next time: the finished rows stay, the video gets none."""
    disturb(psutil.Process.kill, times=2)
    with pytest.raises(MachineError, match=r"good\.mp4: .* killed twice .*memory.*decode\.workers"):
        decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    assert not (tmp_path / "s.h5").exists() and not list(tmp_path.glob(".s.h5.*.parts/0-1.npz"))
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    assert not failures
    for n, name in enumerate(("good.mp4", "short.mp4")):
        same_as_read_segments(rows, n, videos / name)


def test_no_other_backend_answers_for_the_one_that_was_chosen(videos, tmp_path):
    """Either is refused what only the other one decodes; the file says which one gave each row."""
    clip(videos / "av1.mp4", *VIDEO, "-c:v", "libsvtav1", "-preset", 12)  # which decord does not know
    names = ["av1.mp4", "good.mp4"]
    for backend, statuses in (("decord", [1, 0]), ("pyav", [0, 0])):
        out = tmp_path / f"{backend}.h5"
        listed = [Video(name, os.fspath(videos / name), 1, 1) for name in names]
        options = OPTIONS | {"backend": backend, "collection": "c", "shard": "0", "workers": 1}
        decode_shard(listed, out, **options, failures=tmp_path / "f.tsv")
        with h5py.File(out) as file:
            assert file["status"][:].tolist() == statuses
            assert [name.decode() for name in file["backend"]] == [backend if not s else "" for s in statuses]
            assert ("decord" in json.loads(file.attrs["libraries"])) == (backend == "decord")
        reasons = [line.split("\t")[2] for line in (tmp_path / "f.tsv").read_text().splitlines()[1:]]
        assert len(reasons) == sum(statuses) and all(reason.startswith("decord: ") for reason in reasons)


def test_a_file_that_needs_too_much_memory_is_recorded(videos, tmp_path):
    names = ["good.mp4", "huge.mp4", "short.mp4"]
    rows, failures = decode(videos, names, tmp_path / "s.h5", workers=1, limits=Limits(memory=700 * 2**20))
    assert list(failures) == ["huge.mp4"] and "memory" in failures["huge.mp4"]["reason"].lower()
    for n in (0, 2):
        same_as_read_segments(rows, n, videos / names[n])


def test_killed_and_run_again(videos, tmp_path):
    """The second run gives the same as an uninterrupted one, and no worker outlives the first."""
    names = ["text.mp4", "good.mp4", "short.mp4", "torn.mp4"] * 4
    names = [name if n < 4 else f"./{n}/../{name}" for n, name in enumerate(names)]
    for n in range(4, len(names)):
        (videos / str(n)).mkdir(exist_ok=True)
    code = f"""if True:
        import sys; sys.path.insert(0, {os.fspath(Path(__file__).parent)!r})
        from pathlib import Path
        from test_decode import decode
        decode(Path({os.fspath(videos)!r}), {names!r}, Path({os.fspath(tmp_path / "killed.h5")!r}))"""
    for pause in (0.4, 0.9, 1.4):
        run = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        time.sleep(pause)
        workers = workers_of(psutil.Process(run.pid)) if run.poll() is None else []
        run.send_signal(signal.SIGKILL)
        run.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
    killed, failures = decode(videos, names, tmp_path / "killed.h5")
    whole, expected = decode(videos, names, tmp_path / "whole.h5")
    assert all(np.array_equal(killed[name], whole[name]) for name in whole)
    assert {name: f["reason"] for name, f in failures.items()} == {name: f["reason"] for name, f in expected.items()}


def nothing_is_recorded(out):
    """No row and no failure of an earlier run is left, nor a finished file."""
    assert not out.exists() and not out.with_suffix(".tsv").exists()
    assert not list(out.parent.glob(f".{out.name}.*.parts/*.npz"))


def test_without_an_ffmpeg_program_the_shard_stops(videos, tmp_path, monkeypatch):
    out = tmp_path / "s.h5"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(MachineError, match=r"ffmpeg program cannot be run .*nothing.*IMAGEIO_FFMPEG_EXE"):
        decode(videos, ["good.mp4"], out)
    nothing_is_recorded(out)
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE")
    rows, failures = decode(videos, ["good.mp4"], out)
    same_as_read_segments(rows, 0, videos / "good.mp4")
    assert not failures


def test_storage_that_cannot_be_read_stops_the_shard(videos, tmp_path):
    """/proc/<pid>/mem is a regular file whose first bytes give EIO."""
    with pytest.raises(MachineError, match=r"mem: cannot be read \(Input/output error\).*not of the video"):
        decode(videos, ["good.mp4", "/proc/self/mem"], tmp_path / "s.h5", workers=1)
    assert not (tmp_path / "s.h5").exists()
    (part,) = tmp_path.glob(".s.h5.*.parts/*.npz")
    assert part.name == "0-1.npz"  # what was finished before is kept


@pytest.mark.parametrize("name", ["good.mp4", "torn.mp4"])
def test_a_read_that_fails_in_the_middle_is_no_end_of_the_video(videos, monkeypatch, name):
    """FFmpeg takes both for the end of the file."""
    read = os.read

    def failing(descriptor, count):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) > 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, min(count, 2048))

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(MachineError, match=f"{name}: cannot be read"):
        read_segments(videos / name, segments=6, inputs=INPUTS)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_file_that_the_machine_cannot_open(videos, monkeypatch, number):
    def failing(path, *args):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(MachineError, match=r"good\.mp4: cannot be opened"):
        read_segments(videos / "good.mp4", segments=1, inputs=INPUTS)


def test_too_many_open_files(videos):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = read_segments(videos / "good.mp4", segments=1, inputs=INPUTS[:1])  # everything is imported
    used = len(os.listdir("/proc/self/fd")) - 1  # without that of the folder
    first_free = os.dup(0)
    os.close(first_free)
    stopped = 0
    try:
        for spare in range(12):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(used, first_free) + spare, hard))
            try:
                got = read_segments(videos / "good.mp4", segments=1, inputs=INPUTS[:1])
                assert np.array_equal(got.data[INPUTS[0].key], before.data[INPUTS[0].key])
            except MachineError:
                stopped += 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert 1 <= stopped < 12


def test_a_shard_of_which_nothing_can_be_decoded_is_an_error(videos, tmp_path):
    for _ in range(2):  # the next run tries again
        with pytest.raises(AVQAError, match=r"none of the 2 videos .*text\.mp4: pyav: does not begin like"):
            decode(videos, ["text.mp4", "gone.mp4"], tmp_path / "s.h5")
        nothing_is_recorded(tmp_path / "s.h5")
    rows, failures = decode(videos, ["text.mp4"], tmp_path / "s.h5")
    assert list(failures) == ["text.mp4"] and list(rows["status"]) == [1]


def test_videos_that_are_gone_are_not_among_those_of_which_none_can_be_decoded(videos, tmp_path):
    options = OPTIONS | {"collection": "c", "shard": "0", "workers": 1, "failures": tmp_path / "f.tsv"}
    there = [Video(name, os.fspath(videos / name), 1, 1) for name in ("text.mp4", "audio.mp4")]
    gone = [Video(name, os.fspath(videos / name), 0, 0, gone=True) for name in ("a.mp4", "b.mp4")]
    with pytest.raises(AVQAError, match=r"none of the 2 videos can be decoded; the first is .*text\.mp4: pyav: does"):
        decode_shard([gone[0], *there, gone[1]], tmp_path / "s.h5", **options)
    decode_shard(gone, tmp_path / "s.h5", **options)  # of a shard of which no video is left: rows of zeros
    with h5py.File(tmp_path / "s.h5") as file:
        assert list(file["status"]) == [1, 1]


def test_a_worker_that_cannot_start_is_no_failure_of_its_video(videos, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text("raise ImportError('broken')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(MachineError, match="cannot be started: the decoder ended with code 1"):
        decode(videos, ["good.mp4"], tmp_path / "s.h5")
    nothing_is_recorded(tmp_path / "s.h5")


def test_starting_a_worker_costs_no_video_its_time(videos, tmp_path, monkeypatch):
    (tmp_path / "av.py").write_text(
        f"import sys, time; time.sleep(4); sys.path.remove({str(tmp_path)!r}); del sys.modules['av']; import av"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    limits = Limits(seconds=3.5, seconds_per_second=0)
    rows, failures = decode(videos, ["good.mp4"], tmp_path / "s.h5", limits=limits)
    assert not failures and list(rows["status"]) == [0]


@pytest.mark.parametrize(("name", "seconds"), [("good.mp4", 4), ("clip.m2v", 10)])
def test_time_limit_of_a_file_whose_header_has_no_duration(videos, name, seconds):
    """An elementary stream has none: it may take as long as a video of all segments."""
    if name == "clip.m2v":
        clip(videos / name, *VIDEO, "-c:v", "mpeg2video")
    worker = Worker(Limits(seconds=50, seconds_per_second=10))
    try:
        scalars, _ = worker.read(os.fspath(videos / name), INPUTS[:1], 10)
        assert scalars["num_segments"] == 4
        assert worker.allowed == pytest.approx(50 + 10 * seconds, abs=1)
    finally:
        worker.close()
