"""What came out: a summary of all models and seeds as text, and as one HTML page with the training curves."""

import base64
import html
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.config import collection_dir, dataset_dir
from pipeline.errors import AVQAError
from pipeline.evaluate import RANDOM_WEIGHTS
from pipeline.storage.atomic import atomic


def write_report(config: dict) -> str:
    """Write summary.txt and report.html of a data set's results; returns the summary.

    Accuracy is the mean over seeds, ± their standard deviation. Raises AVQAError if a model has no scores yet.
    """
    folder = dataset_dir(config)
    scores = {name: _read_scores(folder, name, config["train"]["seeds"]) for name in config["models"]}
    table = _table(scores)
    pretrained = all(e["pretrained"] for runs in scores.values() for s in runs for e in s["encoders"].values())
    with open(folder / "failures.tsv", encoding="utf-8") as file:
        failures = [line.rstrip("\n").split("\t") for line in file][1:]

    note = "" if pretrained else RANDOM_WEIGHTS
    summary = "\n".join(
        [
            f"Test accuracy in %, {len(config['train']['seeds'])} seed(s), data set {config['dataset']}",
            table.to_string(),
            *([note] if note else []),
            f"{len(failures)} videos failed: {folder / 'failures.tsv'}" if failures else "no video failed",
            "scores:   " + ", ".join(f"{folder / 'models' / name}/seed-*/scores.json" for name in scores),
            "features: "
            + ", ".join(f"{collection_dir(config) / 'features' / name}/*.h5" for name in config["encoders"]),
            f"          all of them in one: {folder / 'features.h5'}",
            f"report:   {folder / 'report.html'}",
        ]
    )
    with atomic(folder / "report.html") as partial:
        partial.write_text(_page(config, table, note, failures, _curves(folder, scores)), encoding="utf-8")
    with atomic(folder / "summary.txt") as partial:
        partial.write_text(summary + "\n", encoding="utf-8")
    return summary


def _read_scores(folder: Path, model: str, seeds: list[int]) -> list[dict]:
    paths = [folder / "models" / model / f"seed-{seed}" / "scores.json" for seed in seeds]
    if missing := [path for path in paths if not path.exists()]:
        raise AVQAError(f"{missing[0]}: no such file; `avqa evaluate {missing[0].parent}` makes it")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _table(scores: dict[str, list[dict]]) -> pd.DataFrame:
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


def _curves(folder: Path, scores: dict[str, list[dict]]) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for color, (model, runs) in enumerate(scores.items()):
        for n, run in enumerate(runs):
            history = pd.read_csv(folder / "models" / model / f"seed-{run['seed']}" / "history.csv")
            style = {"color": f"C{color}", "alpha": 0.8, "label": model if n == 0 else None}
            axes[0].plot(history["epoch"], history["loss"], **style)
            axes[1].plot(history["epoch"], 100 * history["val_accuracy"], **style)
    for axis, title in zip(axes, ("Training loss", "Validation accuracy (%)"), strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="svg")
    plt.close(figure)
    return base64.b64encode(image.getvalue()).decode()


def _page(config: dict, table: pd.DataFrame, note: str, failures: list[list[str]], curves: str) -> str:
    escape = html.escape
    body = "".join(
        f"<tr{' class=total' if label.endswith(('average', 'overall')) else ''}><th>{escape(label)}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in row)
        + "</tr>"
        for label, row in zip(table.index, table.to_numpy(), strict=True)
    )
    failed = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in failures)
    name = escape(config["dataset"])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .9rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }}
th:first-child {{ text-align: left; font-weight: normal }} .total th, .total td {{ font-weight: bold }}
.note {{ background: #fff3cd; padding: .6rem 1rem; border-left: 4px solid #e0a800 }} img {{ max-width: 100% }}
</style>
<h1>{name}</h1>
{f'<p class="note">{escape(note)}</p>' if note else ""}
<h2>Test accuracy (%)</h2>
<p>Mean ± standard deviation over {len(config["train"]["seeds"])} seed(s).</p>
<table><tr><th></th>{"".join(f"<th>{escape(c)}</th>" for c in table.columns)}</tr>{body}</table>
<h2>Training</h2>
<img alt="Training loss and validation accuracy by epoch" src="data:image/svg+xml;base64,{curves}">
<h2>Videos that could not be decoded: {len(failures)}</h2>
{f"<table><tr><th>video<th>stage<th>reason<th>seconds</tr>{failed}</table>" if failures else ""}
</html>
"""
