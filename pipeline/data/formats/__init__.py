"""Annotation formats: one file and one row each. A reader turns one record of a file into a `Question`."""

import csv
import json
from importlib import import_module
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from pipeline.data.formats.base import Record, is_storable
from pipeline.errors import AVQAError

# Name in the configuration -> module with `parse(record: Record) -> Question`.
FORMATS = {
    "music_avqa": "pipeline.data.formats.music_avqa",
    "avqa": "pipeline.data.formats.avqa",
    "valor_avqa": "pipeline.data.formats.valor_avqa",
    "plain": "pipeline.data.formats.plain",
}
SPLITS = ("train", "val", "test")
EXCESS = "\0"  # key of the fields of a CSV row that are beyond its header
COLUMNS = ["split", "part", "video_id", "question", "answer", "scenario", "type", "question_id", "choices", "keywords",
           "prompt"]  # fmt: skip


def read_annotations(
    path: str | Path, split: str | None, format: str = "music_avqa", part: str | None = None
) -> pd.DataFrame:
    """One annotation file, JSON (a list of objects), CSV with a header or Parquet, as rows of questions.parquet.

    `split` None: the file names each question's split. Columns: split, part (of the split, or missing), question_id
    (text or missing), video_id, question, scenario, type, answer, choices and keywords (lists of texts, or missing),
    prompt (text or missing).
    Raises AVQAError naming file, record and field.
    """
    path = Path(path)
    parse = import_module(FORMATS[format]).parse
    records = [Record(value, f"{path}: record {n}") for n, value in enumerate(_load(path, split))]
    rows = [parse(record)._asdict() for record in records]
    for row, record in zip(rows, records, strict=True):
        if split and row["split"] in SPLITS and row["split"] != split:
            raise record.error(
                f"field split is {row['split']}, and the file is given as annotations.{split}; give a file that names "
                "its splits as annotations itself, or leave the column out"
            )
        row["split"], row["part"] = split or row["split"], part or row["part"]
        if row["split"] not in SPLITS:
            raise record.error(f"field split must be one of {', '.join(SPLITS)}, not {row['split']!r}")
        _check_storable(row, record)
    return pd.DataFrame(rows, columns=COLUMNS)


def _check_storable(row: dict, record: Record) -> None:
    for name, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if text is not None and not is_storable(text):
                raise record.error(
                    f"its {name} {text[:80]!r} has NUL or half of a surrogate pair (such as \\ud83c alone), which no "
                    "file of the pipeline can hold; write the character whole, or remove it"
                )


def _load(path: Path, split: str | None) -> list[dict]:
    named = f"annotations.{split}" if split else "annotations"
    try:
        records = _records(path)
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such annotation file ({named})") from None
    except IsADirectoryError:
        raise AVQAError(f"{path}: is a folder; {named} must name one file") from None
    except (ValueError, csv.Error, OSError, RecursionError) as error:
        raise AVQAError(f"{path}: not JSON, CSV or Parquet ({error})") from error
    if not isinstance(records, list) or not records:
        raise AVQAError(f"{path}: must hold a list of questions")
    return records


def _records(path: Path) -> object:
    """The objects of a file, by its suffix. CSV may begin with a byte order mark, as may JSON."""
    if path.suffix.lower() == ".csv":
        return _csv_records(path)
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path).to_pylist()
    return json.loads(path.read_text(encoding="utf-8-sig"))


def _csv_records(path: Path) -> list[dict]:
    """The rows of a CSV file by its header; fields that are lacking at the end are empty. Raises AVQAError for a row
    that is longer, such as one with a comma in a text without quotes: its fields would be taken for other columns'."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, restkey=EXCESS, restval="", strict=True)
        names = [name for name in rows.fieldnames or () if name]
        if len(set(names)) < len(names):
            raise AVQAError(f"{path}: has several columns of one name; its columns are {', '.join(names)}")
        records = list(rows)
    for n, record in enumerate(records):
        if EXCESS in record:
            raise AVQAError(
                f"{path}: record {n} has {len(record[EXCESS])} fields more than the header; put texts that contain a "
                "comma into double quotes"
            )
    return records
