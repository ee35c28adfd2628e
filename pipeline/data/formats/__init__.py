"""Annotation formats: one file and one row each. A reader turns one record of a file into a `Question`."""

import json
from importlib import import_module
from pathlib import Path

import pandas as pd

from pipeline.data.formats.base import Record
from pipeline.errors import AVQAError

# Name in the configuration -> module with `parse(record: Record) -> Question`.
FORMATS = {
    "music_avqa": "pipeline.data.formats.music_avqa",
    "avqa": "pipeline.data.formats.avqa",
}


def read_annotations(path: str | Path, split: str, format: str = "music_avqa") -> pd.DataFrame:
    """One annotation file, JSON (a list of objects) or CSV with a header, as rows of questions.parquet.

    Columns: split, question_id (text or missing), video_id, question, scenario, type, answer, choices and keywords
    (lists of texts, or missing). Raises AVQAError naming file, record and field.
    """
    path = Path(path)
    parse = import_module(FORMATS[format]).parse
    records = [Record(value, f"{path}: record {n}") for n, value in enumerate(_load(path, split))]
    return pd.DataFrame([{"split": split, **parse(record)._asdict()} for record in records])


def _load(path: Path, split: str) -> list[dict]:
    try:
        if path.suffix.lower() == ".csv":
            records = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig").to_dict("records")
        else:
            records = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such annotation file (annotations.{split})") from None
    except IsADirectoryError:
        raise AVQAError(f"{path}: is a folder; annotations.{split} must name one file") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise AVQAError(f"{path}: neither JSON nor CSV ({error})") from error
    if not isinstance(records, list) or not records:
        raise AVQAError(f"{path}: must hold a list of questions")
    return records
