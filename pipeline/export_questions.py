"""Questions as released code reads them: all that were published, in their order, with numbers for ids."""

import hashlib
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.data.feature_set import FeatureSet
from pipeline.data.formats import SPLITS
from pipeline.data.layouts import Layout
from pipeline.data.vocabulary import question_words
from pipeline.errors import AVQAError
from pipeline.manifest import read_manifest
from pipeline.numbering import Numbering
from pipeline.storage.atomic import write_if_changed
from pipeline.storage.tables import read_table

IDS = "question_ids.csv"
VIDEOS = "videos.csv"
USABLE = "_usable"  # of the name of a split's file: without the questions whose video has zeros
LEFT_OUT = "left_out"  # column: why a question or a video has zeros in place of features, "" if it has features
FILTERED, UNNUMBERED = "filtered", "unnumbered"

log = logging.getLogger(__name__)


def published_questions(features: FeatureSet) -> pd.DataFrame:
    """All questions of a data set's annotations in their order: the columns of questions.parquet, export_id, and
    left_out: "failed", "missing" or "filtered" for a question without features, else ""."""
    return _published(features.folder, features.failed)


def _published(folder: Path, failed: list[str]) -> pd.DataFrame:
    present, absent = read_table(folder / "questions.parquet"), read_table(folder / "left_out.parquet")
    present[LEFT_OUT] = np.where(present["video_id"].isin(failed), "failed", "")
    parts = [part for part in (present, absent.rename(columns={"reason": LEFT_OUT})) if len(part)]
    table = pd.concat(parts, ignore_index=True).sort_values("record", kind="stable", ignore_index=True)
    table["export_id"] = export_ids(table)
    return table


def mark_unnumbered(questions: pd.DataFrame, layout: Layout, numbering: Numbering) -> pd.DataFrame:
    """The questions, and in left_out which of them released code cannot read: their answer, or a word that it wants the
    number of, has none."""
    unnumbered = questions["answer_id"] < 0
    if layout.options:
        unnumbered &= questions["choices"].isna()
    if layout.words:
        known = set(numbering.words["tokens"])
        unnumbered |= np.array([not known.issuperset(words) for words in question_words(questions)], bool)
    unnumbered &= questions["split"] != "train"
    return questions.assign(**{LEFT_OUT: questions[LEFT_OUT].mask(unnumbered, UNNUMBERED)})


def numbering_questions(folder: Path, questions: pd.DataFrame) -> pd.DataFrame:
    """The questions of train and val that released code opens although a data set has none: those of the data set that
    its models are trained on. No features belong to them. Raises AVQAError if they are not there."""
    lacking = [split for split in SPLITS if split != "test" and split not in set(questions["split"])]
    trained_on = next(iter(read_manifest(folder).get("trained_on", [])), folder.name)
    if "train" not in lacking or trained_on == folder.name:
        return questions.iloc[:0]
    other = folder.parent / trained_on
    if not (other / "manifest.json").exists():
        raise AVQAError(
            f"{other / 'manifest.json'}: no such file; released code numbers the answers of {folder.name} by the "
            f"training questions of {trained_on}: make its manifest with `avqa manifest` first"
        )
    table = _published(other, [])
    table = table[table["split"].isin(lacking)].reset_index(drop=True)
    return table.assign(export_id=export_ids(table.assign(question_id=None)), left_out=f"of {trained_on}")


def export_ids(questions: pd.DataFrame) -> list[int]:
    """A number for each question, which is the name of its files, since released code reads ids as numbers: its own id,
    or where that is missing, repeated or no such number, one of 15 digits that follows from split, video, question and
    id, so that it is the same in every export."""
    own = questions["question_id"].astype("string").tolist()
    times = Counter(own)
    seen: Counter[str] = Counter()
    ids: list[int] = []
    for value, split, video, text in zip(
        own, questions["split"], questions["video_id"], questions["question"], strict=True
    ):
        if (
            not pd.isna(value)
            and times[value] == 1
            and value.isdecimal()
            and len(value) < 16
            and str(int(value)) == value
        ):
            ids.append(int(value))
            continue
        what = repr((split, video, text, None if pd.isna(value) else value))
        seen[what] += 1
        digest = hashlib.sha256(f"{what}{seen[what]}".encode()).hexdigest()
        ids.append(10**14 + int(digest, 16) % (9 * 10**14))
    if len(set(ids)) != len(ids):
        raise AVQAError("two questions got one id; give one of them a question_id of its own in the annotations")
    return ids


