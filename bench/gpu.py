"""Speed on this machine's GPU (or CPU) of encoders, extraction and AV-Master, beside what the machine can do.

    python bench/gpu.py                       # at most 8 minutes; writes bench/RESULTS_GPU.md, without a GPU empty rows
    python bench/gpu.py --wheels FOLDER       # a bare machine: PyTorch, timm and h5py are there, the rest is in FOLDER
    python bench/gpu.py --small --out FILE    # a quick check of the script

First the machine: the rate of a bfloat16 matrix product and of copies. Then the figures of the table `ROWS` and all
encoders, each at the best of a few ways to run it. Operations are counted (multiply and add are two); "of the limit" is
the share of the measured matrix product. Weights are seeded random numbers, which are as fast as others. What cannot be
measured, for want of a library, memory or time, has a row that says why. No figure is taken from another machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
MINUTES = 8.0
PRODUCT = "matrix product, bfloat16"
COPIES = ("copy to the device, pinned", "copy to the host, pinned", "copy on the device")
START = "start of a job"
EXTRACTION = "extraction, files to files, class tokens"
WITH_PATCHES = "extraction, files to files, class and patch tokens"
FORWARD = "AV-Master, forward, B = 1"
TRAINING = "AV-Master, training step, B = 64"
DECODING = "decoding on all cores, H.264 360p"
END_TO_END = "video files to class tokens, end to end"
NVDEC = "nvdec, one process"
NVDEC_DIFFERENCE = "nvdec, difference from the exact frames"


def alone(encoder: str) -> str:
    """The row of an encoder."""
    return f"{encoder}, encoder alone, input on the device"


# The rows and their goals; one row for each of the other encoders follows.
ROWS = {
    PRODUCT: "",
    **dict.fromkeys(COPIES, ""),
    alone("clip_vit_l14"): "3,000 frames/s; far aim: 75% of the limit",
    alone("clip_vit_l14_336"): "1,200 frames/s",
    alone("vggish"): "20,000 seconds/s",
    START: "at most 15% of a job of 128 videos of 60 s",
    EXTRACTION: "",
    WITH_PATCHES: "",
    FORWARD: "20 times the plain restatement",
    TRAINING: "10 times the plain restatement",
    DECODING: "",
    END_TO_END: "430 video seconds/s on 16 cores",
    NVDEC: "",
    NVDEC_DIFFERENCE: "",
}


@dataclass
class Sizes:
    """How much is measured."""

    matrix: int = 8192
    copied: int = 2**30  # bytes
    main: str = "clip_vit_l14"  # the encoder of the start-up and extraction rows
    encoders: tuple[str, ...] = ()  # empty: all
    batches: tuple[int, ...] = (64, 256)
    audio_batches: tuple[int, ...] = (256, 2048)
    videos: tuple[int, int] = (8, 40)  # in two shards, whose difference in time is free of the start
    seconds: int = 60
    training_batch: int = 64
    rounds: int = 5
    compiled: bool = True


SMALL = Sizes(256, 2**20, "clip_vit_b32", ("clip_vit_b32", "vggish"), (2,), (2,), (1, 2), 2, 2, 1, False)


@dataclass
class Table:
    """Rows of the report; `limit` is the machine's product rate in TFLOP/s once it is measured."""

    end: float  # time after which nothing is begun
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    limit: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)  # of encoders, seconds of video per second

    def add(self, what: str, figure: str, share: str = "") -> None:
        goal = ROWS.get(what, "")
        self.rows.append((what, figure, goal, share))
        print(f"{what}: {figure}" + (f" (goal {goal})" if goal else "") + (f", {share} of the limit" if share else ""))
        sys.stdout.flush()

    def measure(self, what: str, run: Callable[[], None]) -> None:
        """Run a measurement that adds rows; where it cannot be made, the row says why."""
        if time.monotonic() > self.end:
            return self.add(what, "not measured: no time left")
        try:
            run()
        except ImportError as error:
            self.add(what, f"not measured: {error}")
        except torch.OutOfMemoryError:
            self.add(what, "not measured: out of memory")
        except Exception as error:  # one figure must not cost the others
            self.add(what, f"not measured: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
        finally:
            if CUDA:
                torch.cuda.empty_cache()

    def share(self, flops: float, rate: float) -> str:
        """`rate` runs per second of `flops` operations, as a share of the limit."""
        return f"{flops * rate / 1e12 / self.limit:.0%}" if self.limit else ""


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a run, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        if CUDA:
            torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def machine(table: Table, sizes: Sizes) -> None:
    n = sizes.matrix
    a, b = torch.randn(2, n, n, dtype=torch.bfloat16, device=DEVICE)
    table.limit = 2 * n**3 / seconds(lambda: a @ b, 4 * sizes.rounds) / 1e12
    table.add(PRODUCT, f"{table.limit:.3g} TFLOP/s, {n} by {n}")
    host = torch.zeros(sizes.copied, dtype=torch.uint8, pin_memory=CUDA)
    there = torch.zeros(sizes.copied, dtype=torch.uint8, device=DEVICE)
    other = torch.zeros_like(there)
    runs = (
        lambda: there.copy_(host, non_blocking=True),
        lambda: host.copy_(there, non_blocking=True),
        lambda: other.copy_(there),
    )
    for what, run in zip(COPIES, runs, strict=True):
        table.add(what, f"{sizes.copied / seconds(run, sizes.rounds) / 1e9:.3g} GB/s")


def windows(spec: Any, count: int) -> list[torch.Tensor]:
    """Random input of an encoder, on the device."""
    return [
        torch.randint(0, 256, (count, *i.shape), dtype=torch.uint8, device=DEVICE)
        if i.dtype == "uint8"
        else torch.randn(count, i.seconds * i.rate, device=DEVICE) / 5
        for i in spec.inputs
    ]


def operations(encoder: Any) -> float:
    """Floating-point operations of one window, counted on PyTorch's operators without its fused attention layer."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            encoder.encode(*windows(encoder.spec, 1))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def ways(encoder: Any, sizes: Sizes) -> Iterator[tuple[str, Callable[..., object]]]:
    """Names and functions of the ways in which an encoder can be run; each sets up what it needs when it is reached."""
    yield "as it is", encoder.encode
    torch.backends.mha.set_fastpath_enabled(False)
    yield "plain attention layers", encoder.encode
    torch.backends.mha.set_fastpath_enabled(True)
    if any(module.__class__.__name__ == "Conv2d" for module in encoder.network.modules()):
        encoder.network.to(memory_format=torch.channels_last)
        yield "channels last", encoder.encode
    if sizes.compiled:
        torch.backends.mha.set_fastpath_enabled(False)
        yield "compiled", torch.compile(encoder.encode)
        torch.backends.mha.set_fastpath_enabled(True)


def encoder_rate(table: Table, name: str, sizes: Sizes, compiled: bool = False) -> None:
    from extractors import load_encoder

    encoder = load_encoder(name, "random", dtype="bfloat16")
    audio = encoder.spec.inputs[0].dtype != "uint8"
    flops, best = operations(encoder), (0.0, "")
    several = Sizes(**{**vars(sizes), "compiled": compiled and sizes.compiled})
    for way, run in ways(encoder, several):
        for batch in sizes.audio_batches if audio else sizes.batches:
            given = windows(encoder.spec, batch)
            try:
                best = max(best, (batch / seconds(lambda: run(*given), sizes.rounds), f"{way}, batch {batch}"))  # noqa: B023
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        if time.monotonic() > table.end:
            break
    torch.backends.mha.set_fastpath_enabled(True)
    rate, way = best
    table.rates[name] = rate
    figure = f"{rate:.4g} seconds of video/s ({flops / 1e9:.4g} GFLOP each; {way})"
    table.add(alone(name), figure, table.share(flops, rate))


def saved_weights(name: str, folder: Path) -> Path:
    """A weights file of random numbers, as it would be published."""
    import safetensors.torch

    from extractors import load_encoder

    path = folder / f"{name}.safetensors"
    if not path.exists():
        encoder = load_encoder(name, "random", dtype="float32")
        state = {key: tensor.contiguous().cpu() for key, tensor in encoder.network.state_dict().items()}
        safetensors.torch.save_file(state, path)
    return path


def start(table: Table, sizes: Sizes, folder: Path) -> None:
    """A job's imports and its encoder from a file in the page cache, in a process of its own."""
    path = saved_weights(sizes.main, folder)
    code = (
        "import time; t = time.perf_counter(); import torch; import extractors, pipeline.extract; "
        f"import {module_of(sizes.main)}; u = time.perf_counter(); "
        f"extractors.load_encoder({sizes.main!r}, {str(path)!r}); "
        "torch.cuda.is_available() and torch.cuda.synchronize(); print(u - t, time.perf_counter() - u)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    if done.returncode:
        raise ImportError(done.stderr.strip().splitlines()[-1])
    imports, weights = map(float, done.stdout.split()[-2:])
    figure = f"{sizes.main}: imports {imports:.2f} s, weights {weights:.2f} s"
    if sizes.main in table.rates:
        work = 128 * 60 / table.rates[sizes.main]
        figure += f"; {(imports + weights) / (imports + weights + work):.1%} of such a job at the rate above"
    table.add(START, figure)


def module_of(name: str) -> str:
    from extractors import encoder_spec

    return encoder_spec(name).loader.partition(":")[0]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def extraction(table: Table, sizes: Sizes, folder: Path) -> None:
    """`avqa extract` from a segments file to a features file: reading, encoding, writing."""
    import numpy as np

    from extractors import encoder_spec
    from pipeline.extract import extract_shard
    from pipeline.storage.contract import PER_VIDEO, DatasetSpec
    from pipeline.storage.hdf5 import ShardWriter

    spec, path = encoder_spec(sizes.main), saved_weights(sizes.main, folder)
    (frames,) = spec.inputs
    layout = {frames.key: DatasetSpec((sizes.seconds, *frames.shape), "uint8", (1, *frames.shape))}
    layout |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    attributes = {"kind": "segments", "collection": "", "shard": "", "source": "", "config": {"pad": "repeat"}}
    rows = np.random.default_rng(0).integers(0, 256, (sizes.seconds, *frames.shape), dtype="uint8")
    for count in sizes.videos:
        ids = {"video_id": [f"v{n}" for n in range(count)]}
        with ShardWriter(folder / f"{count}.h5", count, layout, attributes, ids) as writer:
            for n in range(count):
                row = {"num_segments": sizes.seconds, "has_audio": False, "status": 0}
                writer.write(n, {frames.key: rows, **row})
    for what, outputs in {EXTRACTION: ["cls"], WITH_PATCHES: ["cls", "patch"]}.items():
        times = []
        for count in sizes.videos:
            began = time.perf_counter()
            extract_shard(
                folder / f"{count}.h5",
                folder / f"{count}-{len(outputs)}.h5",
                encoder=sizes.main,
                weights=str(path),
                outputs=outputs,
            )
            times.append(time.perf_counter() - began)
            (folder / f"{count}-{len(outputs)}.h5").unlink()
        rate = (sizes.videos[1] - sizes.videos[0]) * sizes.seconds / (times[1] - times[0])
        table.add(
            what,
            f"{sizes.main}: {rate:.4g} seconds of video/s after the start; {sizes.videos[1]} videos with it: "
            f"{times[1]:.2f} s",
        )


def made_clip(folder: Path, seconds: int) -> Path:
    import imageio_ffmpeg

    clip = folder / "clip.mp4"
    if not clip.exists():
        source = f"testsrc2=s=640x360:r=30:d={seconds},noise=alls=8:allf=t"
        options = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p", str(clip)]
        ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, *options]
        subprocess.run(ffmpeg, check=True)
    return clip


def gpu_decoding(table: Table, sizes: Sizes, folder: Path) -> None:
    """The backend nvdec beside the exact frames, on one clip: rate, pixels, features."""
    from extractors import load_encoder
    from pipeline.media.segments import read_segments

    clip, encoder = made_clip(folder, sizes.seconds), load_encoder(sizes.main, "random", dtype="float32")
    (wanted,) = encoder.spec.inputs
    read = {}

    def decode(backend: str) -> None:
        read[backend] = read_segments(clip, segments=sizes.seconds, inputs=(wanted,), backend=backend).data[wanted.key]

    rates = {backend: sizes.seconds / seconds(lambda b=backend: decode(b), 3) for backend in ("pyav", "nvdec")}
    table.add(NVDEC, f"{rates['nvdec']:.4g} seconds of video/s; exact frames {rates['pyav']:.4g}")
    different = abs(read["nvdec"].astype(int) - read["pyav"])
    cls = [encoder.encode(read[backend])["cls"] for backend in ("pyav", "nvdec")]
    same = torch.cosine_similarity(*cls)
    table.add(
        NVDEC_DIFFERENCE,
        f"{(different > 0).mean():.1%} of the encoder's input values, at most {different.max()} of 255; cosine of the "
        f"class tokens {same.mean():.5f}, least {same.min():.5f} (random weights)",
    )


def from_files(table: Table, sizes: Sizes, folder: Path) -> None:
    """Video files to features: decoding on all cores, then the encoder."""
    from extractors import encoder_spec
    from pipeline.decode import decode_shard
    from pipeline.extract import extract_shard
    from pipeline.storage.shard_list import Video

    clip = made_clip(folder, sizes.seconds)
    count, workers = 4 * sizes.videos[0], os.cpu_count() or 1
    info = clip.stat()
    videos = [Video(f"v{n}", str(clip), info.st_size, info.st_mtime_ns) for n in range(count)]
    began = time.perf_counter()
    decode_shard(
        videos,
        folder / "segments.h5",
        inputs=encoder_spec(sizes.main).inputs,
        collection="",
        shard="",
        segments=sizes.seconds,
        backend="pyav",
        pad="repeat",
        frame_at=0.5,
        frame_selection="exact",
        selective=True,
        workers=workers,
        failures=folder / "failures.tsv",
    )
    decoded = time.perf_counter()
    out, path = folder / "features.h5", saved_weights(sizes.main, folder)
    extract_shard(folder / "segments.h5", out, encoder=sizes.main, weights=str(path), outputs=["cls"])
    ended = time.perf_counter()
    total = count * sizes.seconds
    table.add(DECODING, f"{total / (decoded - began):.4g} seconds of video/s, {workers} processes")
    figure = f"{sizes.main}: {total / (ended - began):.4g} seconds of video/s, one stage after the other, with starts"
    table.add(END_TO_END, figure)


def av_master(table: Table, sizes: Sizes) -> None:
    """Through bench/model.py, which has both sides."""
    spec = importlib.util.spec_from_file_location("bench_model", ROOT / "bench/model.py")
    model: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    segments = sizes.seconds
    sides = ["plain", "ours", *(["captured", "captured compiled"] if CUDA and sizes.compiled else [])]
    times = {side: seconds(model.forward(side, 1, segments, DEVICE), sizes.rounds) for side in sides}
    best = min((time, side) for side, time in times.items() if side != "plain")
    figure = f"{best[0] * 1e3:.3g} ms ({best[1]}), {times['plain'] / best[0]:.3g} times the plain restatement"
    table.add(FORWARD, figure)
    batch, rounds = sizes.training_batch, max(1, sizes.rounds // 2)
    sides = ["plain", "ours", *(["captured"] if CUDA and sizes.compiled else [])]
    times = {side: seconds(model.training(side, batch, segments, DEVICE), rounds) for side in sides}
    figures = [f"{side} {times[side] * 1e3:.3g} ms, {times['plain'] / times[side]:.3g} times" for side in sides[1:]]
    table.add(TRAINING, "; ".join(figures) + ("" if batch == 64 else f" (B = {batch})"))


NO_GPU = (
    "No GPU was available, so the rows are empty; nothing is estimated. `python bench/gpu.py` on a machine with one\n"
    "fills them in at most 8 minutes. It has run on a CPU only, as a test."
)


def write(table: Table, out: Path, name: str, took: float) -> None:
    measured = (
        f"`python bench/gpu.py`, {name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} CPU "
        f"cores, {took:.0f} s in all. Weights are seeded random numbers. Written by the script; nothing is estimated."
    )
    lines = [
        "# Speed of bench/gpu.py's rows on a CPU" if table.limit and not CUDA else "# Speed on a GPU",
        "",
        measured if table.limit else NO_GPU,
        "",
        "| what | measured | goal | of the limit |",
        "|---|---|---|---:|",
        *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table.rows),
    ]
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def use_wheels(wheels: Path, folder: Path) -> None:
    """Unpack wheels where this process and those that it starts find them; the Python that runs this stays as it is."""
    names = [str(path) for path in sorted(wheels.glob("*.whl"))]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        str(folder),
        *names,
    ]
    subprocess.run(pip, check=True)
    sys.path.append(str(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few and small measurements, for a test")
    parser.add_argument("--wheels", type=Path, help="folder of wheels of the libraries that are not installed")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/RESULTS_GPU.md")
    args = parser.parse_args()
    sizes, began = SMALL if args.small else Sizes(), time.monotonic()
    name = torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU"
    print(f"{name}, PyTorch {torch.__version__}", flush=True)
    table = Table(began + 60 * (MINUTES - 1.5))  # what is begun last must end too
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.wheels:
            use_wheels(args.wheels, folder / "wheels")
        from extractors import ENCODERS

        names = [name for name in sizes.encoders or ENCODERS]
        others = [name for name in names if alone(name) not in ROWS]
        if not CUDA and not args.small:
            for row in (*ROWS, *map(alone, others)):
                table.add(row, "–")
            return write(table, args.out, name, 0)
        table.measure(PRODUCT, lambda: machine(table, sizes))
        for encoder in [name for name in names if name not in others]:
            table.measure(alone(encoder), lambda e=encoder: encoder_rate(table, e, sizes, compiled=True))
        table.measure(START, lambda: start(table, sizes, folder))
        table.measure(EXTRACTION, lambda: extraction(table, sizes, folder))
        table.measure(FORWARD, lambda: av_master(table, sizes))
        table.measure(END_TO_END, lambda: from_files(table, sizes, folder))
        if CUDA:
            table.measure(NVDEC, lambda: gpu_decoding(table, sizes, folder))
        for encoder in others:
            table.measure(alone(encoder), lambda e=encoder: encoder_rate(table, e, sizes))
        write(table, args.out, name, time.monotonic() - began)


if __name__ == "__main__":
    main()
