"""The tables of the models' papers made again: what each row changes, the scores, and the paper's figure."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.accuracy import OVERALL, entry_of, read_scores
from pipeline.config import kept_features
from pipeline.errors import AVQAError
from pipeline.models import settings_class
from pipeline.storage.atomic import atomic

MANIFESTS = Path(__file__).parent.parent / "manifests"
GRID_COLUMNS = ["model", "table", "row", "label", "settings", "a_qa", "v_qa", "av_qa", "avg"]
SCENARIOS = {"a_qa": "Audio", "v_qa": "Visual", "av_qa": "Audio-Visual", "avg": None}


def read_grid(config: dict) -> pd.DataFrame:
    """The rows of the configured tables of each model's paper, from manifests/<architecture>_tables.csv.

    `entry` is the model's name in the configuration: of several with one architecture, the one of its name, or else the
    first. Rows that read features which no encoder keeps are left out. Raises AVQAError if there is no such table.
    """
    grids = [_read_tables(entry, config["models"][entry]["architecture"]) for entry in _entries(config)]
    grid = pd.concat(grids, ignore_index=True) if grids else pd.DataFrame(columns=["entry", *GRID_COLUMNS])
    named = grid["entry"] + "_" + grid["table"]
    tables = config["ablations"].get("tables", named.unique())
    if unknown := sorted(set(tables) - set(named) - set(grid["table"])):
        known = ", ".join(named.unique()) or "no tables"
        raise AVQAError(f"ablations.tables: there is no {unknown[0]}; the models' papers have {known}")
    readable = [not lacking_features(config, row) for row in grid.to_dict("records")]
    return grid[(named.isin(tables) | grid["table"].isin(tables)) & np.array(readable, bool)]


def _entries(config: dict) -> list[str]:
    """One entry for each architecture."""
    chosen: dict[str, str] = {}
    for name, entry in config["models"].items():
        if entry["architecture"] not in chosen or name == entry["architecture"]:
            chosen[entry["architecture"]] = name
    return list(chosen.values())


def _read_tables(entry: str, architecture: str) -> pd.DataFrame:
    path = MANIFESTS / f"{architecture}_tables.csv"
    grid = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=GRID_COLUMNS)
    return grid.assign(entry=entry)


def lacking_features(config: dict, row: dict) -> list[str]:
    """The features that a row of a grid reads and no encoder of the configuration keeps."""
    settings, kept = json.loads(row["settings"]), kept_features(config)
    wanted = [settings[name] for name in settings_class(row["model"]).features if name in settings]
    return [name for name in wanted if kept and name not in kept]


def changed_entry(entry: dict, changes: dict) -> dict:
    """An entry of `models` with what the row of a table changes in it."""
    schedule = {"train": entry.get("train", {}) | changes["train"]} if "train" in changes else {}
    return entry | changes | schedule


def rows_of(grid: pd.DataFrame, config: dict, model: str, table: str) -> dict[int, dict]:
    """The entry of `models` that each row of a table stands for, by the row's number."""
    rows = grid[(grid["entry"] == model) & (grid["table"] == table)].to_dict("records")
    return {row["row"]: changed_entry(config["models"][model], json.loads(row["settings"])) for row in rows}


def write_table(config: dict, model: str, table: str, folders: Mapping[int, Path], out: str | Path) -> str:
    """Write a table of a model's paper to the file `out`: accuracy in %, mean and deviation over seeds, and the paper's
    figures, those of other columns of the grid too. `folders` holds the scores of each row's seeds.

    Returns the table as text. Raises AVQAError if there is no such table or a row has no scores yet.
    """
    grid = read_grid(config | {"models": {model: config["models"][model]}, "ablations": {"tables": [table]}})
    seeds = config["train"]["seeds"]
    lines = []
    for row in grid.to_dict("records"):
        runs = [read_scores(folders[row["row"]] / f"seed-{seed}" / "scores.json") for seed in seeds]
        line = {"row": row["label"]}
        for column, scenario in SCENARIOS.items():
            key = ("scenario", scenario) if scenario else OVERALL
            values = 100 * np.array([entry_of(run, key)["accuracy"] for run in runs])
            line[column] = round(float(values.mean()), 2)
            line[f"{column}_sd"] = round(float(values.std(ddof=1)), 2) if len(values) > 1 else None
            line[f"{column}_paper"] = row[column]
        others = row.keys() - {"entry", *GRID_COLUMNS}
        lines.append(line | {f"{name}_paper": row[name] for name in grid.columns if name in others})
    made = pd.DataFrame(lines).dropna(axis="columns", how="all")
    with atomic(out) as partial:
        made.to_csv(partial, index=False)
    head = f"{table} of {model}, {len(seeds)} seed(s), data set {config['dataset']}"
    return f"{head}\n{made.to_string(index=False, na_rep='')}"
