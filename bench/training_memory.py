"""The memory that training takes per second of video in a batch, of each model with its paper's sizes, on the CPU.

    python bench/training_memory.py [--models av_master mcd --batches 16 64]

Features of random numbers, two steps per batch size, each in a process of its own. Printed: the peak of the process
when its features are loaded and after the steps, and their difference per second of video, the `training_mb` of
pipeline/models/<model>/config.py.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from reading_patches import ENCODERS, make_data

from pipeline.config import check_config
from pipeline.models import MODELS, settings_class
from pipeline.train import Trainer, of_one_model

STEPS, SECONDS = 2, 60  # steps per batch size, seconds of a video


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--folder", type=Path, help="with the data of one model and batch size: measure only")
    args = parser.parse_args()
    if args.folder:
        return measure(args.folder, args.models[0], args.batches[0])
    print(f"{'model':10} batch  loaded MB  peak MB  MB per second of video")
    for model, batch in itertools.product(args.models, args.batches):
        with tempfile.TemporaryDirectory() as folder:
            make_data(Path(folder), STEPS * batch, settings_class(model))
            command = [sys.executable, __file__, "--models", model, "--batches", str(batch), "--folder", folder]
            subprocess.run(command, check=True)


def measure(folder: Path, model: str, batch: int) -> None:
    """Print one line; a process's peak never falls, hence one process for each."""
    entry = {"architecture": model} | {name: ENCODERS[name] for name in settings_class(model).features}
    config = {"dataset": "d", "results": str(folder), "models": {model: entry}, "train": {"batch_size": batch}}
    config = check_config(config, "benchmark", ("dataset", "models"))
    trainer = Trainer(of_one_model(config, model), model, 0, folder / "run")
    loaded = peak()
    trainer.train_on_all(1)
    seconds = batch * SECONDS
    print(f"{model:10} {batch:5}  {loaded:9.0f}  {peak():7.0f}  {(peak() - loaded) / seconds:.2f}", flush=True)


def peak() -> float:
    """MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
