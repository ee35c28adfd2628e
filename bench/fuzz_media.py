"""Decode hundreds of damaged videos: does anything hang, crash, or fail without a record?

    python bench/fuzz_media.py                 # 600 files, a few minutes on two cores
    python bench/fuzz_media.py --files 60 --seed 7

Small clips in eight containers are made on the spot and damaged in ten ways, the same for the same seed. All
are decoded as one shard, as the workflow does it. Prints the outcomes by kind of damage, in Markdown; ends with
code 1 unless every file was either decoded or recorded with a reason.
"""

import argparse
import collections
import csv
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import h5py
import imageio_ffmpeg

from extractors import AudioInput, FrameInput
from pipeline.decode import decode_shard
from pipeline.media.segments import BACKENDS
from pipeline.media.worker import Limits
from pipeline.storage.contract import DECODED
from pipeline.storage.shard_list import Video

VIDEO = "testsrc2=s=80x64:r=12:d=3"
AUDIO = "aevalsrc=0.4*sin(t*(900+500*t)):s=22050:d=3"
SEEDS = {
    "h264.mp4": "-c:v libx264 -g 12 -pix_fmt yuv420p -c:a aac",
    "fast.mp4": "-c:v libx264 -g 12 -pix_fmt yuv420p -c:a aac -movflags +faststart",  # the header comes first
    "hevc.mkv": "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=12 -c:a libopus",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 12 -c:a libvorbis",
    "av1.mp4": "-c:v libsvtav1 -preset 12 -g 12 -c:a aac",
    "h264.ts": "-c:v libx264 -g 12 -pix_fmt yuv420p -c:a mp2",
    "mpeg4.avi": "-c:v mpeg4 -bf 2 -g 12 -c:a libmp3lame",
    "h264.flv": "-c:v libx264 -g 12 -pix_fmt yuv420p -c:a aac",
    "mpeg2.mpg": "-c:v mpeg2video -r 25 -c:a mp2",
}
# MP4 boxes whose fields say how much of something there is: (first byte of the fields, their number).
COUNTS = {
    b"stsz": (4, 2),
    b"stts": (4, 3),
    b"stsc": (4, 4),
    b"stco": (4, 2),
    b"ctts": (4, 3),
    b"stss": (4, 2),
    b"elst": (4, 3),
}
DURATIONS = {b"mvhd": (12, 2), b"mdhd": (12, 2), b"tkhd": (20, 1), b"elst": (8, 2)}
EXTENTS = {b"avc1": (24, 1), b"tkhd": (76, 2), b"av01": (24, 1), b"mp4a": (16, 2)}
ODD = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", choices=BACKENDS, default="pyav")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=float, default=10, help="seconds that a file may take")
    parser.add_argument("--keep", type=Path, help="make the files in this folder and leave them there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        files = damaged(folder, args.files, args.seed)
        return run(files, folder, args.backend, args.workers, args.limit)


def damaged(folder: Path, count: int, seed: int) -> dict[str, Path]:
    """Damaged files by name; the name begins with the kind of damage."""
    folder.mkdir(parents=True, exist_ok=True)
    originals = {}
    for name, coding in SEEDS.items():
        command = ["-f", "lavfi", "-i", VIDEO, "-f", "lavfi", "-i", AUDIO, *coding.split(), str(folder / name)]
        subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *command], check=True, stderr=-3
        )
        originals[name] = (folder / name).read_bytes()
    files = {}
    for n in range(count):
        rng = Random(f"{seed} {n}")
        kind = list(DAMAGES)[n % len(DAMAGES)]
        name = list(originals)[n // len(DAMAGES) % len(originals)]
        data = bytearray(originals[name])
        DAMAGES[kind](rng, data)
        label = f"{kind}/{n}-{name}"
        files[label] = folder / label.replace("/", "-").replace(" ", "_")
        files[label].write_bytes(data)
    return files


def truncated(rng: Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data)) :]


