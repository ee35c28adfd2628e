"""Every stage that holds a whole data set, on questions and videos as many as the largest published data sets have.

    python bench/largest.py               # MUSIC-AVQA-R's 211,572 questions, AVQA's 57,015 videos with four options
    python bench/largest.py --part 0.01   # a hundredth of each

Questions are made up, videos are files of one byte, features are random numbers of ViT-B/32's and VGGish's sizes.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from extractors import ENCODERS
from pipeline.config import load_configs
from pipeline.jobs import Jobs
from pipeline.paths import Paths, link_views
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import digest, read_shard_list
from pipeline.text import read_texts

BEGINNINGS = ["", "Tell me: ", "Listen. ", "Look. ", "In this video, ", "After all, ", "As you hear it, ", "Briefly: "]
TEMPLATES = ["how many {}s sound in part {}?", "which {} sounds first in part {}?", "is the {} of part {} loud?"]
THINGS = ["violin", "drum", "flute", "piano", "cello", "horn", "dog", "train", "engine", "bird", "bell", "choir"]
MADE = {"weights": "random", "weights_sha256": "", "pretrained": False, "libraries": {}}
OUTPUTS = {"clip_vit_b32": "cls", "vggish": "embedding"}


def question(rng: random.Random) -> str:
    """One of 28,800, about as many as 25 rephrasings of MUSIC-AVQA's 1,298 different test questions."""
    return rng.choice(BEGINNINGS) + rng.choice(TEMPLATES).format(rng.choice(THINGS), rng.randrange(100))


def music_records(count: int, ids: list[str], rng: random.Random) -> Iterator[dict]:
    for n in range(count):
        yield {
            "video_id": ids[n % len(ids)],
            "question_id": n // 25,
            "type": '["Audio-Visual", "Counting"]',
            "question_content": question(rng),
            "templ_values": "[]",
            "anser": rng.choice(THINGS),
        }


def avqa_records(count: int, ids: list[str], rng: random.Random) -> Iterator[dict]:
    for n in range(count):
        yield {
            "id": n,
            "video_name": ids[n % len(ids)],
            "question_text": question(rng),
            "multi_choice": rng.sample(THINGS, 4),
            "answer": rng.randrange(4),
            "question_relation": rng.choice(["Audio", "Visual", "Both"]),
            "question_type": "Which",
        }


