"""Speed of decoding one frame per second on one core: this pipeline, decord, torchcodec and ffmpeg, in turn.

    python bench/decode.py                          # clips made on the spot, about 10 minutes on one core
    python bench/decode.py --seconds 3 --rounds 1   # a quick check of the script
    python bench/decode.py FOLDER ...               # the videos there

All readers decode the same frames: those presented in the middle of each second, at most 60, as full-size RGB in
memory. Times are processor seconds, all threads and children counted, pinned to one core, so that other load on the
machine matters little; the readers take turns, and the figures are medians. "identical" counts frames that are equal to
the ffmpeg program's in every byte. Prints a table in Markdown and a line of worst cases.
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
from contextlib import closing, suppress
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
SECONDS = 60  # of a video that are read
YUV = ["-pix_fmt", "yuv420p", "-color_range", "tv"]
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24"]
X265 = ["-c:v", "libx265", "-preset", "superfast", "-crf", "26"]
VP9 = ["-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-crf", "34", "-b:v", "0"]
AV1 = ["-c:v", "libsvtav1", "-preset", "11", "-crf", "38"]


class Clip(NamedTuple):
    name: str
    path: Path
    target: float | None = None  # how many times decord's speed it has to reach


class Request(NamedTuple):
    """What every reader must give: the frames presented at these moments, which have these times and numbers."""

    path: Path
    moments: list[Fraction]  # presentation time in seconds
    times: list[Fraction]
    numbers: list[int]
    shape: tuple[int, int, int]  # height, width, 3


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
    """The clips: three sizes, GOPs of 1, 5 and 10 s, with B-frames and without, four codecs; long and cut ones."""
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
    yield from remuxed(folder, folder / f"h264B-{next(iter(SIZES))}-5.mp4", seconds)


def remuxed(folder: Path, path: Path, seconds: int) -> Iterator[Clip]:
    """A clip longer than what is read of it, cut by stream copy, and beside a second video stream and subtitles."""
    subtitles = folder / "subtitles.srt"
    subtitles.write_text("1\n00:00:01,000 --> 00:00:09,000\ntext\n")
    long, cut, several = (folder / name for name in ("long.mp4", "cut.mp4", "several.mkv"))
    ffmpeg("-stream_loop", 90 // seconds, "-i", path, "-c", "copy", target=long)
    ffmpeg("-ss", 0.7 * seconds, "-i", long, "-t", 75, "-c", "copy", target=cut)
    smaller = ("-map", "0:v", "-map", "1:v", "-map", "2:s", "-c", "copy", "-c:v:0", "libx264", "-s:v:0", "320x180")
    ffmpeg("-i", path, "-i", path, "-i", subtitles, *smaller, target=several)
    for clip in (long, cut, several):
        yield Clip(clip.stem, clip)


def ffmpeg(*args, target: Path | str = "-") -> bytes:
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, args), str(target)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def make_request(path: Path) -> Request:
    """Decodes every frame, so that the request is right where packets and frames differ."""
    with closing(FullDecoder(MediaFile.check(path), SECONDS)) as decoder:
        shape = next(decoder.frames_at([decoder.start])).shape
    with closing(FullDecoder(MediaFile.check(path), SECONDS)) as decoder:
        times: list[Fraction] = []
        for time, duration, _ in decoder.frames:
            if times and time > times[0] + SECONDS:
                break
            times.append(time)
            end = time + duration
    count = max(1, min(SECONDS, round(end - times[0])))
    moments = [times[0] + second + Fraction(1, 2) for second in range(count)]
    numbers = sorted({max(0, bisect_right(times, moment) - 1) for moment in moments})
    return Request(path, moments, [times[n] for n in numbers], numbers, shape)


def ours(backend: str) -> Callable[[Request], list[np.ndarray]]:
    def read(request: Request) -> list[np.ndarray]:
        file = MediaFile.check(request.path)
        for kind in BACKENDS[backend]:
            try:
                with closing(kind(file, SECONDS)) as decoder:
                    frames = []
                    for frame in decoder.frames_at(request.moments):
                        if not frames or frame is not frames[-1]:
                            frames.append(frame)
                    return frames
            except UnreliableTimestamps:
                continue
        raise MediaError(request.path, "cannot be read")

    return read


def by_decord(request: Request) -> np.ndarray:
    import decord

    return decord.VideoReader(str(request.path), num_threads=1).get_batch(request.numbers).asnumpy()


def by_torchcodec(request: Request) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(request.path), num_ffmpeg_threads=1, dimension_order="NHWC")
    middle = [float(time) + 1e-4 for time in request.times]
    return decoder.get_frames_played_at(middle).data.numpy()


def by_ffmpeg(request: Request) -> np.ndarray:
    chosen = "+".join(f"eq(n\\,{n})" for n in request.numbers)
    last = ("-frames:v", len(request.numbers))
    picked = ("-vf", f"select={chosen}", "-fps_mode", "passthrough", *last, "-pix_fmt", "rgb24", "-f", "rawvideo")
    raw = np.frombuffer(ffmpeg("-threads", 1, "-i", request.path, "-an", "-threads", 1, *picked), np.uint8)
    return raw.reshape(-1, *request.shape)


READERS = {
    "decord": by_decord,
    "torchcodec": by_torchcodec,
    "ffmpeg": by_ffmpeg,
    "ours, pyav": ours("pyav"),
    "ours, decord": ours("decord"),
}


def report(clips: Iterator[Clip], rounds: int) -> None:
    """Measure and print. A reader that fails on a clip is left out of it."""
    with suppress(ImportError):  # then it is left out
        import torchcodec.decoders  # noqa: F401  the first import is not part of any reader's time

    cores = os.sched_getaffinity(0)
    print(f"| clip | {' | '.join(f'{name}, frames/s' for name in READERS)} | pyav : decord | decoded | identical |")
    print(f"|---|{'---:|' * (len(READERS) + 2)}---|")
    ratios, identical, total = {}, 0, 0
    for clip in clips:
        try:
            request = make_request(clip.path)
        except MediaError as error:
            print(f"| {clip.name} | refused: {error.reason} |")
            continue
        seconds, frames = {name: [] for name in READERS}, {}
        os.sched_setaffinity(0, {max(cores)})
        for turn in range(rounds):
            for name in list(READERS)[:: -1 if turn % 2 else 1]:
                try:
                    before = _spent()
                    frames[name] = READERS[name](request)
                    seconds[name].append(_spent() - before)
                except Exception as error:  # whatever a library throws: it is a cell in the table
                    frames[name] = error
        os.sched_setaffinity(0, cores)
        speeds = {name: float(len(request.moments) * _rate(request)) / median(s) for name, s in seconds.items() if s}
        cells = [f"{speeds[name]:.0f}" if name in speeds else "–" for name in READERS]
        same = {name: _same(frames[name], frames["ffmpeg"]) for name in READERS if name != "ffmpeg"}
        ratio = None
        if "decord" in speeds and "ours, pyav" in speeds:
            ratio = median(d / o for d, o in zip(seconds["decord"], seconds["ours, pyav"], strict=True))
            ratios[clip.name] = (ratio, clip.target)
        identical, total = identical + same["ours, pyav"], total + len(request.numbers)
        marks = ", ".join(f"{name.removeprefix('ours, ')} {count}" for name, count in same.items())
        print(
            f"| {clip.name} | {' | '.join(cells)} | {f'{ratio:.2f}' if ratio else '–'} | {_share(request)} "
            f"| of {len(request.numbers)}: {marks} |",
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


def _rate(request: Request) -> Fraction:
    """Frames per second of the video, over the part that is read."""
    spread = request.numbers[-1] - request.numbers[0]
    return spread / (request.times[-1] - request.times[0]) if spread else Fraction(1)


def _same(frames: object, truth: object) -> int:
    if isinstance(frames, Exception) or isinstance(truth, Exception):
        return 0
    return sum(np.array_equal(a, b) for a, b in zip(frames, truth, strict=False))


def _share(request: Request) -> str:
    try:
        with closing(SparseDecoder(MediaFile.check(request.path), SECONDS)) as decoder:
            keep, _ = decoder.plan(sorted({decoder.frame_number_at(moment) for moment in request.moments}))
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
