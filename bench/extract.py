"""Speed of feature extraction: this pipeline against the released scripts' way, on the same clips and weights.

    python bench/extract.py FOLDER                                   # the videos there
    python bench/extract.py --encoder clip_vit_l14 --seconds 4       # clips made on the spot
    python bench/extract.py --rates                                  # all encoders by themselves

The released scripts (PSTP-Net, TSPM, QA-TIGER) write one JPEG file per second with `ffmpeg -r 1`, then read the files
one by one, prepare each with Pillow and encode it alone, in float32 on a CPU. That is restated here with open_clip's
preprocessing and model. Ours decodes to a segments file and encodes batches in bfloat16. Both give the class token of
each second; the weights are the same seeded random numbers, in a file. The sides run in turn; the ratios are medians
over rounds. The encoders alone are compared in processor seconds of one thread, which other load on the machine changes
little; from files on it is seconds by the clock, with all cores.

With --processes, each side is the commands that a user starts, imports and weights included, and there is a third one:
v-iashin/video_features (feature_type=clip, extraction_fps=1), which is neither on PyPI nor contained here. Its steps
are restated from its code: every video is encoded again at one frame per second by the ffmpeg program, read with
OpenCV, prepared with torchvision frame by frame, and encoded in float32 in batches of 1 (its default) or 32. It needs
`pip install opencv-python-headless`. To compare with the original, run in its folder, with the same files:

    time python main.py feature_type=clip model_name=ViT-B/32 device=cpu extraction_fps=1 batch_size=32 \\
        on_extraction=save_numpy video_paths="[A.mp4,B.mp4]"
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import open_clip
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from extractors import ENCODERS, encoder_spec, load_encoder  # noqa: E402
from pipeline.decode import decode_shard  # noqa: E402
from pipeline.extract import extract_shard  # noqa: E402
from pipeline.storage.shard_list import Video  # noqa: E402

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()


def made(folder: Path, seconds: int) -> list[Path]:
    """A 720p and a 360p clip."""
    clips = []
    for size in ("1280x720", "640x360"):
        path = folder / f"{size}.mp4"
        source = f"testsrc2=s={size}:r=30:d={seconds},noise=alls=8:allf=t"
        codec = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p"]
        subprocess.run([FFMPEG, "-v", "error", "-f", "lavfi", "-i", source, *codec, str(path)], check=True)
        clips.append(path)
    return clips


class Released:
    """The released scripts' way, restated."""

    def __init__(self, name: str, weights: Path):
        spec = encoder_spec(name)
        self.model = open_clip.create_model(spec.model, load_weights=False).eval()
        self.model.load_state_dict(torch.load(weights))
        self.prepare = open_clip.image_transform(spec.inputs[0].size, is_train=False)

    @torch.no_grad()
    def encode(self, images: list[Image.Image]) -> np.ndarray:
        rows = [self.model.encode_image(self.prepare(image).unsqueeze(0))[0] for image in images]
        return torch.stack(rows).numpy()

    def run(self, clips: list[Path], folder: Path) -> int:
        """All clips to .npy files; returns how many frames there are."""
        count = 0
        for clip in clips:
            frames = folder / f"{clip.stem}-frames"
            frames.mkdir(parents=True)
            subprocess.run([FFMPEG, "-v", "error", "-i", str(clip), "-y", "-r", "1", f"{frames}/%06d.jpg"], check=True)
            files = sorted(frames.glob("*.jpg"))[:60]
            np.save(folder / f"{clip.stem}.npy", self.encode([Image.open(file) for file in files]))
            count += len(files)
        return count


def batched(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class VideoFeatures(Released):
    """The steps of v-iashin/video_features, restated."""

    batch = 1

    def run(self, clips: list[Path], folder: Path) -> int:
        """All clips to .npy files; returns how many frames there are."""
        import cv2

        count = 0
        folder.mkdir()
        for clip in clips:
            slow = folder / f"{clip.stem}_new_fps.mp4"
            subprocess.run([FFMPEG, "-v", "panic", "-y", "-i", str(clip), "-filter:v", "fps=fps=1", str(slow)])
            video, frames = cv2.VideoCapture(str(slow)), []
            while (read := video.read())[0]:
                frames.append(self.prepare(Image.fromarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))))
            with torch.no_grad():
                rows = [self.model.encode_image(torch.stack(part)).numpy() for part in batched(frames, self.batch)]
            np.save(folder / f"{clip.stem}.npy", np.concatenate(rows))
            count += len(frames)
        return count


class VideoFeatures32(VideoFeatures):
    batch = 32


WAYS = {"released": Released, "video_features": VideoFeatures, "video_features_32": VideoFeatures32}


def our_commands(name: str, weights: Path, clips: list[Path], folder: Path) -> None:
    """As the rules of the workflow call them."""
    avqa = [sys.executable, "-m", "pipeline"]
    segments = ["--out", folder / "segments.h5", "--encoder", name, "--workers", str(os.cpu_count())]
    subprocess.run([*avqa, "decode", *map(Path.absolute, clips), *segments], cwd=ROOT, check=True)
    features = ["--out", folder / "f.h5", "--encoder", name, "--weights", weights, "--outputs", "cls"]
    subprocess.run([*avqa, "extract", folder / "segments.h5", *features], cwd=ROOT, check=True)


