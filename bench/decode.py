"""How fast one core gets a frame a second out of videos: this pipeline, decord, torchcodec and ffmpeg, in turn.

    python bench/decode.py                     # clips made on the spot, about 10 minutes on one core
    python bench/decode.py FOLDER ...          # the videos there

Everybody gets the same frames: those on show in the middle of each second, as full-size RGB in memory. Times are
processor seconds, all threads and children counted, pinned to one core, so that a busy machine disturbs little;
the readers take turns, and the figures are medians. "identical" counts frames that are equal to the ffmpeg
program's in every byte. Prints a table in Markdown and a line of worst cases.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import NamedTuple

import av
import imageio_ffmpeg
import numpy as np

from pipeline.media.container import MediaFile
from pipeline.media.segments import BACKENDS, MediaError
from pipeline.media.video import FullDecoder, UnreliableTimestamps
from pipeline.media.video_sparse import SparseDecoder

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
SIZES = {"360p": "640x360", "720p": "1280x720", "1080p": "1920x1080"}
RATE = 30
YUV = ["-pix_fmt", "yuv420p", "-color_range", "tv"]
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24"]
X265 = ["-c:v", "libx265", "-preset", "superfast", "-crf", "26"]
VP9 = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-crf", "34", "-b:v", "0"]
AV1 = ["-c:v", "libsvtav1", "-preset", "11", "-crf", "38"]


class Clip(NamedTuple):
    name: str
    path: Path
    target: float | None = None  # how many times decord's speed it has to reach


class Question(NamedTuple):
    """What every reader is asked: what is on show at these moments; frames with these times and numbers."""

    path: Path
    moments: list[Fraction]  # presentation time in seconds
    times: list[Fraction]
    numbers: list[int]
    start: Fraction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of videos; without one, clips are made")
    parser.add_argument("--seconds", type=int, default=10, help="length of the clips that are made")
    parser.add_argument("--full", action="store_true", help="GOPs of 5 s for the newer codecs too")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each reader gets on each clip")
    parser.add_argument("--keep", type=Path, help="make the clips in this folder and leave them there")
    args = parser.parse_args()
    _lend_libraries_to_torchcodec()
    with tempfile.TemporaryDirectory() as temporary:
        if args.folders:
            clips = [Clip(p.name, p, 0.95) for folder in args.folders for p in sorted(folder.iterdir()) if p.is_file()]
        else:
            clips = made(args.keep or Path(temporary), args.seconds, args.full)
        report(clips, args.rounds)


def made(folder: Path, seconds: int, full: bool) -> Iterator[Clip]:
    """The clips: three sizes, GOPs of 1, 5 and 10 s, with B-frames and without, four codecs."""
    folder.mkdir(parents=True, exist_ok=True)
    for label, size in SIZES.items():
        source = folder / f"source{label}.mkv"
        motion = f"testsrc2=s={size}:r={RATE}:d={seconds},rotate=t/9:c=gray,noise=alls=5:allf=t"
        ffmpeg("-f", "lavfi", "-i", motion, *X264[:2], "-preset", "ultrafast", "-qp", 0, *YUV, target=source)
        gops = (1, 5, 10) if full else (1, 10)
        codings = [
            *((f"h264 {'B' if b else 'no B'}", [*X264, "-bf", b], 1.5 if b else 0.95, (1, 5, 10)) for b in (3, 0)),
            *((f"hevc {'B' if b else 'no B'}", [*X265, "-bf", b], 0.95, gops) for b in (4, 0)),
            ("vp9", VP9, 0.95, gops),
            ("av1", AV1, None, gops),
        ]
        for (name, coding, target), gop in ((c[:3], gop) for c in codings for gop in c[3]):
            path = folder / f"{name}-{label}-{gop}.mp4".replace(" ", "")
            if "libx265" in coding:
                coding = [*coding, "-x265-params", f"log-level=none:keyint={gop * RATE}"]
            if not path.exists():
                ffmpeg("-i", source, *coding, *YUV, "-g", gop * RATE, target=path)
            yield Clip(f"{name} {label} {gop} s", path, target)
        source.unlink()


def ffmpeg(*args, target: Path | str = "-") -> bytes:
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, args), str(target)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def question(path: Path) -> Question:
    """Every frame is decoded here, so that the question cannot be wrong where packets and frames differ."""
    frames = FullDecoder(MediaFile.check(path), 60).frames
    times: list[Fraction] = []
    for appears, duration, _ in frames:
        if times and appears > times[0] + 60:
            break
        times.append(appears)
        end = appears + duration
    moments = [times[0] + second + Fraction(1, 2) for second in range(max(1, min(60, round(end - times[0]))))]
    numbers = sorted({max(0, bisect_right(times, moment) - 1) for moment in moments})
    return Question(path, moments, [times[n] for n in numbers], numbers, times[0])


def ours(backend: str) -> Callable[[Question], list[np.ndarray]]:
    def read(asked: Question) -> list[np.ndarray]:
        file = MediaFile.check(asked.path)
        for kind in BACKENDS[backend]:
            try:
                return list(kind(file, 60).show(asked.moments))
            except UnreliableTimestamps:
                continue
        raise MediaError(asked.path, "cannot be read")

    return read


def by_decord(asked: Question) -> np.ndarray:
    import decord

    return decord.VideoReader(str(asked.path), num_threads=1).get_batch(asked.numbers).asnumpy()


def by_torchcodec(asked: Question) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(asked.path), num_ffmpeg_threads=1, dimension_order="NHWC")
    middle = [float(time) + 1e-4 for time in asked.times]
    return decoder.get_frames_played_at(middle).data.numpy()


def by_ffmpeg(asked: Question) -> np.ndarray:
    chosen = "+".join(f"eq(n\\,{n})" for n in asked.numbers)
    last = ("-frames:v", len(asked.numbers))
    picked = ("-vf", f"select={chosen}", "-fps_mode", "passthrough", *last, "-pix_fmt", "rgb24", "-f", "rawvideo")
    raw = np.frombuffer(ffmpeg("-threads", 1, "-i", asked.path, "-an", "-threads", 1, *picked), np.uint8)
    with av.open(str(asked.path)) as container:
        frame = next(container.decode(video=0))
        width, height = (frame.width, frame.height) if frame.rotation % 180 == 0 else (frame.height, frame.width)
    return raw.reshape(-1, height, width, 3)


READERS = {
    "decord": by_decord,
    "torchcodec": by_torchcodec,
    "ffmpeg": by_ffmpeg,
    "ours, pyav": ours("pyav"),
    "ours, decord": ours("decord"),
}


def report(clips: Iterator[Clip], rounds: int) -> None:
    """Measure and print. A reader that fails on a clip is left out of it."""
    import torchcodec.decoders  # noqa: F401  the first import is nobody's turn

    cores = os.sched_getaffinity(0)
    print(f"| clip | {' | '.join(f'{name}, frames/s' for name in READERS)} | pyav : decord | decoded | identical |")
    print(f"|---|{'---:|' * (len(READERS) + 2)}---|")
    ratios, identical, total = {}, 0, 0
    for clip in clips:
        try:
            asked = question(clip.path)
        except MediaError as error:
            print(f"| {clip.name} | refused: {error.reason} |")
            continue
        seconds, frames = {name: [] for name in READERS}, {}
        os.sched_setaffinity(0, {max(cores)})
        for turn in range(rounds):
            for name in list(READERS)[:: -1 if turn % 2 else 1]:
                try:
                    before = _spent()
                    frames[name] = READERS[name](asked)
                    seconds[name].append(_spent() - before)
                except Exception as error:  # whatever a library throws: it is a cell in the table
                    frames[name] = error
        os.sched_setaffinity(0, cores)
        speeds = {name: float(len(asked.moments) * _rate(asked)) / median(s) for name, s in seconds.items() if s}
        cells = [f"{speeds[name]:.0f}" if name in speeds else "–" for name in READERS]
        same = {name: _same(frames[name], frames["ffmpeg"]) for name in READERS if name != "ffmpeg"}
        ratio = None
        if "decord" in speeds and "ours, pyav" in speeds:
            ratio = median(d / o for d, o in zip(seconds["decord"], seconds["ours, pyav"], strict=True))
            ratios[clip.name] = (ratio, clip.target)
        identical, total = identical + same["ours, pyav"], total + len(asked.numbers)
        marks = ", ".join(f"{name.removeprefix('ours, ')} {count}" for name, count in same.items())
        print(
            f"| {clip.name} | {' | '.join(cells)} | {f'{ratio:.2f}' if ratio else '–'} | {_share(asked)} "
            f"| of {len(asked.numbers)}: {marks} |",
            flush=True,
        )
    missed = [f"{name} ({ratio:.2f})" for name, (ratio, target) in ratios.items() if target and ratio < target]
    low = min(ratios, key=lambda name: ratios[name][0], default=None)
    if low:
        print(f"\nLowest ratio: {ratios[low][0]:.2f} ({low}). Below target: {', '.join(missed) or 'none'}.")
    print(f"Frames of pyav identical to ffmpeg's: {identical} of {total}.")


def _spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _rate(asked: Question) -> Fraction:
    """Frames of the video a second, over the part that was asked for."""
    spread = asked.numbers[-1] - asked.numbers[0]
    return spread / (asked.times[-1] - asked.times[0]) if spread else Fraction(1)


def _same(frames: object, truth: object) -> int:
    if isinstance(frames, Exception) or isinstance(truth, Exception):
        return 0
    return sum(np.array_equal(a, b) for a, b in zip(frames, truth, strict=False))


def _share(asked: Question) -> str:
    try:
        keep, _ = SparseDecoder(MediaFile.check(asked.path), 60).plan(asked.numbers)
    except UnreliableTimestamps:
        return "all"
    return f"{sum(keep) / len(keep):.0%}"


def _lend_libraries_to_torchcodec() -> None:
    """torchcodec wants FFmpeg's libraries on the system; PyAV has them under names of its own. Starts anew once."""
    if "AVQA_BENCH_LIBRARIES" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="libav-")
    for library in (Path(av.__file__).parent.parent / "av.libs").glob("lib[as][vw]*.so.*"):
        name, version = library.name.split(".so.")
        Path(folder, f"{name.split('-')[0]}.so.{version.split('.')[0]}").symlink_to(library)
    path = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
    env = os.environ | {"LD_LIBRARY_PATH": path, "AVQA_BENCH_LIBRARIES": folder}
    os.execve(sys.executable, [sys.executable, *sys.argv], env)


if __name__ == "__main__":
    main()
