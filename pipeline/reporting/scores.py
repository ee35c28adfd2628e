"""Scores of all models and seeds, the papers' results beside them, and the history of training."""

from itertools import chain, product

import numpy as np
import pandas as pd

from pipeline.accuracy import OVERALL, Key, entry_of, keys_of, label, names_of, read_scores
from pipeline.cards import read_card
from pipeline.config import scores_dir
from pipeline.reporting.page import legend, new_figure, svg
from pipeline.results import KEYS, SCENARIOS, own_results, published, short_name, wide
from pipeline.storage.tables import reading


def model_label(config: dict, trained_on: str, model: str) -> str:
    """A model's name, and the data set that it is trained on where that is another one."""
    return model if trained_on == config["dataset"] else f"{model}, trained on {trained_on}"


def read_runs(config: dict) -> dict[str, list[dict]]:
    """scores.json of each model's seeds, by the model's label. Raises AVQAError if one is missing."""
    runs = {}
    for trained_on, model in product(config["trained_on"], config["models"]):
        paths = [scores_dir(config, trained_on, model, seed) / "scores.json" for seed in config["train"]["seeds"]]
        runs[model_label(config, trained_on, model)] = [read_scores(path) for path in paths]
    return runs


def score_table(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """Test accuracy in %, mean ± standard deviation over the seeds, of each type and scenario, of types that several
    scenarios have, and overall; one column per model."""
    first = next(iter(scores.values()))[0]
    keys = keys_of(chain(*scores.values()))
    names = names_of(keys)
    if first["present"] and first["present"]["overall"]["count"] < first["overall"]["count"]:
        keys.append(("present", "overall"))
        names[keys[-1]] = "overall, without failed videos"
    lines = [{"questions": entry_of(first, key)["count"], **_cells(scores, key)} for key in keys]
    return pd.DataFrame(lines, index=[names[key] for key in keys])


def paper_layout(scores: dict[str, list[dict]]) -> pd.DataFrame:
    """One row per model, one column per question type and average, as the benchmarks' papers have it; where the split
    has parts, a column for each part as in Table III of MUSIC-AVQA-R. Mean accuracy in % over the seeds."""
    everything = list(chain(*scores.values()))
    parts = [("parts", part) for part in dict.fromkeys(part for run in everything for part in run["parts"])]
    found = keys_of(everything)
    kinds = [key for name in ("types", "scenario") for key in found if key[0] == name]
    keys = [(*part, *key) for key in kinds for part in parts or [()]]
    keys += [*((*part, *OVERALL) for part in parts), OVERALL]
    names = names_of(keys, _short_label)
    rows = [[_mean(runs, key) for key in keys] for runs in scores.values()]
    return pd.DataFrame(rows, index=list(scores), columns=[names[key] for key in keys]).round(2)


def _short_label(key: Key) -> str:
    """A column of `paper_layout`: a scenario's average has its name, a part comes last."""
    if key[0] == "parts":
        return f"{_short_label(key[2:])} {key[1]}"
    return key[1] if key[0] == "scenario" else label(key)


def cross_table(config: dict) -> pd.DataFrame:
    """Mean accuracy in % of models that are trained on each of several data sets and tested on each, as in Table IV of
    AV-Master: one row per model and data set of training, for each data set of testing the averages of the scenarios
    and of all. No row where models of one data set only are tested; a cell is empty where a model is not tested."""
    rows: dict[tuple[str, str], dict[Key, float]] = {}
    names = config["trained_on"] if config["dataset"] in config["trained_on"] and len(config["trained_on"]) > 1 else []
    for trained_on, model, tested_on in product(names, config["models"], names):
        folders = [scores_dir(config | {"dataset": tested_on}, trained_on, model, s) for s in config["train"]["seeds"]]
        if not all((folder / "scores.json").exists() for folder in folders):
            continue
        runs = [read_scores(folder / "scores.json") for folder in folders]
        row = rows.setdefault((trained_on, model), {})
        for key in keys_of(runs):
            if key[0] in ("scenario", "overall"):
                row[tested_on, *key] = _mean(runs, key)
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    columns = names_of(sorted(keys, key=len), lambda key: f"{key[0]}: {short_name(key[2]) if key[2:] else 'all'}")
    cells = [[f"{row[key]:.2f}" if key in row else "" for key in keys] for row in rows.values()]
    described = pd.DataFrame(rows.keys(), columns=["trained on", "model"])
    return pd.concat([described, pd.DataFrame(cells, columns=[columns[key] for key in keys])], axis=1)


def _mean(runs: list[dict], key: Key) -> float:
    """Accuracy in %, or not a number where a part or a run has no such question."""
    return 100 * float(np.mean([entry_of(run, key)["accuracy"] for run in runs]))


def _cells(scores: dict[str, list[dict]], key: Key) -> dict[str, str]:
    cells = {}
    for model, runs in scores.items():
        values = 100 * np.array([entry_of(run, key)["accuracy"] for run in runs])
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
                folder = scores_dir(config, trained_on, model, seed)
                with reading(folder / "history.csv", "avqa train"):
                    history = pd.read_csv(folder / "history.csv")[["epoch", column]]
                name = model_label(config, trained_on, model) if n == 0 else None
                style = {"color": f"C{color}", "alpha": 0.8, "marker": ".", "label": name}
                axis.plot(history["epoch"], factor * history[column], **style)
        axis.set(title=title, xlabel="epoch")
        legend(axis, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3)  # below, where it hides no line
        plots[title] = svg(figure)
    return plots
