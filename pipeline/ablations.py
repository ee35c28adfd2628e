"""The tables of a model's paper made again: what each row changes, the scores, and the paper's figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config import dataset_dir
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic

MANIFESTS = Path(__file__).parent.parent / "manifests"
GRID_COLUMNS = ["model", "table", "row", "label", "settings", "a_qa", "v_qa", "av_qa", "avg"]
SCENARIOS = {"a_qa": "Audio", "v_qa": "Visual", "av_qa": "Audio-Visual", "avg": None}


def read_grid(config: dict) -> pd.DataFrame:
    """The rows of the configured tables of the first model, from manifests/<architecture>_tables.csv; none if the
    model has no such file. Raises AVQAError if there is no such table."""
    path = MANIFESTS / f"{next(iter(config['models'].values()))['architecture']}_tables.csv"
    grid = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=GRID_COLUMNS)
    tables = config["ablations"].get("tables", grid["table"].unique())
    if unknown := sorted(set(tables) - set(grid["table"])):
        known = ", ".join(grid["table"].unique()) or "no tables"
        raise AVQAError(f"ablations.tables: there is no {unknown[0]}; {path.name} has {known}")
    return grid[grid["table"].isin(tables)]


def write_table(config: dict, table: str) -> str:
    """Write <results>/<data set>/ablations/<table>.csv: accuracy in %, mean and deviation over seeds, and the paper's.

    Returns the table as text. Raises AVQAError if there is no such table or a row has no scores yet.
    """
    grid = read_grid(config | {"ablations": {"tables": [table]}})
    folder, seeds = dataset_dir(config) / "ablations", config["train"]["seeds"]
    lines = []
    for row in grid.to_dict("records"):
        runs = [_scores(folder / f"table~{table}" / f"row~{row['row']}" / f"seed-{seed}") for seed in seeds]
        line = {"row": row["label"]}
        for column, scenario in SCENARIOS.items():
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
