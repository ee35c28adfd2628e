"""Annotations and videos to tables: which question belongs to which file, and which videos make a shard."""

import errno
import logging
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import collection_dir, dataset_dir
from pipeline.data.formats import read_annotations
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic
from pipeline.storage.shard_list import Video, read_shard_list, write_shard_list

FIRST_FEW = 5
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # ELOOP: a link that leads to itself

log = logging.getLogger(__name__)


def build_manifest(config: dict) -> None:
    """Write questions.parquet and shards.txt of the data set, videos.parquet and shards/<k>.tsv of its collection.

    questions.parquet: the columns of `read_annotations`, and answer_id (in order of first appearance in training; -1
    if the answer never appears there). shards.txt: the shards that hold the data set's videos. videos.parquet:
    video_id, path, size (bytes), mtime_ns, the same of the audio file, shard, row (in the shard). Raises AVQAError
    naming file, record and field.
    """
    questions = pd.concat(
        [read_annotations(path, split, config["format"]) for split, path in config["annotations"].items()],
        ignore_index=True,
    )
    found, missing = find_videos(questions["video_id"].unique(), config["videos"])
    if missing and not config["allow_missing"]:
        orphans = int(questions["video_id"].isin(missing).sum())
        raise AVQAError(
            f"{config['videos']['folder']}: {len(missing)} videos that {orphans} questions need are missing"
            f"{' or lack their audio file' if config['videos'].get('audio_pattern') else ''}, the first: "
            f"{', '.join(missing[:FIRST_FEW])}; put them there, or set allow_missing: true to leave "
            "their questions out"
        )
    questions = questions[~questions["video_id"].isin(missing)].reset_index(drop=True)
    if questions.empty:
        raise AVQAError(f"{config['videos']['folder']}: none of the videos that the annotations name is there")
    questions["answer_id"] = index_answers(questions)

    shards = update_shards(collection_dir(config), found, config["shard_size"])
    wanted = {video.video_id for video in found}
    own = [name for name, videos in shards.items() if any(video.video_id in wanted for video in videos)]
    out = dataset_dir(config)
    write_parquet(questions, out / "questions.parquet")
    with atomic(out / "shards.txt") as partial:
        partial.write_text("".join(f"{name}\n" for name in own))
    _summarize(questions, len(found), len(own), len(missing))


def _summarize(questions: pd.DataFrame, videos: int, shards: int, missing: int) -> None:
    unknown = int((questions["answer_id"] < 0).sum())
    log.info(
        f"{len(questions)} questions ({questions['question'].nunique()} different) about {videos} videos in "
        f"{shards} shards; {missing} videos missing; {unknown} questions whose answer never occurs in training"
    )
    named = questions[questions["question_id"].notna()]
    repeated = int(named.duplicated(["split", "question_id"]).sum())
    if repeated:
        log.warning(f"{repeated} questions have a question_id that another question of their split has too")


def find_videos(ids: Iterable[str], videos: dict) -> tuple[list[Video], list[str]]:
    """The files of the given ids, and the ids that lack a file. Raises AVQAError for links out and special files."""
    patterns = (videos["pattern"], videos.get("audio_pattern"))
    found, missing = [], []
    for video_id in ids:
        files = [_find(videos, pattern.format(video_id=video_id)) if pattern else ("", 0, 0) for pattern in patterns]
        if None in files:
            missing.append(video_id)
        else:
            found.append(Video(video_id, *files[0], *files[1]))
    return found, missing


def _find(videos: dict, name: str) -> tuple[str, int, int] | None:
    """Path, size and time of a file in the folder of videos; None if it is not there, or a link that leads nowhere."""
    folder = Path(videos["folder"])
    path = folder / name
    state = _state(path)
    if state is None:
        return None
    if not videos["follow_links"] and not path.resolve().is_relative_to(folder.resolve()):
        raise AVQAError(f"{path}: is a link that leaves {folder}; set videos.follow_links: true if that is meant")
    if not path.is_file():
        raise AVQAError(f"{path}: is not a regular file; videos.folder must hold the files themselves")
    return str(path), *state


def _state(path: Path) -> tuple[int, int] | None:
    """Size (bytes) and modification time (ns) of a file; None if it is not there."""
    try:
        info = path.stat()
    except OSError as error:
        if error.errno in NOT_THERE:
            return None
        raise
    return info.st_size, info.st_mtime_ns


def update_shards(collection: Path, found: list[Video], shard_size: int) -> dict[str, list[Video]]:
    """Write the shard lists and videos.parquet of a collection; returns the lists by shard name.

    Membership is append-only: a listed video keeps its row for ever, marked as gone once its file has gone; new
    videos are added in new shards at the end. Lists that already say the same are left untouched.
    """
    folder = collection / "shards"
    now = {video.video_id: video for video in found}
    shards = {tsv.stem: [_as_it_is(v, now) for v in read_shard_list(tsv)] for tsv in sorted(folder.glob("*.tsv"))}
    listed = {video.video_id for videos in shards.values() for video in videos}
    new = [video for video in found if video.video_id not in listed]
    for start in range(0, len(new), shard_size):
        shards[f"{len(shards):05d}"] = new[start : start + shard_size]
    for name, videos in shards.items():
        write_shard_list(folder / f"{name}.tsv", videos)
    rows = [(*video, int(name), row) for name, videos in shards.items() for row, video in enumerate(videos)]
    write_parquet(pd.DataFrame(rows, columns=[*Video._fields, "shard", "row"]), collection / "videos.parquet")
    return shards


def _as_it_is(video: Video, now: dict[str, Video]) -> Video:
    """A listed video with its file's present size and time; another data set's videos are looked up too."""
    if video.video_id in now:
        return now[video.video_id]
    files = [(path, *((path and _state(Path(path))) or (0, 0))) for path in (video.path, video.audio_path)]
    return Video(video.video_id, *files[0], *files[1])


def index_answers(questions: pd.DataFrame) -> pd.Series:
    """Answers numbered in order of first appearance in training (in all splits where there is no training)."""
    training = questions[questions["split"] == "train"]
    known = (questions if training.empty else training)["answer"].unique()
    return questions["answer"].map({answer: n for n, answer in enumerate(known)}).fillna(-1).astype("int64")


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table in one step, and only if it differs from what is there, so that nothing is due in vain."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    if path.exists() and pq.read_table(path).equals(table):
        return
    with atomic(path) as partial:
        pq.write_table(table, partial)
