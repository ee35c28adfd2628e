"""A shard's videos in worker processes: what comes out, and what hanging, dying and greedy files do to it."""

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from media.oracle import AUDIO, VIDEO, X264, clip

from pipeline.decode import decode_shard
from pipeline.media.segments import read_segments
from pipeline.media.worker import Limits
from pipeline.storage.shard_list import Video

OPTIONS = {"segments": 3, "sizes": (16, 32), "backend": "pyav", "pad": "repeat", "frame_at": 0.5, "accuracy": "exact"}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Good and bad files, by name."""
    folder = tmp_path_factory.mktemp("videos")
    clip(folder / "good.mp4", *VIDEO, *AUDIO, *X264, "-c:a", "aac")
    clip(folder / "short.mp4", "-t", 1.2, "-i", folder / "good.mp4", *X264, "-an")
    clip(folder / "sound.mp4", "-i", folder / "good.mp4", "-vn", "-c", "copy")
    # Many pixels in a small file.
    clip(folder / "huge.mp4", "-f", "lavfi", "-i", "color=blue:s=8000x6000:d=0.2:r=10", *X264, "-threads", 1)
    (folder / "text.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    whole = (folder / "good.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 3])
    return folder


def decode(videos, names, out, **changes):
    listed = [Video(name, os.fspath(videos / name), 0, 0) for name in names]
    options = OPTIONS | {"dataset": "d", "shard": "0", "workers": 2, "failures": out.with_suffix(".tsv")} | changes
    decode_shard(listed, out, **options)
    with h5py.File(out) as file:
        rows = {
            name: file[name][:] for name in ("num_segments", "has_audio", "status", "frames/16", "frames/32", "audio")
        }
    with open(out.with_suffix(".tsv"), newline="") as file:
        failures = {line.pop("video_id"): line for line in csv.DictReader(file, delimiter="\t")}
    assert list(failures) == [name for n, name in enumerate(names) if rows["status"][n]]
    return rows, failures


def same_as_read_segments(rows, n, path):
    want = read_segments(path, **OPTIONS)
    assert rows["status"][n] == 0
    assert rows["num_segments"][n] == want.num_segments and rows["has_audio"][n] == want.has_audio
    assert np.array_equal(rows["frames/16"][n], want.frames[16]) and np.array_equal(
        rows["frames/32"][n], want.frames[32]
    )
    assert np.array_equal(rows["audio"][n], want.audio)


def workers_of(process):
    found = []
    for child in process.children():
        with suppress(psutil.Error):  # it has ended meanwhile
            if "pipeline.media.worker" in child.cmdline():
                found.append(child)
    return found


def when_a_worker_appears(act, times=1):
    """In the background, do something to the first `times` worker processes that this process starts."""

    def watch():
        seen = set()
        while len(seen) < times and not done.is_set():
            for worker in workers_of(psutil.Process()):
                if worker.pid not in seen:
                    seen.add(worker.pid)
                    act(worker)
            time.sleep(0.01)

    done = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()

    def finish():
        done.set()
        thread.join()
        assert not workers_of(psutil.Process())

    return finish


def test_good_and_bad_files(videos, tmp_path):
    names = ["good.mp4", "text.mp4", "short.mp4", "torn.mp4", "sound.mp4", "gone.mp4"]
    rows, failures = decode(videos, names, tmp_path / "s.h5")
    same_as_read_segments(rows, 0, videos / "good.mp4")
    same_as_read_segments(rows, 2, videos / "short.mp4")
    assert list(rows["status"]) == [0, 1, 0, 1, 1, 1]
    assert not rows["audio"][[1, 3, 4, 5]].any() and not rows["frames/32"][[1, 3, 4, 5]].any()
    assert all(failure["stage"] == "decode" and float(failure["seconds"]) >= 0 for failure in failures.values())
    assert failures["text.mp4"]["reason"].startswith("pyav: does not begin like")
    assert failures["torn.mp4"]["reason"].startswith("pyav: cannot be opened as mov")
    assert failures["sound.mp4"]["reason"] == "pyav: has no video stream"
    with h5py.File(tmp_path / "s.h5") as file:
        assert list(file["video_id"].asstr()) == names
        assert file.attrs["kind"] == "segments" and file["frames/32"].chunks == (1, 1, 32, 32, 3)
    again = decode(videos, names, tmp_path / "s.h5")
    assert again[1] == failures
    (tmp_path / "s.tsv").unlink()
    lost = decode(videos, names, tmp_path / "s.h5")[1]  # which checks that all of them are listed
    assert all("earlier run" in failure["reason"] for failure in lost.values())


def test_a_worker_that_hangs_is_replaced(videos, tmp_path):
    finish = when_a_worker_appears(psutil.Process.suspend)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1, limits=Limits(seconds=2))
    finish()
    same_as_read_segments(rows, 0, videos / "good.mp4")  # by the next backend, which here sees the same
    same_as_read_segments(rows, 1, videos / "short.mp4")
    assert not failures


def test_a_video_that_always_hangs_is_recorded(videos, tmp_path):
    finish = when_a_worker_appears(psutil.Process.suspend, times=2)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1, limits=Limits(seconds=2))
    finish()
    assert (
        failures["good.mp4"]["reason"]
        == "pyav: took longer than its limit of 2 s; decord: took longer than its limit of 2 s"
    )
    assert float(failures["good.mp4"]["seconds"]) >= 4
    same_as_read_segments(rows, 1, videos / "short.mp4")


def test_a_worker_that_is_killed_costs_nothing(videos, tmp_path):
    finish = when_a_worker_appears(psutil.Process.kill)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    finish()
    assert not failures
    for n, name in enumerate(("good.mp4", "short.mp4")):
        same_as_read_segments(rows, n, videos / name)


def test_a_video_whose_worker_always_dies_is_recorded(videos, tmp_path):
    finish = when_a_worker_appears(psutil.Process.kill, times=3)
    rows, failures = decode(videos, ["good.mp4", "short.mp4"], tmp_path / "s.h5", workers=1)
    finish()
    died = "the decoder died of SIGKILL"
    assert failures["good.mp4"]["reason"] == f"pyav: {died}; pyav: {died}; decord: {died}"
    same_as_read_segments(rows, 1, videos / "short.mp4")


def test_a_file_that_needs_too_much_memory_is_recorded(videos, tmp_path):
    names = ["good.mp4", "huge.mp4", "short.mp4"]
    rows, failures = decode(videos, names, tmp_path / "s.h5", workers=1, limits=Limits(memory=700 * 2**20))
    assert list(failures) == ["huge.mp4"] and "memory" in failures["huge.mp4"]["reason"].lower()
    for n in (0, 2):
        same_as_read_segments(rows, n, videos / names[n])


def test_killed_and_run_again(videos, tmp_path):
    """The second run ends as an undisturbed one, and no worker outlives the first."""
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
