"""Every model against its own plain form: forward passes and training steps.

    python bench/models.py [--models pstp_net avst --batches 1 16 64 --pairs 3 --threads N]

In the papers' shapes, float32, random features. Plain is the same model with `train.fast: false`: PyTorch's own layers
one by one, as the papers and the released code have them. The two sides run in turn, and the ratio is the median over
pairs, so that whatever else the machine does falls on both; under 1, ours is faster. bench/model.py compares AV-Master
with a restatement of its equations. What does not fit in memory is left out. Beside the times: the multiply-adds of the
released code by the field's counter, and those that ours executes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.models import MODELS, complexity, fast, model_class  # noqa: E402
from pipeline.models.base import AVQAModel, Batch, example_batch  # noqa: E402
from pipeline.models.settings import TOKENS  # noqa: E402
from pipeline.train import frozen  # noqa: E402

BYTES_PER_STEP = 40  # memory of a training step, at most so many times that of its features


def random_batch(model: AVQAModel, size: int) -> Batch:
    """Random features and tokens in the shapes of a model."""
    generator, batch = torch.Generator().manual_seed(size), example_batch(model, size)
    for tensors in (batch.features, batch.texts):
        for name, x in tensors.items():
            if name in TOKENS:
                tensors[name] = torch.randint(1, model.num_tokens, x.shape, generator=generator)
            elif name == "length":
                tensors[name] = torch.full(x.shape, 12)
            else:
                tensors[name] = torch.randn(x.shape, generator=generator)
    batch.answer = torch.randint(model.num_answers, (size,), generator=generator)
    return batch


def forward(model: AVQAModel, batch: Batch) -> float:
    with torch.inference_mode(), frozen(model):
        started = time.perf_counter()
        model(batch)
        return time.perf_counter() - started


def training_step(model: AVQAModel, batch: Batch) -> float:
    model.train()
    if model.needs_negatives:
        batch.negatives = {name: x.flip(0) for name, x in batch.features.items()}
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    started = time.perf_counter()
    model.loss(model(batch), batch)[0].backward()
    optimizer.step()
    return time.perf_counter() - started


def compare(name: str, size: int, pairs: int) -> dict:
    """Median seconds of ours, and of ours to plain, for both kinds of run."""
    model = model_class(name).in_paper_setting()
    row: dict[str, object] = {"model": name, "batch": size}
    for run in (forward, training_step):
        times: dict[bool, list[float]] = {True: [], False: []}
        for n in range(pairs + 1):
            for quick in (True, False):
                with fast.switched(quick):
                    seconds = run(model, random_batch(model, size))
                if n:  # the first one warms up
                    times[quick].append(seconds)
        row[run.__name__] = round(statistics.median(times[True]), 4)
        row[f"{run.__name__} to plain"] = round(
            statistics.median(a / b for a, b in zip(times[True], times[False], strict=True)), 3
        )
    return row


def fits(name: str, size: int) -> bool:
    shapes = model_class(name).Settings.features.values()
    return BYTES_PER_STEP * size * 4 * sum(torch.Size(s).numel() for s in shapes) < psutil.virtual_memory().available


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} CPU threads, {platform.machine()}; torch {torch.__version__}; load {os.getloadavg()[0]:.1f}")
    for name in args.models:
        model = model_class(name).in_paper_setting()
        by_field, own = complexity.field_count(model).macs, complexity.executed(model).macs
        operations = {"model": name, "GMACs by convention": round(by_field / 1e9, 3), "executed": round(own / 1e9, 3)}
        print(json.dumps(operations), flush=True)
        for size in args.batches:
            row = compare(name, size, args.pairs) if fits(name, size) else {"model": name, "batch": size, "fits": False}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
