"""How long a training step waits for patch features that are larger than memory.

    python bench/reading_patches.py [--model pstp_net --batch 64 --steps 8 --memory 0.25 --workers 1 2 4 --folder DIR]

Features of random numbers in the shapes of the model's paper, one question per video, and a memory limit: the readers
may keep only a part of the patch features (`--memory`, the share), and the system's cache is emptied of each video's
bytes right before they are read, so that all others come from the disk. One epoch of `steps` steps per number of
workers. Printed: seconds per step, the share of it in which no batch was ready, and bytes per step from the disk; then,
by calculation from these bytes and the step's own time, the share for disks of 0.5 and 3 GB/s: reading runs beside
the step, so that only what takes longer than the step is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline.config import check_config  # noqa: E402
from pipeline.data import features  # noqa: E402
from pipeline.index import build_index  # noqa: E402
from pipeline.models import settings_class  # noqa: E402
from pipeline.models.settings import TOKENS, ModelSettings  # noqa: E402
from pipeline.numbering import number  # noqa: E402
from pipeline.storage.contract import PER_VIDEO, DatasetSpec  # noqa: E402
from pipeline.storage.features import FeatureIndex, _byte_ranges  # noqa: E402
from pipeline.storage.hdf5 import ShardWriter  # noqa: E402
from pipeline.storage.shard_list import Video, digest, write_shard_list  # noqa: E402
from pipeline.train import Trainer, of_one_model  # noqa: E402

SHARD, TEXTS, DISKS = 64, 16, (0.5, 3.0)  # videos, questions, GB/s
ENCODERS = {
    "audio": "vggish/embedding",
    "visual": "clip_vit_b32/cls",
    "patch": "clip_vit_b32/patch",
    "map": "resnet18/map",
}
MADE_WITH = {"weights": "random", "weights_sha256": "0", "pretrained": False, "config": {}}


def make_data(folder: Path, videos: int, settings: type[ModelSettings]) -> None:
    """The data set `d` of the collection `c`."""
    rng = np.random.default_rng(0)
    names = [f"v{n}" for n in range(videos)]
    shards = [names[start : start + SHARD] for start in range(0, videos, SHARD)]
    digests = {}
    for k, ids in enumerate(shards):
        listed = [Video(v, f"{v}.mp4", 1, 1) for v in ids]
        write_shard_list(folder / "c" / "shards" / f"{k:05d}.tsv", listed)
        source = digests[f"{k:05d}"] = digest(listed)
        by_encoder: dict[str, dict[str, DatasetSpec]] = {}
        for name, shape in settings.features.items():
            spec = DatasetSpec(shape, "float16", (1, *shape[1:]) if len(shape) > 2 else None)
            by_encoder.setdefault(ENCODERS[name].split("/")[0], {})[ENCODERS[name]] = spec
        for encoder, specs in by_encoder.items():
            path = folder / "c" / "features" / encoder / f"{k:05d}.h5"
            attributes = MADE_WITH | {"kind": "features", "collection": "c", "shard": f"{k:05d}", "encoder": encoder}
            attributes["source"] = source
            per_video = {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
            with ShardWriter(path, len(ids), specs | per_video, attributes, {"video_id": ids}) as writer:
                for n in range(len(ids)):
                    row: dict[str, object] = {"num_segments": 60, "has_audio": True, "status": 0}
                    writer.write(n, row | {name: rng.random(s.shape, np.float32) for name, s in specs.items()})
    texts = [f"Is the {n} it?" for n in range(TEXTS)]
    specs = {name: DatasetSpec(s, "float16") for name, s in settings.texts.items() if name not in TOKENS}
    attributes = MADE_WITH | {"kind": "text", "dataset": "d", "shard": "", "encoder": "clip_vit_b32"}
    specs["length"] = DatasetSpec((), "int32")
    with ShardWriter(folder / "d" / "text" / "clip_vit_b32.h5", TEXTS, specs, attributes, {"text": texts}) as writer:
        writer.write(slice(0, TEXTS), {name: rng.random((TEXTS, *spec.shape)) for name, spec in specs.items()})
    table = {"split": "train", "video_id": names, "question": [texts[n % TEXTS] for n in range(videos)]}
    table |= {"question_id": None, "scenario": "Audio", "type": "Counting", "keywords": [["it"]] * videos}
    answers = np.arange(videos) % 42
    questions = pd.DataFrame(table | {"answer": answers.astype(str), "answer_id": answers})
    questions.to_parquet(folder / "d" / "questions.parquet")
    manifest = {"videos": videos, "shards": digests, **number({}, questions).as_dict()}
    (folder / "d" / "manifest.json").write_text(json.dumps(manifest))
    folders = {name: [encoder] for encoder, specs in by_encoder.items() for name in specs if "/" in name}
    texts = {"clip_vit_b32": folder / "d" / "text" / "clip_vit_b32.h5"}
    build_index(folder / "d", folder / "c", folders, texts, folder / "d")


def limit_memory(size: float, share: float) -> None:
    """Patch features may fill `share` of their size in memory, and come from the disk whenever they are read."""
    features.available_memory = lambda: int(size * share * features.MEMORY_SHARE)  # type: ignore[assignment]
    prefetch = FeatureIndex.prefetch

    def prefetch_uncached(self, name, rows, seconds=None):
        for path, output, _, places in self._by_shard(name, rows):
            with self._lock:
                dataset = self._opened(path)[output]
                for place in places:
                    for offset, length in _byte_ranges(dataset, int(place), seconds):
                        descriptor = dataset.file.id.get_vfd_handle()
                        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
        prefetch(self, name, rows, seconds)

    FeatureIndex.prefetch = prefetch_uncached  # type: ignore[method-assign]


def bytes_from_disk() -> int:
    return int(Path("/proc/self/io").read_text().split("read_bytes:")[1].split()[0])


def measure(config: dict, model: str, out: Path) -> dict:
    """One epoch: seconds per step, the share of waiting, bytes per step."""
    trainer = Trainer(of_one_model(config, model), model, 0, out)
    trainer.train_on_all(1)  # what is read first is kept, and the first steps are slower than the others
    before, started = bytes_from_disk(), time.perf_counter()
    _, count = trainer.train_on_all(2)
    seconds, steps = time.perf_counter() - started, -(-count // trainer.schedule["batch_size"])
    row = {"workers": config["train"]["workers"], "seconds_per_step": seconds / steps}
    row["waiting"] = trainer.waited / seconds
    row["MB_per_step"] = (bytes_from_disk() - before) / steps / 1e6
    own = (seconds - trainer.waited) / steps
    for disk in DISKS:
        reading = row["MB_per_step"] / 1e3 / disk
        row[f"waiting_at_{disk}_GB/s"] = max(0.0, reading - own) / max(reading, own)
    return {name: round(value, 3) for name, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pstp_net")
    parser.add_argument("--settings", default="{}", help="JSON of the model's settings")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--memory", type=float, default=0.25, help="share of the patch features that may be kept")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, help="for the features, on the disk to be measured")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    settings = settings_class(args.model)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        make_data(folder, args.batch * args.steps, settings)
        os.sync()
        size = 2 * args.batch * args.steps * np.prod(settings.features["patch"])
        limit_memory(size, args.memory)
        print(
            f"{args.model}, batch {args.batch}, {args.threads} threads, load {os.getloadavg()[0]:.1f}; patch features"
        )
        print(f"{size / 1e9:.2f} GB, of which {args.memory:.0%} may be kept in memory", flush=True)
        entry = {name: ENCODERS[name] for name in settings.features} | json.loads(args.settings)
        for workers in args.workers:
            config = {
                "dataset": "d",
                "results": str(folder),
                "models": {args.model: {"architecture": args.model} | entry},
                "train": {"batch_size": args.batch, "workers": workers},
            }
            config = check_config(config, "benchmark", ("dataset", "models"))
            print(json.dumps(measure(config, args.model, folder / "run")), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
