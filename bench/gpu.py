"""Speed on this machine's GPU (or CPU) of encoders, extraction and AV-Master, beside what the machine can do.

    python bench/gpu.py                       # at most 8 minutes; writes bench/RESULTS_GPU.md
    python bench/gpu.py --wheels FOLDER       # a bare machine: PyTorch, timm and h5py are there, the rest is in FOLDER
    python bench/gpu.py --small --out FILE    # a quick check of the script

First the machine: the rate of a bfloat16 matrix product and of copies. Then the figures of the table `GOALS` and all
encoders, each at the best of a few ways to run it. Operations are counted (multiply and add are two); "of the limit" is
the share of the measured matrix product. Weights are seeded random numbers, which are as fast as others. What cannot be
measured, for want of a library, memory or time, has an empty row that says why. No figure is calculated from another
machine's.
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
    rounds: int = 5
    compiled: bool = True


SMALL = Sizes(256, 2**20, "clip_vit_b32", ("clip_vit_b32", "vggish"), (2,), (2,), (1, 2), 2, 1, False)


@dataclass
class Table:
    """Rows of the report; `limit` is the machine's product rate in TFLOP/s once it is measured."""

    end: float  # time after which nothing is begun
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    limit: float = 0.0

    def add(self, what: str, figure: str, goal: str = "", share: str = "") -> None:
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
    table.add(f"matrix product, bfloat16, {n}", f"{table.limit:.3g} TFLOP/s")
    host = torch.zeros(sizes.copied, dtype=torch.uint8, pin_memory=CUDA)
    there = torch.zeros(sizes.copied, dtype=torch.uint8, device=DEVICE)
    other = torch.zeros_like(there)
    for what, run in {
        "copy to the device, pinned": lambda: there.copy_(host, non_blocking=True),
        "copy to the host, pinned": lambda: host.copy_(there, non_blocking=True),
        "copy on the device": lambda: other.copy_(there),
    }.items():
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


def encoder_rate(table: Table, name: str, sizes: Sizes, goal: str = "", compiled: bool = False) -> None:
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
    figure = f"{rate:.4g} seconds of video/s ({flops / 1e9:.4g} GFLOP each; {way})"
    table.add(f"{name}, encoder alone, input on the device", figure, goal, table.share(flops, rate))


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
    table.add(f"{sizes.main}, start of a job", f"imports {imports:.2f} s, weights {weights:.2f} s")


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
    for outputs in (["cls"], ["cls", "patch"]):
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
            f"{sizes.main}, extraction of {' and '.join(outputs)}, files to files",
            f"{rate:.4g} seconds of video/s after the start; {sizes.videos[1]} videos with it: {times[1]:.2f} s",
        )


def from_files(table: Table, sizes: Sizes, folder: Path) -> None:
    """Video files to features: decoding on all cores, then the encoder."""
    import imageio_ffmpeg

    from extractors import encoder_spec
    from pipeline.decode import decode_shard
    from pipeline.extract import extract_shard
    from pipeline.storage.shard_list import Video

    clip = folder / "clip.mp4"
    source = f"testsrc2=s=640x360:r=30:d={sizes.seconds},noise=alls=8:allf=t"
    options = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "24", "-pix_fmt", "yuv420p", str(clip)]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", source, *options]
    subprocess.run(ffmpeg, check=True)
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
    table.add(f"decoding, {workers} processes, H.264 360p", f"{total / (decoded - began):.4g} seconds of video/s")
    figure = f"{total / (ended - began):.4g} seconds of video/s, one stage after the other, starts included"
    table.add(f"files to {sizes.main} class tokens, end to end", figure, "430")


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
    table.add("AV-Master, forward, B = 1", figure, "20 times")
    batch = 64 if sizes.matrix > 1000 else 2
    steps = [
        seconds(model.training(side, batch, segments, DEVICE), max(1, sizes.rounds // 2)) for side in ("plain", "ours")
    ]
    figure = f"{steps[1] * 1e3:.3g} ms, {steps[0] / steps[1]:.3g} times the plain restatement"
    table.add(f"AV-Master, training step, B = {batch}", figure, "10 times")


def write(table: Table, out: Path, name: str, took: float) -> None:
    lines = [
        "# Speed on a GPU" if CUDA else "# Speed of bench/gpu.py's rows on a CPU",
        "",
        f"`python bench/gpu.py`, {name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {os.cpu_count()} CPU "
        f"cores, {took:.0f} s in all. Weights are seeded random numbers. Written by the script; nothing is estimated.",
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
    if not CUDA and not args.small:
        parser.error("no GPU is visible to PyTorch; --small runs on a CPU")
    sizes, began = SMALL if args.small else Sizes(), time.monotonic()
    name = torch.cuda.get_device_name() if CUDA else f"{platform.machine()} CPU"
    print(f"{name}, PyTorch {torch.__version__}", flush=True)
    table = Table(began + 60 * (MINUTES - 1.5))  # what is begun last must end too
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.wheels:
            use_wheels(args.wheels, folder / "wheels")
        from extractors import ENCODERS

        table.measure("matrix product and copies", lambda: machine(table, sizes))
        goals = {"clip_vit_l14": "3,000", "clip_vit_l14_336": "1,200", "vggish": "20,000"}
        for encoder in [e for e in goals if e in (sizes.encoders or goals)]:
            table.measure(encoder, lambda e=encoder: encoder_rate(table, e, sizes, goals[e], compiled=True))
        table.measure("start of a job", lambda: start(table, sizes, folder))
        table.measure("extraction", lambda: extraction(table, sizes, folder))
        table.measure("AV-Master", lambda: av_master(table, sizes))
        table.measure("end to end from files", lambda: from_files(table, sizes, folder))
        for encoder in [e for e in sizes.encoders or ENCODERS if e not in goals]:
            table.measure(encoder, lambda e=encoder: encoder_rate(table, e, sizes))
        write(table, args.out, name, time.monotonic() - began)


if __name__ == "__main__":
    main()
