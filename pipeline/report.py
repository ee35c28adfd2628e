"""What came out: a summary of all models and seeds as text, and one self-contained HTML page."""

import os
from pathlib import Path

import pandas as pd
import yaml

from pipeline import __version__
from pipeline.accuracy import RANDOM_WEIGHTS
from pipeline.config import collection_dir, dataset_dir, scores_dir
from pipeline.reporting import answers, overview, scores, stages
from pipeline.reporting.page import render
from pipeline.reporting.sheet import listed_videos
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import FAILURE_FIELDS, UNHEARD
from pipeline.storage.features import FeatureIndex
from pipeline.storage.tables import read_table, reading

FAILURES = 200  # at most so many are listed


def write_report(config: dict, out: str | Path | None = None, results: str | Path | None = None) -> str:
    """Write summary.txt and report.html of a data set's results to `out` (default: there); returns the summary.
    `results` is a folder that leads to the results under the names without keys (default: the configuration's).

    Accuracy is the mean over seeds, ± their standard deviation. Raises AVQAError if a model has no scores yet.
    """
    shown, config = config, config | {"results": str(results or config["results"])}
    folder, runs = dataset_dir(config), scores.read_runs(config)
    with reading(folder / "failures.tsv", "avqa failures"):
        failures = pd.read_csv(folder / "failures.tsv", sep="\t", dtype=str, keep_default_na=False)
        failures = failures[list(FAILURE_FIELDS)]
    asked = read_table(folder / "questions.parquet", ["video_id"])["video_id"]
    failures = failures[failures["video_id"].isin(asked)]  # shards may have videos of other data sets too
    failed = int((failures["stage"] != UNHEARD).sum())
    encoders = [encoder for own in runs.values() for run in own for encoder in run["encoders"].values()]
    note = "" if all(encoder["pretrained"] for encoder in encoders) else RANDOM_WEIGHTS
    parts = _parts(config, folder, runs, failures) | {"configuration": yaml.safe_dump(shown, sort_keys=False)}
    page = render("report.html", title=config["dataset"], note=note, **parts)
    out = Path(out or folder)
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    summary = _summary(shown, runs, scores.cross_table(config), note, failed)
    with atomic(out / "summary.txt") as partial:
        partial.write_text(summary + "\n", encoding="utf-8")
    return summary


def _parts(config: dict, folder: Path, runs: dict[str, list[dict]], failures: pd.DataFrame) -> dict:
    """What the template shows, section by section."""
    seed = config["train"]["seeds"][0]
    index = FeatureIndex(folder / "features.h5")
    questions = read_table(folder / "questions.parquet")
    videos = listed_videos(collection_dir(config))
    predictions = answers.read_predictions(config, seed)
    explanations = answers.read_explanations(config, seed)
    published, same = scores.beside_published(config)
    return {
        "counts": [
            *overview.counts(questions, index, config["decode"]["segments"]),
            *overview.answer_counts(config, questions),
        ],
        "types": overview.types_by_split(questions),
        "answers": overview.answers_by_split(questions),
        "examples": answers.examples(predictions, videos, config) if predictions else [],
        "seed": seed,
        "seeds": len(config["train"]["seeds"]),
        "scores": scores.score_table(runs).rename_axis("type").reset_index(),
        "crossed": scores.cross_table(config),
        "published": published,
        "same_dataset": same,
        "curves": scores.training_curves(config),
        "confusions": {model: answers.confusion(table) for model, table in predictions.items()},
        "explanations": explanations,
        "contributions": answers.contribution_table(explanations),
        "by_second": answers.second_curves(explanations),
        "attention": {m: found for m, e in explanations.items() if (found := answers.attention_examples(e))},
        "preferences": {m: plots for m, e in explanations.items() if (plots := answers.preference_plots(e))},
        "missing": overview.missing(folder),
        "failed": int((failures["stage"] != UNHEARD).sum()),
        "failures": failures[failures["stage"] != UNHEARD][:FAILURES],
        "unheard": failures[failures["stage"] == UNHEARD][:FAILURES],
        "stages": stages.stage_table(config, index, questions),
        "parts": stages.part_table(config, index),
        "cores": os.cpu_count(),
        "encoders": overview.encoders(index),
        "version": __version__,
    }


def _summary(config: dict, runs: dict[str, list[dict]], crossed: pd.DataFrame, note: str, failed: int) -> str:
    folder = dataset_dir(config)
    features = ", ".join(f"{collection_dir(config) / 'features' / name}-*/*.h5" for name in config["encoders"])
    places = [scores_dir(config, t, model, "*") for t in config["trained_on"] for model in config["models"]]
    lines = [
        f"Test accuracy in %, {len(config['train']['seeds'])} seed(s), data set {config['dataset']}",
        scores.score_table(runs).to_string(),
        "Models by question type, as in the papers' tables",
        scores.paper_layout(runs).to_string(),
        *(["Trained on one data set, tested on each", crossed.to_string(index=False)] if len(crossed) else []),
        *([note] if note else []),
        f"{failed} videos failed: {folder / 'failures.tsv'}" if failed else "no video failed",
        "scores:   " + ", ".join(f"{place}/scores.json" for place in places),
        f"features: {features}",
        f"          all of them in one: {folder / 'features.h5'}",
        f"report:   {folder / 'report.html'}",
    ]
    return "\n".join(lines)