def write_data_set(folder: Path, part: float, options: bool) -> None:
    """Annotations, videos and configuration; sizes are the published ones of AVQA or of MUSIC-AVQA and -R."""
    rng, sizes = random.Random(0), [57015, 40425, 16910] if options else [9288, 31904, 211572]
    videos, train, test = (max(int(size * part), 8) for size in sizes)
    ids = [f"{rng.getrandbits(44):011x}_{n:06d}" if options else f"{n:08d}" for n in range(videos)]
    records = avqa_records if options else music_records
    (folder / "videos").mkdir(parents=True)
    for name in ids:
        (folder / "videos" / f"{name}.mp4").write_bytes(b"-")
    for split, count, start in (("train", train, 0), ("val", max(train // 8, 8), 0), ("test", test, train)):
        turned = ids[start % videos :] + ids[: start % videos]
        (folder / f"{split}.json").write_text(json.dumps(list(records(count, turned, rng))))
    configuration = {
        "dataset": "largest",
        "format": "avqa" if options else "music_avqa",
        "videos": {"folder": "videos", "collection": "made_up"},
        "annotations": {split: f"{split}.json" for split in ("train", "val", "test")},
        "decode": {"segments": 10 if options else 60},
        "encoders": {name: {"weights": "random", "outputs": [output]} for name, output in OUTPUTS.items()},
        "text": {"encoder": "clip_vit_b32", "weights": "random"},
        "models": {"pooled": {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}},
        "train": {"epochs": 1, "seeds": [0]},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(configuration))


def write_features(files: Paths, seconds: int) -> None:
    """What extraction would have written."""
    rng = np.random.default_rng(0)
    files.failures_dir.mkdir(parents=True)
    for shard in files.manifest["shards"]:
        (files.failures_dir / f"{shard}.tsv").write_text("video_id\tstage\treason\tseconds\n")
        videos = read_shard_list(files.shard_list(shard))
        for encoder, output in OUTPUTS.items():
            shape, name = (seconds, *ENCODERS[encoder].outputs[output]), f"{encoder}/{output}"
            specs = {key: DatasetSpec((), dtype) for key, dtype in PER_VIDEO.items()} | {
                name: DatasetSpec(shape, "float16")
            }
            rows = {key: np.zeros(len(videos)) for key in PER_VIDEO} | {name: rng.random((len(videos), *shape), "f4")}
            rows["num_segments"] += seconds
            attributes = {"kind": "features", "shard": shard, "source": digest(videos), "encoder": encoder, **MADE}
            attributes |= {"collection": files.collection.name, "config": {}}
            path = files.features_file(encoder, shard)
            with ShardWriter(
                path, len(videos), specs, attributes, {"video_id": [v.video_id for v in videos]}
            ) as writer:
                writer.write(slice(0, len(videos)), rows)


def write_texts(files: Paths) -> str:
    """What the text encoder would have written; says how much it is, and what one file per question would be."""
    rng = np.random.default_rng(0)
    texts, shapes = read_texts(files.manifest_dir / "questions.parquet"), ENCODERS["clip_vit_b32"].text_outputs
    specs = {name: DatasetSpec(shape, "float16") for name, shape in shapes.items()} | {
        "length": DatasetSpec((), "int32")
    }
    attributes = {"kind": "text", "dataset": "largest", "shard": "", "encoder": "clip_vit_b32", "config": {}, **MADE}
    path, size = files.text_file("clip_vit_b32"), 256
    with ShardWriter(path, len(texts), specs, attributes, {"text": texts}) as writer:
        for start in range(0, len(texts), size):
            count = min(size, len(texts) - start)
            rows = {name: rng.random((count, *shape), "f4") for name, shape in shapes.items()}
            writer.write(slice(start, start + count), rows | {"length": np.full(count, 9)})
    return f"{len(texts):,} different texts, {path.stat().st_size / 1e9:.2f} GB of ViT-B/32's text features"


def stage(folder: Path, name: str, *arguments: str) -> str:
    """Run a command of `avqa`; its seconds and peak memory, as a row."""
    start = time.monotonic()
    with open(folder / "log", "w") as log:
        command = [sys.executable, "-m", "pipeline", name, *arguments]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"avqa {name} failed:\n{(folder / 'log').read_text()[-3000:]}")
    return f"| {name} | {time.monotonic() - start:.1f} | {usage.ru_maxrss / 1e6:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=1.0, help="of the published sizes")
    args = parser.parse_args()
    for title, options in (("MUSIC-AVQA-R's size", False), ("AVQA's size, four options", True)):
        folder = Path(tempfile.mkdtemp())
        os.chdir(folder)
        try:
            write_data_set(folder, args.part, options)
            rows = [stage(folder, "manifest", "--config", "c.yaml")]
            jobs = Jobs(load_configs("c.yaml"))
            files = jobs.paths["largest"]
            write_features(files, 10 if options else 60)
            print(f"\n{title}: {write_texts(files)}\n\n| stage | seconds | GB |\n|---|---:|---:|")
            out, data = files.run_dir("pooled", 0), str(files.data_dir)
            job = SimpleNamespace(dataset="largest", run=out.parent.name, seed=0)
            rows.append(stage(folder, "index", *shlex.split(jobs.index_flags(job)), "--out", data))
            rows.append(stage(folder, "failures", data, *shlex.split(jobs.failures_flags(job))))
            rows.append(stage(folder, "train", *shlex.split(jobs.train_flags(job)), "--out", str(out)))
            scores = str(files.scores_dir("largest", "pooled", 0))
            rows.append(stage(folder, "evaluate", str(out), "--questions-of", data, "--out", scores))
            link_views(jobs.paths)
            rows += [stage(folder, "report", "--config", "c.yaml"), stage(folder, "verify", "c.yaml")]
            print("\n".join(rows), flush=True)
        finally:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