def in_order_of_numbers(training: pd.DataFrame, answers: list[str]) -> pd.DataFrame:
    """Training questions of which the first of each answer come in the order of the answers' numbers. Nothing moves
    where that is so already, as it is where answers are numbered by their first appearance in training."""
    first = training["answer"].unique().tolist()
    known = set(first)
    if first == [answer for answer in answers if answer in known]:
        return training
    number = {answer: n for n, answer in enumerate(answers)}
    heads = training.drop_duplicates("answer")
    heads = heads.loc[heads["answer"].map(number).sort_values(kind="stable").index]
    return pd.concat([heads, training.drop(heads.index)])


def write_annotations(layout: Layout, questions: pd.DataFrame, answers: list[str], words: int, out: Path) -> None:
    """A split's questions in MUSIC-AVQA's form with their slots filled, and the table of answers. `words` is the length
    of the longest text in tokens.

    The training file has all published questions, since released code numbers answers and words by it; the others lack
    what the configuration filters, and questions without numbers, at which released code stops. A second
    file of training and validation has only the questions that have features. There is none for the test, since test
    scripts read the questions' types from the first.
    """
    for split, group in questions.groupby("split", sort=False):
        table = in_order_of_numbers(group, answers) if split == "train" else group
        if split != "train":
            table = table[~table[LEFT_OUT].isin([FILTERED, UNNUMBERED])]
        paths = [out / path.format(split=split) for path in layout.annotations]
        for path in paths:
            write_if_changed(path, _records(table))
        usable = table[table[LEFT_OUT] == ""]
        if split != "test" and 0 < len(usable) < len(table):
            write_if_changed(paths[0].with_stem(paths[0].stem + USABLE), _records(usable))
        for subset in layout.subsets:
            if subset.split == split and table[list(subset.values)].notna().any(axis=None):
                chosen = np.logical_and.reduce([table[name].isin(values) for name, values in subset.values.items()])
                write_if_changed(out / subset.path, _records(table[chosen]))
    if layout.answers:
        numbers = {"ans2ix": {answer: n for n, answer in enumerate(answers)}, "max_que_len": words}
        write_if_changed(out / layout.answers, to_json(numbers))


def _records(questions: pd.DataFrame) -> str:
    return to_json([_record(row) for row in questions.to_dict("records")])


def _record(row: dict) -> dict:
    question, choices = row["question"], row.get("choices")
    record = {
        "video_id": row["video_id"],
        "question_id": row["export_id"],
        "type": json.dumps([row["scenario"], row["type"]]),
        # The released code takes the last character for a question mark and drops it.
        "question_content": f"{question}?" if question[-1].isalnum() else question,
        "templ_values": "[]",
        "anser": row["answer"],
    }
    if pd.api.types.is_list_like(choices):  # as CueSpace reads them; the others read the answer alone
        record |= {"multi_choice": list(choices), "answer": list(choices).index(row["answer"])}
    return record


def zero_videos(questions: pd.DataFrame, videos: list[str]) -> pd.Series:
    """Why the videos that published questions ask about and that are not in `videos` are left out, by video id."""
    absent = questions[~questions["video_id"].isin(videos)]
    return absent.drop_duplicates("video_id").set_index("video_id")[LEFT_OUT]


def write_tables(features: FeatureSet, videos: list[str], zeros: pd.Series, questions: pd.DataFrame, out: Path) -> None:
    """True lengths of the videos, which exported id is which question, and in both what is left out and why."""
    table = features.videos.set_index("video_id").reindex([*videos, *zeros.index])[["num_segments", "has_audio"]]
    table.loc[zeros.index] = (0, False)
    table = table.astype({"num_segments": int, "has_audio": bool})
    table[LEFT_OUT] = zeros.reindex(table.index, fill_value="")
    write_if_changed(out / VIDEOS, table.to_csv(lineterminator="\n"))
    names = ["export_id", "split", "question_id", "video_id", "question", "answer", LEFT_OUT]
    write_if_changed(out / IDS, questions[names].to_csv(index=False, lineterminator="\n"))


def to_json(value: object) -> str:
    """As all files of an export are written."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"