def processes(name: str, weights: Path, clips: list[Path], folder: Path, rounds: int) -> None:
    """Print the seconds of each side's commands, and the median of their ratios to ours."""
    seconds: dict[str, list[float]] = {way: [] for way in (*WAYS, "ours")}
    for n, way in itertools.product(range(rounds), seconds):
        out = folder / f"{n}-{way}"
        began = time.perf_counter()
        if way == "ours":
            our_commands(name, weights, clips, out)
        else:
            options = ["--way", way, "--weights", weights, "--out", out, "--encoder", name]
            subprocess.run([sys.executable, __file__, *options, *clips], check=True)
        seconds[way].append(time.perf_counter() - began)
    print(f"load {os.getloadavg()[0]:.1f}, {len(clips)} clips\n")
    print(f"| {name} | seconds | ours is faster by |\n|---|---:|---:|")
    for way, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["ours"], strict=True))
        print(f"| {way} | {', '.join(f'{value:.1f}' for value in values)} | {ratio:.2f} |", flush=True)


def ours(name: str, weights: Path, clips: list[Path], folder: Path) -> int:
    """All clips to a features file; returns how many seconds there are."""
    folder.mkdir()
    videos = [Video(c.stem, str(c), c.stat().st_size, c.stat().st_mtime_ns) for c in clips]
    options = {"backend": "pyav", "pad": "repeat", "frame_at": 0.5, "frame_selection": "exact", "selective": True}
    decode_shard(
        videos,
        folder / "segments.h5",
        inputs=encoder_spec(name).inputs,
        collection="",
        shard="",
        segments=60,
        workers=os.cpu_count() or 1,
        failures=folder / "failures.tsv",
        **options,
    )
    extract_shard(folder / "segments.h5", folder / "f.h5", encoder=name, weights=str(weights), outputs=["cls"])
    import h5py

    with h5py.File(folder / "f.h5") as file:
        return int(file["num_segments"][:].sum())


def compare(
    what: str, sides: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Print rates of both sides, each run returning its number of frames, and the median of their ratios."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            began = clock()
            frames = int(str(run()))
            rates[name].append(frames / (clock() - began))
    released, own = rates.values()
    ratio = statistics.median(b / a for a, b in zip(released, own, strict=True))
    figures = " | ".join(f"{statistics.median(values):.3g}" for values in rates.values())
    print(f"| {what} | {figures} | {ratio:.2f} |", flush=True)


def rates(count: int) -> None:
    """Print processor seconds of one thread per second of video, for each encoder alone."""
    torch.set_num_threads(1)
    print("| encoder | processor s per second of video |\n|---|---:|")
    for name, spec in ENCODERS.items():
        encoder = load_encoder(name, "random")
        shapes = [i.shape if i.dtype == "uint8" else (i.seconds * i.rate,) for i in spec.inputs]
        windows = [np.ones((count, *shape), i.dtype) for i, shape in zip(spec.inputs, shapes, strict=True)]
        encoder.encode(*(w[:1] for w in windows), outputs=spec.default_outputs)  # the first call is slower
        began = time.process_time()
        encoder.encode(*windows, outputs=spec.default_outputs)
        print(f"| {name} | {(time.process_time() - began) / count:.3g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="of clips, or clips")
    parser.add_argument("--encoder", default="clip_vit_b32", help="one of the CLIP encoders")
    parser.add_argument("--seconds", type=int, default=20, help="length of the clips that are made")
    parser.add_argument("--frames", type=int, default=16, help="of the comparison of the encoders alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", action="store_true", help="only the rates of all encoders alone")
    parser.add_argument("--processes", action="store_true", help="compare commands, from their start to their end")
    parser.add_argument("--way", choices=WAYS, help="run one way on the clips and end")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.rates:
        return rates(args.frames)
    clips = [path for place in args.folders for path in (sorted(place.iterdir()) if place.is_dir() else [place])]
    clips = [path for path in clips if path.is_file()]
    if args.way:
        WAYS[args.way](args.encoder, args.weights).run(clips, args.out)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary), Path(temporary) / "weights.pt"
        torch.manual_seed(0)
        torch.save(open_clip.create_model(encoder_spec(args.encoder).model, load_weights=False).state_dict(), weights)
        clips = clips or made(folder, args.seconds)
        if args.processes:
            return processes(args.encoder, weights, clips, folder, args.rounds)
        released, encoder = Released(args.encoder, weights), load_encoder(args.encoder, str(weights))
        print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
        print(f"| {args.encoder} | released way, frames/s | ours, frames/s | ratio |\n|---|---:|---:|---:|")
        size = encoder.spec.inputs[0].size
        frames = np.random.default_rng(0).integers(0, 256, (args.frames, size, size, 3), dtype="uint8")
        images = [Image.fromarray(frame) for frame in frames]
        sides: dict[str, Callable[[], object]] = {
            "released": lambda: len(released.encode(images)),
            "ours": lambda: len(encoder.encode(frames, outputs=["cls"])["cls"]),
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        compare("encoder alone, frames in memory, per processor second", sides, args.rounds, time.process_time)
        torch.set_num_threads(threads)
        numbers = iter(range(10**6))
        sides = {
            "released": lambda: released.run(clips, folder / str(next(numbers))),
            "ours": lambda: ours(args.encoder, weights, clips, folder / str(next(numbers))),
        }
        compare("files to class tokens; ours starts its encoder and its decoders each time", sides, args.rounds)


if __name__ == "__main__":
    main()
