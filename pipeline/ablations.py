"""The tables of AV-Master's paper made again: what each row changes, what came out, and the paper's figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config import dataset_dir
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic

GRID = Path(__file__).parent.parent / "manifests" / "ablations.csv"
COLUMNS = {"a_qa": "Audio", "v_qa": "Visual", "av_qa": "Audio-Visual", "avg": None}


def write_table(config: dict, table: str) -> str:
    """Write <results>/ablations/<table>.csv: accuracy in %, mean and deviation over the seeds, and the paper's.

    Returns the table as text. Raises AVQAError if a row has no scores yet.
    """
    grid = pd.read_csv(GRID)
    grid = grid[grid["table"] == table]
    if grid.empty:
        raise AVQAError(f"{GRID}: has no table {table}")
    folder, seeds = dataset_dir(config) / "ablations", config["train"]["seeds"]
    lines = []
    for row in grid.to_dict("records"):
        runs = [_scores(folder / f"table~{table}" / f"row~{row['row']}" / f"seed-{seed}") for seed in seeds]
        line = {"row": row["label"]}
        for column, scenario in COLUMNS.items():
            values = 100 * np.array([_accuracy(run, scenario) for run in runs])
            line[column] = round(float(values.mean()), 2)
            line[f"{column}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else None
            line[f"{column}_paper"] = row[column]
        lines.append(line)
    made = pd.DataFrame(lines)
    with atomic(folder / f"{table}.csv") as partial:
        made.to_csv(partial, index=False)
    return f"{table}, {len(seeds)} seed(s), data set {config['dataset']}\n{made.to_string(index=False, na_rep='')}"


def _scores(folder: Path) -> dict:
    try:
        return json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AVQAError(f"{folder / 'scores.json'}: no such file; `snakemake ablations` makes it") from None


def _accuracy(scores: dict, scenario: str | None) -> float:
    if scenario is None:
        return scores["overall"]["accuracy"]
    return scores["scenario"].get(scenario, {"accuracy": np.nan})["accuracy"]
