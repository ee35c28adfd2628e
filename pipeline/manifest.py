"""Annotations and videos to tables: who asks what about which file, and which videos make a shard."""

import json
import re
import stat
from pathlib import Path

import pandas as pd

from pipeline.config import results_dir
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic
from pipeline.storage.shard_list import Video, read_shard_list, write_shard_list

VIDEO_ID = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")  # one plain file name: no path, not hidden, no control characters
SLOT = re.compile(r"<[^<>]+>")
FIRST_FEW = 5


def build_manifest(config: dict) -> Path:
    """Write videos.parquet, questions.parquet and shards/<k>.tsv of a data set; returns their folder.

    questions.parquet: split, question_id (may be missing), video_id, video_row (row of its features), question
    (slots filled in), scenario, type, answer, answer_id (in order of first appearance in training; -1 if it
    never appears there). videos.parquet: video_id, path, size (bytes), mtime_ns, shard, row.
    Raises AVQAError naming file, record and field.
    """
    out = results_dir(config)
    questions = pd.concat(
        [read_annotations(path, split) for split, path in config["annotations"].items()], ignore_index=True
    )
    videos, missing = find_videos(questions["video_id"].unique(), config["videos"])
    if missing and not config["allow_missing"]:
        orphans = int(questions["video_id"].isin(missing).sum())
        raise AVQAError(
            f"{config['videos']['folder']}: {len(missing)} videos that {orphans} questions ask about are missing, "
            f"the first: {', '.join(missing[:FIRST_FEW])}; put them there, or set allow_missing: true to leave "
            "their questions out"
        )
    questions = questions[~questions["video_id"].isin(missing)].reset_index(drop=True)
    if questions.empty:
        raise AVQAError(f"{config['videos']['folder']}: none of the videos that the annotations name is there")

    videos = in_manifest_order(videos, out / "shards")
    table = pd.DataFrame(videos)
    table["shard"] = table.index // config["shard_size"]
    table["row"] = table.index
    questions["video_row"] = questions["video_id"].map(table.set_index("video_id")["row"])
    questions["answer_id"] = index_answers(questions)

    write_parquet(table, out / "videos.parquet")
    write_parquet(questions, out / "questions.parquet")
    shards = [videos[i : i + config["shard_size"]] for i in range(0, len(videos), config["shard_size"])]
    for k, shard in enumerate(shards):
        write_shard_list(out / "shards" / f"{k:05d}.tsv", shard)
    for stale in sorted((out / "shards").glob("*.tsv"))[len(shards) :]:
        stale.unlink()

    unseen = int((questions["answer_id"] < 0).sum())
    print(
        f"{len(questions)} questions ({questions['question'].nunique()} different) about {len(videos)} videos in "
        f"{len(shards)} shards; {len(missing)} videos missing; "
        f"{unseen} questions whose answer never occurs in training"
    )
    return out


def read_annotations(path: str | Path, split: str) -> pd.DataFrame:
    """One annotation file, official MUSIC-AVQA JSON or CSV with the same columns, as rows of questions.parquet."""
    path = Path(path)
    try:
        if path.suffix.lower() == ".csv":
            records = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records")
        else:
            records = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such annotation file (annotations.{split})") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise AVQAError(f"{path}: neither JSON nor CSV ({error})") from error
    if not isinstance(records, list) or not records:
        raise AVQAError(f"{path}: must hold a list of questions")
    return pd.DataFrame([_parse(record, f"{path}: record {n}", split) for n, record in enumerate(records)])


def _parse(record: dict, where: str, split: str) -> dict:
    def field(name: str) -> str:
        if not isinstance(record, dict) or name not in record:
            raise AVQAError(f"{where}: field {name} is missing")
        return str(record[name])

    def string_list(name: str) -> list[str]:
        try:
            values = json.loads(field(name))
        except ValueError:
            values = None
        if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
            raise AVQAError(f'{where}: field {name} must be a JSON list of strings such as ["Audio", "Counting"]')
        return values

    video_id = field("video_id")
    if not VIDEO_ID.fullmatch(video_id):
        raise AVQAError(f"{where}: video_id {video_id!r} could leave the video folder; it must be a plain file name")
    kind = string_list("type")
    if len(kind) != 2:
        raise AVQAError(f"{where}: field type must hold a scenario and a question type, not {kind}")
    identity = str(record.get("question_id", "")).strip()
    if identity and not identity.lstrip("-").isdigit():
        raise AVQAError(f"{where}: field question_id must be a whole number, not {identity!r}")
    return {
        "split": split,
        "question_id": int(identity) if identity else None,
        "video_id": video_id,
        "question": fill_slots(field("question_content"), string_list("templ_values"), where),
        "scenario": kind[0],
        "type": kind[1],
        "answer": field("anser"),
    }


def fill_slots(template: str, values: list[str], where: str = "question") -> str:
    """`Is the <Object> louder?` and ["violin"] make `Is the violin louder?`. Raises AVQAError if counts differ."""
    slots = SLOT.findall(template)
    if len(slots) != len(values):
        raise AVQAError(
            f"{where}: question_content has {len(slots)} slots, templ_values {len(values)} fillers: "
            f"{template!r}, {values}"
        )
    fillers = iter(values)
    # v2.0 has some full-width question marks, which CLIP's tokenizer would take for another word.
    return SLOT.sub(lambda _: next(fillers), template).strip().replace("？", "?")


def find_videos(ids, videos: dict) -> tuple[list[Video], list[str]]:
    """The files of the given ids and the ids without one. Raises AVQAError for links out and special files."""
    folder = Path(videos["folder"])
    root = folder.resolve()
    found, missing = [], []
    for video_id in ids:
        path = folder / videos["pattern"].format(video_id=video_id)
        try:
            info = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            missing.append(video_id)
            continue
        if not videos["follow_links"] and not path.resolve().is_relative_to(root):
            raise AVQAError(f"{path}: is a link that leaves {folder}; set videos.follow_links: true if that is meant")
        if not stat.S_ISREG(info.st_mode):
            raise AVQAError(f"{path}: is not a regular file; remove it or the question about it")
        found.append(Video(video_id, str(path), info.st_size, info.st_mtime_ns))
    return found, missing


def in_manifest_order(videos: list[Video], shards: Path) -> list[Video]:
    """Videos that are in shards already keep their places, new ones go to the end."""
    known = [video.video_id for tsv in sorted(shards.glob("*.tsv")) for video in read_shard_list(tsv)]
    place = {video_id: n for n, video_id in enumerate(known)}
    return sorted(videos, key=lambda video: place.get(video.video_id, len(place)))


def index_answers(questions: pd.DataFrame) -> pd.Series:
    """Answers numbered in order of first appearance in training (in all splits where there is no training)."""
    training = questions[questions["split"] == "train"]
    seen = (questions if training.empty else training)["answer"].unique()
    return questions["answer"].map({answer: n for n, answer in enumerate(seen)}).fillna(-1).astype("int64")


def write_parquet(table: pd.DataFrame, path: Path) -> None:
    """Write a table in one step, and only if it differs from what is there, so that nothing is due in vain."""
    if path.exists() and pd.read_parquet(path).equals(table):
        return
    with atomic(path) as partial:
        table.to_parquet(partial, index=False)
