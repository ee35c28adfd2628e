"""Run time of the stages, from the benchmark files that Snakemake writes for each job, and the parts of jobs, from the
files that the commands write beside them."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline import keys
from pipeline.config import collection_dir, dataset_dir
from pipeline.storage.features import FeatureIndex, is_text
from pipeline.timing import NOT_WORK, read_timings


def stage_table(config: dict, index: FeatureIndex, questions: pd.DataFrame) -> pd.DataFrame:
    """One line per stage that has benchmark files; report.html says what the columns mean.

    A job that resumed has the time of its last start only."""
    of_videos, of_dataset = collection_dir(config) / "benchmarks", dataset_dir(config) / "benchmarks"
    shards, splits = seconds_by_shard(index), questions["split"].value_counts()
    decoded = {path: shards[path.stem] for path in _decoded(config, "tsv") if path.stem in shards}
    lines = [_line("decode", decoded, "s of video")]
    for encoder in config["encoders"]:
        lines.append(_line(f"extract: {encoder}", _extracted(of_videos, index, encoder, "tsv", shards), "s of video"))
    texts = {of_dataset / "text" / f"{index.files['text'][0].stem}.tsv": len(index.texts)}
    lines.append(_line("text", texts, "texts"))
    for model in config["models"]:
        folders = [dataset_dir(config) / "models" / model / f"seed-{seed}" for seed in config["train"]["seeds"]]
        trained = {_run(folder) / "benchmark.tsv": int(splits.get("train", 0)) * _epochs(folder) for folder in folders}
        lines.append(_line(f"train: {model}", trained, "questions"))
        answered = {folder / "benchmark.tsv": int(splits.get("test", 0)) for folder in folders}
        lines.append(_line(f"evaluate: {model}", answered, "questions"))
    return pd.DataFrame([line for line in lines if line is not None])


def part_table(config: dict, index: FeatureIndex) -> pd.DataFrame:
    """One line per part of the stages' jobs: its busy time and its rate without the other parts. report.html says what
    the columns mean."""
    of_videos, shards = collection_dir(config) / "benchmarks", seconds_by_shard(index)
    stages = {"decode": [path for path in _decoded(config, "json") if path.stem in shards]}
    for encoder in config["encoders"]:
        stages[f"extract: {encoder}"] = list(_extracted(of_videos, index, encoder, "json", shards))
    for model in config["models"]:
        folders = [dataset_dir(config) / "models" / model / f"seed-{seed}" for seed in config["train"]["seeds"]]
        stages[f"train: {model}"] = [_run(folder) / "timing.json" for folder in folders]
    return pd.DataFrame([line for stage, paths in stages.items() for line in _part_lines(stage, paths)])


def _decoded(config: dict, suffix: str) -> Iterable[Path]:
    """The files about the decoding of shards as this configuration decodes."""
    folder = collection_dir(config) / "benchmarks" / "decode"
    return sorted(folder.glob(f"*-{keys.decoding(config).digits}/*.{suffix}"))


def _extracted(
    benchmarks: Path, index: FeatureIndex, encoder: str, suffix: str, shards: Mapping[str, int]
) -> dict[Path, int]:
    """The files about the extraction of an encoder's features, and the seconds of video of each."""
    return {benchmarks / p.parent.name / f"{p.stem}.{suffix}": shards[p.stem] for p in index.files[encoder]}


def _run(folder: Path) -> Path:
    """Where a model was trained, whose scores are in a folder."""
    return (folder / "config.yaml").resolve().parent


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


def _epochs(folder: Path) -> int:
    """Of a training with its pretraining."""
    histories = [_run(folder) / part / "history.csv" for part in ("", "pretrain")]
    return sum(len(pd.read_csv(path)) for path in histories if path.exists())


def _line(stage: str, jobs: Mapping[Path, int], unit: str) -> dict | None:
    """A stage's jobs (benchmark file -> items), added up; None if there are no benchmark files."""
    measured = {path: _read(path) for path in jobs if path.exists()}
    if not measured:
        return None
    items = sum(jobs[path] for path in measured)
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
