"""Run time of the stages, from the benchmark files that Snakemake writes for each job, and the parts of jobs, from the
files that the commands write beside them."""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config import collection_dir, dataset_dir, training
from pipeline.storage.features import FeatureIndex, is_text
from pipeline.timing import NOT_WORK, read_timings


def stage_table(config: dict, index: FeatureIndex, questions: pd.DataFrame) -> pd.DataFrame:
    """One line per stage that has benchmark files; report.html says what the columns mean.

    A job that resumed has the time of its last start only."""
    of_videos, of_dataset = collection_dir(config) / "benchmarks", dataset_dir(config) / "benchmarks"
    shards, splits = seconds_by_shard(index), questions["split"].value_counts()
    decoded = {str(path.relative_to(of_videos).with_suffix("")): path.stem for path in of_videos.glob("decode/*/*.tsv")}
    decoded = {name: shards[shard] for name, shard in decoded.items() if shard in shards}
    lines = [_line("decode", of_videos, decoded, "s of video")]
    for encoder in config["encoders"]:
        lines.append(_line(f"extract: {encoder}", of_videos / encoder, shards, "s of video"))
    texts = {index.provenance["text"]["encoder"]: len(index.texts)}
    lines.append(_line("text", of_dataset / "text", texts, "texts"))
    for model in config["models"]:
        for stage, split in (("train", "train"), ("evaluate", "test")):
            jobs = {}
            for seed in config["train"]["seeds"]:
                epochs = _epochs(config, model, seed) if stage == "train" else 1
                jobs[f"seed-{seed}.{stage}"] = int(splits.get(split, 0)) * epochs
            lines.append(_line(f"{stage}: {model}", of_dataset / model, jobs, "questions"))
    return pd.DataFrame([line for line in lines if line is not None])


def part_table(config: dict, index: FeatureIndex) -> pd.DataFrame:
    """One line per part of the stages' jobs: its busy time and its rate without the other parts. report.html says what
    the columns mean."""
    of_videos, shards = collection_dir(config) / "benchmarks", seconds_by_shard(index)
    stages = {"decode": [path for path in of_videos.glob("decode/*/*.json") if path.stem in shards]}
    for encoder in config["encoders"]:
        stages[f"extract: {encoder}"] = [of_videos / encoder / f"{shard}.json" for shard in shards]
    for model in config["models"]:
        folder = dataset_dir(config) / "benchmarks" / model
        stages[f"train: {model}"] = [folder / f"seed-{seed}.train.json" for seed in config["train"]["seeds"]]
    return pd.DataFrame([line for stage, paths in stages.items() for line in _part_lines(stage, paths)])


def _part_lines(stage: str, paths: list[Path]) -> list[dict]:
    total = read_timings(paths)
    return [
        {
            "stage": stage,
            "part": name,
            "busy (s)": f"{seconds:,.1f}",
            "share of wall time": f"{seconds / total.wall:.0%}",
            "rate alone (1/s)": "–" if name in NOT_WORK or not seconds else f"{total.items / seconds:,.1f}",
            "the others wait": "for this part" if name == total.limit else "",
        }
        for name, seconds in (total.parts if total else {}).items()
    ]


def seconds_by_shard(index: FeatureIndex) -> dict[str, int]:
    """Seconds of video of the data set that each shard holds, by the shard's name."""
    names = next(([path.stem for path in paths] for name, paths in index.files.items() if not is_text(name)), [])
    sums = np.bincount(index.shard, weights=index.num_segments, minlength=len(names)).astype(int)
    return dict(zip(names, sums.tolist(), strict=True))


def _epochs(config: dict, model: str, seed: int) -> int:
    """Of a training with its pretraining."""
    folder = dataset_dir(config) / "models" / model / f"seed-{seed}"
    folders = [folder, folder / "pretrain"] if training(config, model)["pretrain"] else [folder]
    return sum(len(pd.read_csv(each / "history.csv")) for each in folders if (each / "history.csv").exists())


def _line(stage: str, folder: Path, jobs: dict[str, int], unit: str) -> dict | None:
    """A stage's jobs (name of the benchmark file -> items), added up; None if there are no benchmark files."""
    measured = {name: _read(folder / f"{name}.tsv") for name in jobs if (folder / f"{name}.tsv").exists()}
    if not measured:
        return None
    items = sum(jobs[name] for name in measured)
    wall, cpu = (_sum(row[column] for row in measured.values()) for column in ("s", "cpu_time"))
    line = {"stage": stage, "jobs": len(measured), "items": f"{items:,} {unit}", "wall (s)": f"{wall:,.1f}"}
    if not cpu:  # a job too short for Snakemake to look at it
        cpu = float("nan")
    numbers = {
        "CPU (s)": cpu,
        "cores": cpu / wall,
        "peak MB": max(row["max_rss"] for row in measured.values()),
        "rate (1/s)": items / wall,
        "ceiling (1/s)": items / cpu * (os.cpu_count() or 1),
    }
    return line | {name: "–" if value != value else f"{value:,.1f}" for name, value in numbers.items()}


def _read(path: Path) -> pd.Series:
    return pd.to_numeric(pd.read_csv(path, sep="\t").iloc[-1], errors="coerce")


def _sum(values: Iterable[float]) -> float:
    return float(sum(values))
