"""Scores of all models and seeds, the papers' results beside them, and the history of training."""

import json
from itertools import product

import numpy as np
import pandas as pd

from pipeline.cards import read_card
from pipeline.config import scores_dir
from pipeline.errors import AVQAError
from pipeline.evaluate import in_all_scenarios, types_of
from pipeline.reporting.page import legend, new_figure, svg
from pipeline.results import KEYS, SCENARIOS, own_results, published, short_name, wide


def label(config: dict, trained_on: str, model: str) -> str:
    """A model's name, and the data set that it is trained on where that is another one."""
    return model if trained_on == config["dataset"] else f"{model}, trained on {trained_on}"


def read_scores(config: dict) -> dict[str, list[dict]]:
    """scores.json of each model's seeds, by the model's label. Raises AVQAError if one is missing."""
    runs = {}
    for trained_on, model in product(config["trained_on"], config["models"]):
        paths = [scores_dir(config, trained_on, model, seed) / "scores.json" for seed in config["train"]["seeds"]]
        if missing := [path for path in paths if not path.exists()]:
            raise AVQAError(f"{missing[0]}: no such file; `avqa evaluate` makes it")
        runs[label(config, trained_on, model)] = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return runs


def score_table(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """Test accuracy in %, mean ± standard deviation over the seeds, of each type and scenario, of types that several
    scenarios have, and overall; one column per model."""
    first = next(iter(scores.values()))[0]
    rows = [("scenario", s, kind) for s in first["scenario"] for kind in (*types_of(first, s), s)]
    lines = {}
    for _, scenario, name in rows:
        part = "scenario" if name == scenario else "type"
        label = f"{scenario} average" if name == scenario else name
        lines[label] = {"questions": first[part][name]["count"], **_cells(scores, lambda s, p=part, n=name: s[p][n])}
    complete = all("question_type" in run for runs in scores.values() for run in runs)  # an earlier version had none
    for name, entry in in_all_scenarios(first).items() if complete else ():
        cells = _cells(scores, lambda s, n=name: s["question_type"][n])
        lines[f"{name}, all scenarios"] = {"questions": entry["count"], **cells}
    lines["overall"] = {"questions": first["overall"]["count"], **_cells(scores, lambda s: s["overall"])}
    if first["present"] and first["present"]["overall"]["count"] < first["overall"]["count"]:
        count, cells = first["present"]["overall"]["count"], _cells(scores, lambda s: s["present"]["overall"])
        lines["overall, without failed videos"] = {"questions": count, **cells}
    return pd.DataFrame.from_dict(lines, orient="index")


def paper_layout(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """One row per model, one column per question type and average, as the benchmarks' papers have it; where the split
    has parts, a column for each part as in Table III of MUSIC-AVQA-R. Mean accuracy in % over the seeds."""
    first = next(iter(scores.values()))[0]
    columns = [("type", name) for s in first["scenario"] for name in types_of(first, s)]
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


def cross_table(config: dict) -> pd.DataFrame:
    """Mean accuracy in % of models that are trained on each of several data sets and tested on each, as in Table IV of
    AV-Master: one row per model and data set of training, for each data set of testing the averages of the scenarios
    and of all. No row where models of one data set only are tested; a cell is empty where a model is not tested."""
    rows: dict[tuple[str, str], dict[str, float]] = {}
    names = config["trained_on"] if config["dataset"] in config["trained_on"] and len(config["trained_on"]) > 1 else []
    for trained_on, model, tested_on in product(names, config["models"], names):
        folders = [scores_dir(config | {"dataset": tested_on}, trained_on, model, s) for s in config["train"]["seeds"]]
        if not all((folder / "scores.json").exists() for folder in folders):
            continue
        runs = [json.loads((folder / "scores.json").read_text(encoding="utf-8")) for folder in folders]
        row = rows.setdefault((trained_on, model), {})
        for scenario in runs[0]["scenario"]:
            values = [_accuracy(run, "scenario", scenario) for run in runs]
            row[f"{tested_on}: {short_name(scenario)}"] = float(np.mean(values))
        row[f"{tested_on}: all"] = float(np.mean([_accuracy(run, "overall") for run in runs]))
    numbers = pd.DataFrame(rows.values()).map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return pd.concat([pd.DataFrame(rows.keys(), columns=["trained on", "model"]), numbers], axis=1)


def _accuracy(score: dict, kind: str, name: str | None = None) -> float:
    """Accuracy in %, or not a number where a part has no such question."""
    entry = score[kind].get(name, {"accuracy": np.nan}) if name else score[kind]
    return 100 * entry["accuracy"]


def _cells(scores: dict[str, list[dict]], pick) -> dict[str, str]:
    cells = {}
    for model, runs in scores.items():
        values = 100 * np.array([pick(run)["accuracy"] for run in runs])
        spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
        cells[model] = f"{values.mean():.2f}{spread}"
    return cells


def beside_published(config: dict) -> tuple[pd.DataFrame, bool]:
    """Our accuracies, then the papers', best first, and whether these are of the same data set; where no paper has
    results on it, those on MUSIC-AVQA stand in. Of the papers, results that have averages by scenario. The columns are
    those of the papers' table on the data set: nine types and averages, or head and tail of each type (MUSIC-AVQA-R,
    Table III of AV-Master), or averages only (MUSIC-AVQA-v2.0, Table IV)."""
    papers = _published_on(config)
    same = not papers.empty
    papers = wide(papers if same else published("MUSIC-AVQA"), accuracies=True)
    papers = papers.dropna(subset=[name for name in SCENARIOS if name in papers])
    tables = [t.sort_values("overall", ascending=False, kind="stable") for t in (wide(own_results(config)), papers)]
    table = pd.concat(tables)
    numbers = [name for name in papers if name not in KEYS]
    table = table.reindex(columns=[*KEYS, *numbers])
    table[numbers] = table[numbers].map(lambda value: "" if pd.isna(value) else f"{value:.2f}")
    return table.rename(columns=short_name), same


def _published_on(config: dict) -> pd.DataFrame:
    """The papers' results on the questions that a data set is tested on, by its card."""
    listed = read_card(config["card"]).get("results", {}) if "card" in config else {}
    papers = published(listed.get("dataset", config.get("card", config["dataset"])))
    return papers[papers["setting"].str.contains(listed.get("setting", ""), regex=False)]


def training_curves(config: dict) -> dict[str, str]:
    """Training loss and validation accuracy by epoch of all models and seeds."""
    plots, runs = {}, list(product(config["trained_on"], config["models"]))
    for title, column, factor in (("Training loss", "loss", 1), ("Validation accuracy (%)", "val_accuracy", 100)):
        figure, axis = new_figure(5.4, 4)
        for color, (trained_on, model) in enumerate(runs):
            for n, seed in enumerate(config["train"]["seeds"]):
                folder = scores_dir(config | {"dataset": trained_on}, trained_on, model, seed)
                history = pd.read_csv(folder / "history.csv")
                name = label(config, trained_on, model) if n == 0 else None
                style = {"color": f"C{color}", "alpha": 0.8, "marker": ".", "label": name}
                axis.plot(history["epoch"], factor * history[column], **style)
        axis.set(title=title, xlabel="epoch")
        legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)  # below, where it hides no line
        plots[title] = svg(figure)
    return plots
