"""AV-Master against the plain restatement of its formulas: time, peak memory.

    python bench/model.py [--segments 60 --threads N --pairs 5 --batches 1 16 64]

Forward passes at B = 1, 16, 64 and training steps (forward with negatives and dropout, backward, Adam) at B = 16, 64,
full width, float32. Forward passes once for B questions about as many videos, and once for as many videos as B
questions are about in the test sets of MUSIC-AVQA and MUSIC-AVQA-R, which is how `avqa evaluate` goes. The two sides
run in turn; the ratio is the median over pairs, so that whatever else the machine does falls on both. Peak memory:
two training steps in a process of their own, above what the process held before. The plain side is
pipeline/models/av_master/reference.py with PyTorch's Adam as it comes and, as in the released training, three backward
passes; ours is what pipeline/train.py does.
Nothing is run that would need more memory than is free: the plain side's training step at B = 64 takes about 20 GiB,
and where there is less, its peak is extrapolated from smaller batches and its time left out.
On a GPU our side is also timed as a captured graph, the forward pass with and without the compiled loop.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.memory import available_memory  # noqa: E402
from pipeline.models.av_master.model import AVMaster  # noqa: E402
from pipeline.models.av_master.reference import reference_av_master  # noqa: E402
from pipeline.models.base import Batch  # noqa: E402

Run = Callable[[], object]
QUESTIONS_A_VIDEO = {"MUSIC-AVQA": 9129 / 6399, "MUSIC-AVQA-R": 211572 / 6399}


def inputs(batch: int, segments: int, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    video = [(batch, segments, 128), (batch, segments, 768)]
    shapes = [*video, (batch, 77, 768), (batch, 768), *video]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def batch_of(tensors: list[torch.Tensor], **fields: torch.Tensor | None) -> Batch:
    audio, visual, words, sentence, *negatives = tensors
    named = dict(zip(("audio", "visual"), negatives, strict=True)) if negatives else None
    return Batch({"audio": audio, "visual": visual}, {"words": words, "sentence": sentence}, named, **fields)


def forward(side: str, batch: int, segments: int, device: str, videos: int | None = None) -> Run:
    """`videos`: how many the B questions are about; None for one each."""
    torch.manual_seed(0)
    model, x = (
        AVMaster.in_paper_setting(segments).to(device).eval().requires_grad_(False),
        inputs(batch, segments, device)[:4],
    )
    rows = None if videos is None else torch.arange(batch, device=device) * videos // batch
    if side == "plain":
        weights = model.released_state_dict()
        if videos is not None:
            x[:2] = x[0][rows], x[1][rows]
        return torch.no_grad()(lambda: reference_av_master(weights, *x))
    if videos is not None:
        x[:2] = x[0][:videos], x[1][:videos]
    if side.endswith("compiled"):
        model.compile_loop()
    batch_in = batch_of(x, videos=rows)
    run = torch.no_grad()(lambda: model(batch_in))
    return captured(run) if side.startswith("captured") else run


def captured(run: Run) -> Run:
    """The kernels of one run as a CUDA graph, replayed on the same inputs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def training(side: str, batch: int, segments: int, device: str) -> Run:
    torch.manual_seed(0)
    model, x = AVMaster.in_paper_setting(segments).to(device), inputs(batch, segments, device)
    answers = torch.zeros(batch, dtype=torch.long, device=device)
    if side != "plain":
        capturable = side == "captured"  # then its step count is on the GPU too
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True, capturable=capturable)
        batch_in = batch_of(x, answer=answers)

        def backward() -> None:
            model.loss(model(batch_in), batch_in)[0].backward()
    else:
        weights = {name: tensor.requires_grad_() for name, tensor in model.released_state_dict().items()}
        del model
        optimizer = torch.optim.Adam(weights.values(), lr=1e-4)

        def backward() -> None:
            out = reference_av_master(weights, *x, dropout=0.1)
            losses = [torch.nn.functional.cross_entropy(y, answers) for y in (out.fused, out.audio, out.visual)]
            (losses[0] + out.contrastive_loss).backward(retain_graph=True)
            losses[1].backward(retain_graph=True)
            losses[2].backward()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        backward()
        optimizer.step()

    return captured(step) if side == "captured" else step


