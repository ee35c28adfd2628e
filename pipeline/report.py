"""What came out: a summary of all models and seeds as text, and as one HTML page with the training curves."""

import base64
import html
import io
import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pipeline.config import collection_dir, dataset_dir, scores_dir
from pipeline.errors import AVQAError
from pipeline.evaluate import RANDOM_WEIGHTS
from pipeline.storage.atomic import atomic


def write_report(config: dict) -> str:
    """Write summary.txt and report.html of a data set's results; returns the summary.

    Accuracy is the mean over seeds, ± their standard deviation. Raises AVQAError if a model has no scores yet.
    """
    folder = dataset_dir(config)
    scores = {
        _label(config, trained_on, model): _read_scores(config, trained_on, model)
        for trained_on in config["trained_on"]
        for model in config["models"]
    }
    table, by_type = _table(scores), paper_layout(scores)
    pretrained = all(e["pretrained"] for runs in scores.values() for s in runs for e in s["encoders"].values())
    with open(folder / "failures.tsv", encoding="utf-8") as file:
        failures = [line.rstrip("\n").split("\t") for line in file][1:]

    note = "" if pretrained else RANDOM_WEIGHTS
    summary = "\n".join(
        [
            f"Test accuracy in %, {len(config['train']['seeds'])} seed(s), data set {config['dataset']}",
            table.to_string(),
            "Models by question type, as in the papers' tables",
            by_type.to_string(),
            *([note] if note else []),
            f"{len(failures)} videos failed: {folder / 'failures.tsv'}" if failures else "no video failed",
            "scores:   "
            + ", ".join(
                f"{scores_dir(config, t, m, '*')}/scores.json" for t in config["trained_on"] for m in config["models"]
            ),
            "features: "
            + ", ".join(f"{collection_dir(config) / 'features' / name}/*.h5" for name in config["encoders"]),
            f"          all of them in one: {folder / 'features.h5'}",
            f"report:   {folder / 'report.html'}",
        ]
    )
    with atomic(folder / "report.html") as partial:
        partial.write_text(_page(config, table, by_type, note, failures, _curves(config)), encoding="utf-8")
    with atomic(folder / "summary.txt") as partial:
        partial.write_text(summary + "\n", encoding="utf-8")
    return summary


def _label(config: dict, trained_on: str, model: str) -> str:
    return model if trained_on == config["dataset"] else f"{model}, trained on {trained_on}"


def _read_scores(config: dict, trained_on: str, model: str) -> list[dict]:
    paths = [scores_dir(config, trained_on, model, seed) / "scores.json" for seed in config["train"]["seeds"]]
    if missing := [path for path in paths if not path.exists()]:
        raise AVQAError(f"{missing[0]}: no such file; `avqa evaluate` makes it")
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
    if first["present"]["overall"]["count"] < first["overall"]["count"]:
        count, cells = first["present"]["overall"]["count"], _cells(scores, lambda s: s["present"]["overall"])
        lines["overall, without failed videos"] = {"questions": count, **cells}
    return pd.DataFrame.from_dict(lines, orient="index")


def paper_layout(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """One row per model, one column per question type and average, as the benchmarks' papers have it; where the split
    has parts, a column for each part as in Table III of MUSIC-AVQA-R. Mean accuracy in % over the seeds."""
    first = next(iter(scores.values()))[0]
    columns = [("type", name) for s in first["scenario"] for name in _types_of(first, s)]
    columns += [("scenario", scenario) for scenario in first["scenario"]]
    rows: dict[str, dict[str, float]] = {model: {} for model in scores}
    for model, runs in scores.items():
        for kind, name in columns:
            for part in first["parts"] or [""]:
                values = [_accuracy(run["parts"][part] if part else run, kind, name) for run in runs]
                rows[model][f"{name} {part}".strip()] = float(np.mean(values))
        for part in first["parts"]:
            rows[model][f"overall {part}"] = float(np.mean([_accuracy(r["parts"][part], "overall") for r in runs]))
        rows[model]["overall"] = float(np.mean([_accuracy(run, "overall") for run in runs]))
    return pd.DataFrame.from_dict(rows, orient="index").round(2)


def _accuracy(score: dict, kind: str, name: str | None = None) -> float:
    """Accuracy in %, or not a number where a part has no such question."""
    entry = score[kind].get(name, {"accuracy": np.nan}) if name else score[kind]
    return 100 * entry["accuracy"]


def _types_of(score: dict, scenario: str) -> list[str]:
    return [name for name in score["type"] if name.rsplit("/", 1)[0] == scenario]


def _cells(scores: dict[str, list[dict]], pick) -> dict[str, str]:
    cells = {}
    for model, runs in scores.items():
        values = 100 * np.array([pick(run)["accuracy"] for run in runs])
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        cells[model] = f"{values.mean():.2f}{spread}"
    return cells


def _curves(config: dict) -> str:
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    runs = [(t, model) for t in config["trained_on"] for model in config["models"]]
    for color, (trained_on, model) in enumerate(runs):
        for n, seed in enumerate(config["train"]["seeds"]):
            trained = scores_dir(config | {"dataset": trained_on}, trained_on, model, seed)
            history = pd.read_csv(trained / "history.csv")
            label = _label(config, trained_on, model) if n == 0 else None
            style = {"color": f"C{color}", "alpha": 0.8, "label": label}
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


def _page(
    config: dict, table: pd.DataFrame, by_type: pd.DataFrame, note: str, failures: list[list[str]], curves: str
) -> str:
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
<h2>Models by question type</h2>
<div style="overflow-x: auto">{by_type.to_html(border=0, na_rep="")}</div>
<h2>Training</h2>
<img alt="Training loss and validation accuracy by epoch" src="data:image/svg+xml;base64,{curves}">
<h2>Videos that could not be decoded: {len(failures)}</h2>
{f"<table><tr><th>video<th>stage<th>reason<th>seconds</tr>{failed}</table>" if failures else ""}
</html>
"""
