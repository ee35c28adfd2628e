"""What models answer, and what their answers depend on."""

import json
from itertools import product

import numpy as np
import pandas as pd

from pipeline.accuracy import OVERALL, Key, entry_of, names_of
from pipeline.config import scores_dir
from pipeline.reporting.page import legend, new_figure, svg
from pipeline.reporting.scores import model_label
from pipeline.reporting.sheet import Sheet, frame_input, read_sheets
from pipeline.storage.shard_list import Video
from pipeline.storage.tables import reading

OTHERS = ""  # stands for all other answers: no answer is empty, and one may be "other"
CONFUSED = 16  # the most frequent answers have a row and a column of their own
EXAMPLES = 2  # videos with the surest wrong answers, and as many with the surest right ones
SHEET_WIDTH = 112  # pixels per second
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")  # of the most frequent answers
OTHER = "0.6"  # grey, for the other answers


def read_predictions(config: dict, seed: int) -> dict[str, pd.DataFrame]:
    """predictions.parquet of each model's run with a seed, by the model's label; models without one are left out."""
    found = {}
    for trained_on, model in product(config["trained_on"], config["models"]):
        path = scores_dir(config, trained_on, model, seed) / "predictions.parquet"
        if path.exists():
            with reading(path, f"avqa evaluate {path.parent}"):
                found[model_label(config, trained_on, model)] = pd.read_parquet(path)
    return found


def confusion(predictions: pd.DataFrame) -> tuple[list[str], list[list[tuple[int, float]]]]:
    """The most frequent answers, and for each of them how often the model gave which: count and share of the row.
    The last column has all other answers."""
    names = predictions["answer"].value_counts(sort=True).index[:CONFUSED].tolist()
    given = predictions["prediction"].where(predictions["prediction"].isin(names), OTHERS)
    table = pd.crosstab(predictions["answer"], given).reindex(index=names, columns=[*names, OTHERS], fill_value=0)
    shares = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    pairs = zip(table.to_numpy().tolist(), shares.to_numpy().tolist(), strict=True)
    return names, [list(zip(*row, strict=True)) for row in pairs]


def examples(predictions: dict[str, pd.DataFrame], videos: dict[str, Video], config: dict) -> list[dict]:
    """Contact sheets of a few test videos, with their questions and what each model answered."""
    first = next(iter(predictions.values()))
    sure = first.sort_values("confidence", ascending=False, kind="stable")
    wrong, right = (sure.loc[sure["correct"] == c, "video_id"].drop_duplicates() for c in (False, True))
    chosen = wrong[:EXAMPLES].tolist()
    chosen += [video_id for video_id in right if video_id not in chosen][:EXAMPLES]
    listed = [videos[video_id] for video_id in chosen if video_id in videos]
    sheets = read_sheets(listed, frame_input(config["encoders"]), config["decode"], SHEET_WIDTH)
    return [{"sheet": sheet, "questions": questions_about(sheet, predictions)} for sheet in sheets]


def questions_about(sheet: Sheet, predictions: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A video's test questions, the answer, and each model's answer with its confidence."""
    keys, table = ["question", "scenario", "type", "answer"], None
    for model, answers in predictions.items():
        own = answers[answers["video_id"] == sheet.video_id].reset_index(drop=True)
        table = own[keys].copy() if table is None else table
        cells = zip(own["correct"], own["prediction"], own["confidence"], strict=True)
        table[model] = [f"{'✓' if right else '✗'} {answer} {sure:.0%}" for right, answer, sure in cells]
    table["type"] = table.pop("scenario") + "/" + table["type"]
    return table


def read_explanations(config: dict, seed: int) -> dict[str, dict]:
    """explanation.json of each model that is trained on the data set, from its run with a seed; models without one are
    left out."""
    paths = {m: scores_dir(config, config["dataset"], m, seed) / "explanation.json" for m in config["models"]}
    found = {}
    for model, path in paths.items():
        if path.exists():
            with reading(path, f"avqa explain {path.parent}"):
                found[model] = dict(json.loads(path.read_text(encoding="utf-8")))
    return found


def contribution_table(explanations: dict[str, dict]) -> pd.DataFrame:
    """Accuracy in % as trained, and what is lost with each feature taken from another video."""
    trained = {model: explanation["contributions"]["as trained"] for model, explanation in explanations.items()}
    scenarios = dict.fromkeys(scenario for scores in trained.values() for scenario in scores["scenario"])
    keys = [*(("scenario", scenario) for scenario in scenarios), OVERALL]
    names = names_of(keys, lambda key: key[-1], taken=("model", "features"))
    lines = []
    for model, explanation in explanations.items():
        before = _accuracies(trained[model], keys)
        for name, scores in explanation["contributions"].items():
            after = _accuracies(scores, keys)
            if name == "as trained":
                lines.append([model, name, *(f"{value:.1f}" for value in after)])
            else:
                changes = [f"{x - y:+.1f}" for x, y in zip(after, before, strict=True)]
                lines.append([model, f"{name} of another video", *changes])
    return pd.DataFrame(lines, columns=["model", "features", *(names[key] for key in keys)])


def _accuracies(scores: dict, keys: list[Key]) -> list[float]:
    return [100 * entry_of(scores, key)["accuracy"] for key in keys]


def second_curves(explanations: dict[str, dict]) -> str | None:
    """Accuracy by second of the models that offer it."""
    offered = {model: found["by_second"] for model, found in explanations.items() if "by_second" in found}
    if not offered:
        return None
    figure, axis = new_figure(9, 3.2)
    for model, accuracies in offered.items():
        axis.plot(range(1, len(accuracies) + 1), 100 * np.array(accuracies), marker=".", label=model)
    axis.set(xlabel="seconds of the video", ylabel="accuracy (%)")
    legend(axis)
    return svg(figure)


def attention_examples(explanation: dict) -> list[dict]:
    """Questions with each modality's attention: tokens with their share, scaled to the largest, and what padding
    gets."""
    found = []
    for example in explanation.get("word_attention", []):
        modalities = {}
        for name, shares in example["attention"].items():
            largest = max(*shares, 1e-6)
            tokens = [(t, share, share / largest) for t, share in zip(example["tokens"], shares, strict=True)]
            modalities[name] = {"tokens": tokens, "padding": max(0.0, 1 - sum(shares))}
        found.append(example | {"modalities": modalities})
    return found


def preference_plots(explanation: dict) -> dict[str, str]:
    """Each modality's preference features on their two principal components, coloured by answer."""
    features = explanation.get("preference_features", {"answers": []})
    answers = pd.Series(features["answers"], dtype=str)
    named = answers.value_counts().index[: len(COLOURS)]
    colours = dict(zip(named, COLOURS, strict=False)) | {"other": OTHER}
    plots = {}
    for name in (name for name in features if name != "answers"):
        figure, axis = new_figure(5.4, 4)
        drawn = answers.map(lambda answer: colours.get(answer, OTHER))
        axis.scatter(*np.array(features[name]).T, s=9, alpha=0.7, color=drawn, rasterized=True)  # a smaller file
        for answer, colour in colours.items():
            axis.scatter([], [], s=9, color=colour, label=answer)
        axis.set(title=name, xlabel="component 1", ylabel="component 2")
        legend(axis, loc="center left", bbox_to_anchor=(1, 0.5))
        plots[name] = svg(figure)
    return plots