def seconds(run: Run) -> float:
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def pairs(
    make: Callable[..., Run], sides: list[str], batch: int, segments: int, count: int, device: str, **options
) -> dict:
    """Median seconds of each side, and the median over pairs of the first side's time to the others'."""
    runs = {side: make(side, batch, segments, device, **options) for side in sides}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(count):
        for side, run in runs.items():
            times[side].append(seconds(run))
    result = {"batch": batch, **options, **{side: statistics.median(t) for side, t in times.items()}}
    for side in sides[1:]:
        result[f"{side} ratio"] = statistics.median(a / b for a, b in zip(times[sides[0]], times[side], strict=True))
    return result


def peak(side: str, batch: int, segments: int, device: str) -> float:
    """GiB that two training steps need at most, weights and Adam's state included."""
    if device == "cuda":
        run = training(side, batch, segments, device)
        run(), run()
        return torch.cuda.max_memory_allocated() / 2**30
    before = resident_peak()
    run = training(side, batch, segments, device)
    run(), run()
    return resident_peak() - before


def resident_peak() -> float:
    """GiB. Not getrusage's ru_maxrss, which a process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def peak_elsewhere(side: str, batch: int, args: argparse.Namespace) -> float:
    """`peak` in a process of its own."""
    command = [sys.executable, __file__, "--peak", side, "--batch", str(batch), "--segments", str(args.segments)]
    done = subprocess.run([*command, "--threads", str(args.threads)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"peak memory of {side} at B = {batch} was not measured:\n{done.stderr}")
    return float(done.stdout)


def memory(args: argparse.Namespace, device: str) -> dict[int, dict]:
    """Peak memory of both sides at each training batch; linear in the batch where there is too little to try."""
    rows: dict[int, dict] = {}
    for batch in sorted({8, 16, *args.batches} - {1}):
        row: dict[str, object] = {"batch": batch}
        for side in ("plain", "ours"):
            expected, known = 0.0, [(b, rows[b][side]) for b in rows]
            if len(known) > 1:
                (b0, m0), (b1, m1) = known[-2:]
                expected = m1 + (m1 - m0) / (b1 - b0) * (batch - b1)
            if expected > 0.8 * free_memory(device):
                row[side], row[f"{side} extrapolated"] = expected, True
            else:
                row[side] = peak_elsewhere(side, batch, args)
        rows[batch] = row
        print("peak GiB", json.dumps(row), flush=True)
    return rows


def free_memory(device: str) -> float:
    return (torch.cuda.mem_get_info()[0] if device == "cuda" else available_memory()) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=60)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--peak", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.peak:
        print(peak(args.peak, args.batch, args.segments, device))
        return
    name = torch.cuda.get_device_name() if device == "cuda" else f"{args.threads} CPU threads, {platform.machine()}"
    print(f"{name}; torch {torch.__version__}; T = {args.segments}, float32; load {os.getloadavg()[0]:.1f}", flush=True)
    sides = ["plain", "ours"] + (["compiled", "captured", "captured compiled"] if device == "cuda" else [])
    steps = ["plain", "ours"] + (["captured"] if device == "cuda" else [])
    # First what needs the most memory, as long as nothing is held by what ran before.
    peaks = memory(args, device)
    for batch in [b for b in args.batches if b > 1]:
        if peaks[batch]["plain"] > 0.8 * free_memory(device):
            row = pairs(training, steps[1:], batch, args.segments, max(2, args.pairs // 2), device)
        else:
            row = pairs(training, steps, batch, args.segments, max(2, args.pairs // 2), device)
        print("training", json.dumps(row), flush=True)
    for batch in args.batches:
        row = pairs(forward, sides, batch, args.segments, args.pairs, device)
        print("forward", json.dumps(row), flush=True)
    for name, questions in QUESTIONS_A_VIDEO.items():
        for batch in [b for b in args.batches if b > 1]:
            videos = math.ceil(batch / questions)
            row = pairs(forward, sides, batch, args.segments, args.pairs, device, videos=videos)
            print(f"forward as in {name}'s test set", json.dumps(row), flush=True)
    print(f"load at the end {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
