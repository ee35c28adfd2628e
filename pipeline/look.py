"""One page with what the pipeline reads of a video, and what is asked and answered about it."""

import os
from pathlib import Path

import pandas as pd

from pipeline.config import check_config, collection_dir, dataset_dir
from pipeline.errors import AVQAError
from pipeline.reporting.answers import questions_about, read_predictions
from pipeline.reporting.page import render
from pipeline.reporting.sheet import DECODING, Sheet, frame_input, listed_videos, read_sheets
from pipeline.storage.atomic import LONGEST, atomic
from pipeline.storage.shard_list import Video
from pipeline.storage.tables import read_table

WIDTH = 160  # pixels per second


def look(video: str, config: dict | None = None, out: str | Path | None = None) -> str:
    """Write the page of a video (a file, or with `config` an id) to `out`; returns a summary as text.

    Without `config`, decoding has its defaults and frames are CLIP's. Raises AVQAError if there is no such video.
    """
    found = find_video(video, config)
    decode, encoders = (config["decode"], config["encoders"]) if config else (default_decode(), [])
    (sheet,) = read_sheets([found], frame_input(encoders), decode, WIDTH)
    described = [("File", found.path or found.audio_path), ("Frames", frame_input(encoders).key)]
    described += [("Decoding", _listed(decode))]
    if not sheet.reason:
        described += [
            ("has_audio", str(sheet.has_audio)),
            ("num_segments", f"{sheet.num_segments} of {sheet.segments}"),
        ]
    questions = _questions(sheet, config) if config else None
    out = Path(out or f"{found.video_id}.html")
    if len(os.fsencode(out.name)) > LONGEST:
        raise AVQAError(f"{out.name}: is too long for a file name; give another one with --out")
    with atomic(out) as partial:
        page = render("look.html", title=found.video_id, note="", sheet=sheet, described=described, questions=questions)
        partial.write_text(page, encoding="utf-8")
    lines = [f"{name}: {value}" for name, value in described]
    return "\n".join([*lines, *([f"cannot be read: {sheet.reason}"] if sheet.reason else []), f"page: {out}"])


def find_video(video: str, config: dict | None) -> Video:
    """The file of that name, or the video with that id. Raises AVQAError."""
    if Path(video).is_file():
        return Video(Path(video).stem, video, 0, 0)
    if config is None:
        raise AVQAError(f"{video}: no such file; for a video id, give --config")
    videos = listed_videos(collection_dir(config))
    if video not in videos:
        raise AVQAError(f"{video}: no file has this name, and {collection_dir(config)} has no video with this id")
    return videos[video]


def default_decode() -> dict:
    """The schema's defaults of `decode`."""
    return check_config({"decode": {}}, sections=("decode",))["decode"]


def _listed(values: dict) -> str:
    return ", ".join(f"{name} {values[name]}" for name in DECODING)


def _questions(sheet: Sheet, config: dict) -> pd.DataFrame:
    """All questions about the video, and what models answered to those of the test split."""
    folder = dataset_dir(config)
    predictions = read_predictions(config, config["train"]["seeds"][0])
    table = read_table(folder / "questions.parquet")
    table = table.loc[table["video_id"] == sheet.video_id, ["split", "question", "answer"]].drop_duplicates()
    answered = questions_about(sheet, predictions) if predictions else pd.DataFrame()
    if answered.empty:
        return table
    answered = answered.drop_duplicates(["question", "answer"]).assign(split="test")
    return table.merge(answered, how="left", on=["split", "question", "answer"]).fillna("")