def few_bits(rng: Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def many_bytes(rng: Random, data: bytearray) -> None:
    for _ in range(max(1, len(data) // rng.choice((20, 100, 1000)))):
        data[rng.randrange(len(data))] = rng.randrange(256)


def header_bytes(rng: Random, data: bytearray) -> None:
    """At the beginning, and in an MP4 wherever its header is."""
    header = max(0, data.find(b"moov"))
    for _ in range(rng.randint(1, 20)):
        data[min(len(data) - 1, header + rng.randrange(1500))] = rng.choice((0, 255, rng.randrange(256)))


def zeroed(rng: Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.randrange(1, 4096))
    data[start:stop] = bytes(stop - start)


def moved(rng: Random, data: bytearray) -> None:
    """A part is repeated, left out, or comes somewhere else."""
    start = rng.randrange(len(data))
    part = data[start : start + rng.randrange(1, 3000)]
    if rng.random() < 0.7:
        del data[start : start + len(part)]
    if rng.random() < 0.7:
        at = rng.randrange(len(data) + 1)
        data[at:at] = part


def resized(rng: Random, data: bytearray) -> None:
    """The size of an MP4 box, of a Matroska element, or of whatever else looks like a length."""
    boxes = [
        match.start() - 4 for match in re.finditer(rb"moov|trak|mdia|minf|stbl|stsd|stsz|mdat|avcC|esds|edts", data)
    ]
    elements = [
        match.end() for match in re.finditer(rb"\x15\x49\xa9\x66|\x16\x54\xae\x6b|\x1f\x43\xb6\x75|\xa3|\xae", data)
    ]
    at = rng.choice(
        [place for place in boxes or elements or [rng.randrange(len(data))] if 0 <= place < len(data) - 4] or [0]
    )
    old = int.from_bytes(data[at : at + 4], "big")
    new = rng.choice((*ODD, old - 1, old + 1, old * 2, old // 2, rng.getrandbits(32)))
    data[at : at + 4] = (new & 0xFFFFFFFF).to_bytes(4, "big")


def lying(fields: dict[bytes, tuple[int, int]]) -> Callable[[Random, bytearray], None]:
    """Numbers in the named MP4 boxes are replaced; in other containers, bytes of the header."""

    def lie(rng: Random, data: bytearray) -> None:
        places = [(m.end(), fields[kind]) for kind in fields for m in re.finditer(re.escape(kind), data)]
        if not places:
            return header_bytes(rng, data)
        for _ in range(rng.randint(1, 3)):
            at, (first, count) = rng.choice(places)
            at += first + 4 * rng.randrange(count)
            if at + 4 <= len(data):
                old = int.from_bytes(data[at : at + 4], "big")
                new = rng.choice((*ODD, old + 1, old * 3, old * 1000, rng.getrandbits(32)))
                struct.pack_into(">I", data, at, new & 0xFFFFFFFF)
        return None

    return lie


DAMAGES = {
    "truncated": truncated,
    "few bits": few_bits,
    "many bytes": many_bytes,
    "header bytes": header_bytes,
    "zeroed": zeroed,
    "moved": moved,
    "box sizes": resized,
    "lying counts": lying(COUNTS),
    "lying durations": lying(DURATIONS),
    "lying extents": lying(EXTENTS),
}


def run(files: dict[str, Path], folder: Path, backend: str, workers: int, limit: float) -> int:
    """Decode them all as one shard and print the outcomes."""
    videos = [Video(label, os.fspath(path.absolute()), path.stat().st_size, 0) for label, path in files.items()]
    began = time.monotonic()
    decode_shard(
        videos, folder / "fuzz.h5", inputs=(FrameInput(32), AudioInput(16000)), collection="f", shard="0", segments=3,
        backend=backend, pad="repeat", frame_at=0.5, frame_selection="exact", selective=True, workers=workers,
        failures=folder / "fuzz.tsv", limits=Limits(limit, 0, 2 * 2**30),
    )  # fmt: skip
    with h5py.File(folder / "fuzz.h5") as shard:
        status = dict(zip(files, shard["status"][:], strict=True))
    with open(folder / "fuzz.tsv", newline="", encoding="utf-8") as file:
        reasons = {line["video_id"]: line["reason"] for line in csv.DictReader(file, delimiter="\t")}
    outcomes = collections.defaultdict(collections.Counter)
    silent = [label for label in files if status[label] != DECODED and not reasons.get(label)]
    for label in files:
        outcomes[label.split("/")[0]][_outcome(status[label], reasons.get(label, ""))] += 1
    columns = ["decoded", "recorded", "at the time limit", "worker died", "out of memory"]
    print(f"| damage | files | {' | '.join(columns)} |")
    print(f"|---|---:|{'---:|' * len(columns)}")
    for kind in [*DAMAGES, "all"]:
        counts = sum(outcomes.values(), collections.Counter()) if kind == "all" else outcomes[kind]
        print(f"| {kind} | {sum(counts.values())} | {' | '.join(str(counts[column]) for column in columns)} |")
    print(f"\n{len(files)} files in {time.monotonic() - began:.0f} s; neither decoded nor recorded: {len(silent)}.")
    return bool(silent)


def _outcome(status: int, reason: str) -> str:
    if status == DECODED:
        return "decoded"
    for sign, outcome in (("longer than", "at the time limit"), ("died", "worker died"), ("memory", "out of memory")):
        if sign in reason:
            return outcome
    return "recorded"


if __name__ == "__main__":
    sys.exit(main())
