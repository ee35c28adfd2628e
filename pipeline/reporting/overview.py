"""The data set at a glance, and where its numbers come from."""

import json
from pathlib import Path

import pandas as pd

from pipeline.config import dataset_dir
from pipeline.data.answers import display_forms, written_as
from pipeline.data.formats.base import TYPES
from pipeline.manifest import read_numbering
from pipeline.storage.contract import DECODED
from pipeline.storage.features import FeatureIndex
from pipeline.storage.tables import read_table, reading

ANSWERS = 20  # the most frequent answers are listed, the others counted


def counts(questions: pd.DataFrame, index: FeatureIndex, segments: int) -> list[tuple[str, str]]:
    """What there is and what is missing, as lines of name and value."""
    decoded = index.status == DECODED
    seconds = int(index.num_segments[decoded].sum())
    failed = questions["video_id"].isin(index.video_id[~decoded])
    return [
        ("Videos", f"{len(index.video_id):,}"),
        ("Seconds of video read", f"{seconds:,} ({seconds / 3600:.1f} hours)"),
        ("Videos that could not be decoded", f"{int((~decoded).sum()):,}, with {int(failed.sum()):,} questions"),
        ("Videos without audio", f"{int((~index.has_audio[decoded]).sum()):,}"),
        (f"Videos shorter than {segments} s", f"{int((index.num_segments[decoded] < segments).sum()):,}"),
        ("Questions", f"{len(questions):,}, {questions['question'].nunique():,} different texts"),
    ]


def answer_counts(config: dict, questions: pd.DataFrame) -> list[tuple[str, str]]:
    """How many answers the models choose from, and how many questions none of their training questions has the answer
    of: lines of name and value for each data set that models are trained on."""
    lines = []
    for name in config["trained_on"]:
        folder, own = dataset_dir(config | {"dataset": name}), name == config["dataset"]
        table = questions if own else read_table(folder / "questions.parquet")
        numbering = read_numbering(folder)
        number = f"{len(numbering.answers):,}"
        if (options := questions.get("choices", pd.Series(dtype=object)).dropna()).size:
            number = f"each question has its own, {options.map(len).max()} at most"
        learned = table.loc[table["split"] == "train", "answer"]
        answers = questions["answer"]
        if numbering.merge_answers:  # another data set may write them differently
            answers = pd.Series(written_as(answers, display_forms(learned)))
        unknown = int((~answers.isin(learned)).sum())
        models = "" if own else f", models trained on {name}"
        lines.append((f"Answers to choose from{models}", number))
        lines.append((f"Questions whose answer never occurs in training{models}", f"{unknown:,}"))
    return lines


def types_by_split(questions: pd.DataFrame) -> pd.DataFrame:
    """How many questions of each type a split has; types in the order of the papers' tables."""
    table = questions.groupby(["scenario", "type", "split"]).size().unstack(fill_value=0)
    order = {kind: n for n, kind in enumerate(TYPES)}
    table = table.loc[sorted(table.index, key=lambda kind: (order.get(kind, len(order)), kind))]
    table = table[[s for s in ("train", "val", "test") if s in table]]
    table.index = [f"{scenario}/{kind}" for scenario, kind in table.index]
    table.loc["all"] = table.sum()
    return table.assign(all=table.sum(axis=1)).rename_axis("type").reset_index()


def answers_by_split(questions: pd.DataFrame) -> pd.DataFrame:
    """The most frequent answers, and in one line the others."""
    table = questions.groupby(["answer", "split"]).size().unstack(fill_value=0)
    table = table[[s for s in ("train", "val", "test") if s in table]]
    table = table.assign(all=table.sum(axis=1)).sort_values("all", ascending=False, kind="stable")
    if len(table) > ANSWERS:
        others = table[ANSWERS:].sum().to_frame(f"{len(table) - ANSWERS} others").T
        table = pd.concat([table[:ANSWERS], others])
    return table.rename_axis("answer").reset_index()


def encoders(index: FeatureIndex) -> pd.DataFrame:
    """Which weights and libraries made the features."""
    lines = []
    for name, attributes in index.provenance.items():
        lines.append(
            {
                "features": name,
                "encoder": attributes.get("encoder", name),
                "weights": attributes["weights"],
                "pretrained": "yes" if attributes["pretrained"] else "NO: random numbers",
                "sha256 of the weights": attributes["weights_sha256"],
                "libraries": _listed(attributes.get("libraries", "")),
                "configuration": _listed(attributes.get("config", "")),
            }
        )
    return pd.DataFrame(lines)


def _listed(value: object) -> str:
    """JSON of an attribute as name value, name value."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{k} ({_listed(v)})" if isinstance(v, dict) else f"{k} {v}" for k, v in value.items())


def missing(folder: Path) -> pd.DataFrame:
    """How many videos are absent or failed, and how many questions of each kind that costs, by annotation file: what
    missing.tsv of the data set, which names the videos, adds up to. Empty where it is not there."""
    path = folder / "missing.tsv"
    if not path.exists():
        return pd.DataFrame()
    with reading(path, "avqa failures"):
        ledger = pd.read_csv(path, sep="\t", dtype={"questions": int, "video_id": str}, keep_default_na=False)
        kinds = [name for name in ledger if name not in ("video_id", "questions")]
        counts = ledger.groupby(kinds, sort=True).agg(videos=("video_id", "nunique"), questions=("questions", "sum"))
    return counts.reset_index()
