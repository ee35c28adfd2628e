"""Scores of all models and seeds, the papers' results beside them, and the history of training."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.errors import AVQAError
from pipeline.reporting.page import legend, new_figure, svg
from pipeline.results import COLUMNS, KEYS, SCENARIOS, own_results, published, short_name, wide


def read_scores(folder: Path, model: str, seeds: list[int]) -> list[dict]:
    """scores.json of a model's seeds. Raises AVQAError if one is missing."""
    paths = [folder / "models" / model / f"seed-{seed}" / "scores.json" for seed in seeds]
    if missing := [path for path in paths if not path.exists()]:
        raise AVQAError(f"{missing[0]}: no such file; `avqa evaluate {missing[0].parent}` makes it")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def score_table(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """Test accuracy in %, mean ± standard deviation over the seeds, of each type, scenario and overall; one column
    per model."""
    first = next(iter(scores.values()))[0]
    rows = [("scenario", s, kind) for s in first["scenario"] for kind in (*_types_of(first, s), s)]
    lines = {}
    for _, scenario, name in rows:
        part = "scenario" if name == scenario else "type"
        label = f"{scenario} average" if name == scenario else name
        lines[label] = {"questions": first[part][name]["count"], **_cells(scores, lambda s, p=part, n=name: s[p][n])}
    lines["overall"] = {"questions": first["overall"]["count"], **_cells(scores, lambda s: s["overall"])}
    return pd.DataFrame.from_dict(lines, orient="index")


def _types_of(score: dict, scenario: str) -> list[str]:
    return [name for name in score["type"] if name.rsplit("/", 1)[0] == scenario]


def _cells(scores: dict[str, list[dict]], pick) -> dict[str, str]:
    cells = {}
    for model, runs in scores.items():
        values = 100 * np.array([pick(run)["accuracy"] for run in runs])
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        cells[model] = f"{values.mean():.2f}{spread}"
    return cells


def beside_published(config: dict) -> tuple[pd.DataFrame, bool]:
    """Our accuracies, then the papers', best first, and whether these are of the same data set; where no paper has
    results on it, those on MUSIC-AVQA stand in. Of the papers, results that have averages by scenario."""
    papers = published(config["dataset"])
    same = not papers.empty
    papers = wide(papers if same else published("MUSIC-AVQA"), accuracies=True)
    papers = papers.dropna(subset=[name for name in SCENARIOS if name in papers])
    tables = [t.sort_values("overall", ascending=False, kind="stable") for t in (wide(own_results(config)), papers)]
    table = pd.concat(tables)
    numbers = [name for name in COLUMNS if name in table]
    table = table[[*KEYS, *numbers]]
    table[numbers] = table[numbers].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return table.rename(columns=short_name), same


def training_curves(folder: Path, scores: dict[str, list[dict]]) -> dict[str, str]:
    """Training loss and validation accuracy by epoch of all models and seeds."""
    plots = {}
    for title, column, factor in (("Training loss", "loss", 1), ("Validation accuracy (%)", "val_accuracy", 100)):
        figure, axis = new_figure(5.4, 3.6)
        for color, (model, runs) in enumerate(scores.items()):
            for n, run in enumerate(runs):
                history = pd.read_csv(folder / "models" / model / f"seed-{run['seed']}" / "history.csv")
                style = {"color": f"C{color}", "alpha": 0.8, "marker": ".", "label": model if n == 0 else None}
                axis.plot(history["epoch"], factor * history[column], **style)
        axis.set(title=title, xlabel="epoch")
        legend(axis)
        plots[title] = svg(figure)
    return plots
