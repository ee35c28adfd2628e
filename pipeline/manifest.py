"""Annotations and videos to tables: which question belongs to which file, and which videos make a shard."""

import errno
import hashlib
import json
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cards import compare, read_card
from pipeline.config import annotation_files, collection_dir, dataset_dir, needed_splits, needs
from pipeline.data.answers import merge_answers, written_differently
from pipeline.data.formats import read_annotations
from pipeline.errors import AVQAError
from pipeline.keys import DIGITS
from pipeline.numbering import Numbering, index_answers, number, read_training
from pipeline.storage.atomic import atomic
from pipeline.storage.lock import exclusive
from pipeline.storage.retries import read_retries
from pipeline.storage.shard_list import FLIP, Video, digest, read_shard_list, write_shard_list
from pipeline.storage.tables import deciding, read_table, reading

FIRST_FEW = 5
KIND = ["split", "part", "scenario", "type"]
NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # ELOOP: a link that leads to itself

log = logging.getLogger(__name__)


def build_manifest(config: dict, out: str | Path | None = None, key: str = "") -> None:
    """Write questions.parquet, left_out.parquet, absent.tsv and manifest.json of the data set to `out` (default: its
    folder), videos.parquet and shards/*.tsv of its collection.

    questions.parquet: the columns of `read_annotations`, record (the question's place among all that were published),
    and answer_id (-1 if the answer has no number). left_out.parquet: the other published questions in the same columns,
    and reason: missing (the video), or filtered (by `video_ids`). absent.tsv: how many questions of each kind each
    missing video costs. manifest.json: the shards that hold the data set's videos, each with the digest of its list,
    digests of what the questions decide, the numbers of answers and words, and the data sets whose models are scored on
    it. videos.parquet: video_id, path, size (bytes), mtime_ns, the same of the audio file, shard, row (in the shard).
    Raises AVQAError naming file, record and field.
    """
    published = read_published(config)
    allowed = is_allowed(config, published)
    for line in compare(read_card(config["card"]), published[allowed]) if "card" in config else ():
        log.info(line)
    found, missing = find_videos(published.loc[allowed, "video_id"].unique(), config["videos"])
    absent = allowed & published["video_id"].isin(missing)
    if missing and not config["allow_missing"]:
        raise AVQAError(
            f"{config['videos']['folder']}: {len(missing)} videos that {int(absent.sum())} questions need are missing"
            f"{' or lack their audio file' if config['videos'].get('audio_pattern') else ''}, the first: "
            f"{', '.join(missing[:FIRST_FEW])}; put them there, or set allow_missing: true to leave "
            "their questions out"
        )
    if absent.sum() == allowed.sum():
        raise AVQAError(f"{config['videos']['folder']}: none of the videos that the annotations name is there")
    check_splits(config, published[allowed], absent[allowed])
    ledger = count_questions(published[absent], "missing")
    numbering = number(config, published)
    warn_of_forms(published["answer"], numbering)
    published["answer_id"] = index_answers(published["answer"], numbering.answers)
    questions = published[allowed & ~absent].reset_index(drop=True)
    left_out = published.assign(reason=allowed.map({True: "missing", False: "filtered"}))[~allowed | absent]

    shards = update_shards(collection_dir(config), found, config["shard_size"])
    wanted = {video.video_id for video in found}
    shards = {name: videos for name, videos in shards.items() if any(video.video_id in wanted for video in videos)}
    out = Path(out or dataset_dir(config))
    write_parquet(questions, out / "questions.parquet")
    write_parquet(left_out, out / "left_out.parquet")
    with atomic(out / "absent.tsv") as partial:
        ledger.to_csv(partial, sep="\t", index=False)
    with atomic(out / "manifest.json") as partial:
        described = describe(questions, left_out, ledger, shards, numbering) | {
            "dataset": config["dataset"],
            "key": key,
        }
        described |= {"trained_on": config.get("trained_on", [config["dataset"]])}
        partial.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    _summarize(questions, len(found), len(shards), len(missing))


def read_published(config: dict) -> pd.DataFrame:
    """The questions of all annotation files as published, but for answers that are merged; record counts them. Raises
    AVQAError."""
    read = {}  # a file that stands for two splits is read twice, since its rows say so
    for split, part, path in annotation_files(config):
        read[split, part] = read_annotations(path, split, config["format"], part).assign(file=path)
    questions = pd.concat(read.values(), ignore_index=True)
    if config.get("merge_answers"):
        training = read_training(config["numbered_as"]) if "numbered_as" in config else questions
        questions = merge_answers(questions, training.loc[training["split"] == "train", "answer"])
    return questions.assign(record=np.arange(len(questions)))


def is_allowed(config: dict, published: pd.DataFrame) -> pd.Series:
    """Whether `video_ids` allows the video of each question. Raises AVQAError if it allows none."""
    pattern = re.compile(config.get("video_ids") or "(?s:.*)")
    allowed = published["video_id"].map(lambda video_id: pattern.fullmatch(video_id) is not None)
    if not allowed.any():
        raise AVQAError(f"video_ids: no question is about a video whose id matches {config['video_ids']!r}")
    return allowed


def read_questions(config: dict) -> pd.DataFrame:
    """The questions of all annotation files, about the videos that `video_ids` allows. Raises AVQAError."""
    published = read_published(config)
    return published[is_allowed(config, published)].reset_index(drop=True)


def check_splits(config: dict, questions: pd.DataFrame, absent: pd.Series) -> None:
    """Raises AVQAError if no question is left of a split that training or scoring needs, which would notice it hours
    later. `absent` says of each question whether its video is missing."""
    for split in needed_splits(config):
        in_split = questions["split"] == split
        if not in_split.any():
            files = [path for named, _, path in annotation_files(config) if named in (None, split)]
            allowed = " about videos that video_ids allows" if config.get("video_ids") else ""
            raise AVQAError(
                f"{', '.join(files) or 'annotations'}: has no questions of split {split}{allowed}; {needs(config)}"
            )
        if absent[in_split].all():
            raise AVQAError(
                f"{config['videos']['folder']}: the videos of all questions of split {split} are missing; "
                f"{needs(config)}"
            )


def warn_of_forms(answers: pd.Series, numbering: Numbering) -> None:
    """Name the answers that are several classes and seem to be one."""
    groups = written_differently(answers, numbering.answers)
    if groups:
        named = "; ".join(
            ", ".join(f"{answer!r} ({count})" for answer, count in group.items()) for group in groups[:FIRST_FEW]
        )
        log.warning(
            f"{len(groups)} answers are written in several ways, which count as different answers: {named}"
            f"{'; …' if len(groups) > FIRST_FEW else ''}. merge_answers: true makes each of them one"
        )


def count_questions(questions: pd.DataFrame, reason: str) -> pd.DataFrame:
    """The ledger of videos that cannot be used: video_id, reason, annotation file, kind of question, how many."""
    columns = ["video_id", "reason", "file", *KIND]
    counted = questions.assign(reason=reason).fillna({"part": ""}).groupby(columns, sort=True).size()
    return counted.rename("questions").reset_index()


def describe(
    questions: pd.DataFrame,
    left_out: pd.DataFrame,
    ledger: pd.DataFrame,
    shards: dict[str, list[Video]],
    numbering: Numbering,
) -> dict:
    """What manifest.json says. Digests of questions and videos are parts of the keys of what is made from them
    (`pipeline.keys`): those of train and val of training, those of test of scores, the texts of text features.
    `left_out` and `ledger` are left_out.parquet and absent.tsv."""
    asked = deciding(questions)
    tested = questions["split"] == "test"
    videos = {video.video_id: video for listed in shards.values() for video in listed}
    texts = set(questions["question"]).union(*questions["choices"].dropna())
    training = asked[~tested].to_csv(index=False)
    return {
        "videos": int(questions["video_id"].nunique()),
        "video_ids": _sha256("\n".join(sorted(set(questions["video_id"])))),
        "shards": {name: digest(listed) for name, listed in shards.items()},
        "questions": _sha256(questions.to_csv(index=False)),
        "numbering": _sha256(json.dumps(numbering.as_dict())),
        "left_out": _sha256(left_out.to_csv(index=False)),
        "absent": _sha256(ledger.to_csv(index=False)),
        "training": _sha256(json.dumps([numbering.answers, numbering.words, numbering.longest]) + training),
        "training_videos": _digest_of(videos, questions.loc[~tested, "video_id"]),
        "test": _sha256(questions[tested].to_csv(index=False)),
        "test_videos": _digest_of(videos, questions.loc[tested, "video_id"]),
        "texts": _sha256("\n".join(sorted(texts))),
        "prompts": _sha256("\n".join(sorted(set(questions["prompt"].dropna())))),
        **numbering.as_dict(),
    }


def _digest_of(videos: dict[str, Video], ids: Iterable[str]) -> str:
    return digest([videos[video_id] for video_id in sorted(set(ids))])


def read_manifest(dataset: str | Path) -> dict:
    """manifest.json of a data set's folder. Raises AVQAError before `avqa manifest` has made it."""
    path = Path(dataset, "manifest.json")
    with reading(path, "avqa manifest"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def read_numbering(dataset: str | Path) -> Numbering:
    """How manifest.json numbers answers and words. Raises AVQAError where an earlier version made it."""
    found = read_manifest(dataset)
    try:
        return Numbering(**{name: found[name] for name in Numbering.__dataclass_fields__})
    except KeyError:
        raise AVQAError(
            f"{Path(dataset, 'manifest.json')}: does not say how answers and words are numbered, as those of earlier "
            "versions; run the workflow or `avqa manifest` again, which makes no features again for that"
        ) from None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _summarize(questions: pd.DataFrame, videos: int, shards: int, missing: int) -> None:
    unknown = int((questions["answer_id"] < 0).sum())
    log.info(
        f"{len(questions)} questions ({questions['question'].nunique()} different) about {videos} videos in "
        f"{shards} shards; {missing} videos missing; {unknown} questions whose answer has no number"
    )
    named = questions[questions["question_id"].notna()]
    repeated = int(named.duplicated(["split", "part", "question_id"]).sum())
    if repeated:
        log.warning(f"{repeated} questions have a question_id that another question of their split has too")


def find_videos(ids: Iterable[str], videos: dict) -> tuple[list[Video], list[str]]:
    """The files of the given ids, and the ids that lack a file. An id that ends in _flip and has no file is the
    mirrored video of the id before it. Ids in videos["absent"] are not looked for. Raises AVQAError for links out and
    special files."""
    patterns, absent = (videos["pattern"], videos.get("audio_pattern")), videos.get("absent", ())
    found, missing = [], []
    for video_id in ids:
        if video_id in absent:
            missing.append(video_id)
            continue
        for name in dict.fromkeys((video_id, video_id.removesuffix(FLIP))):
            files = [_find(videos, pattern.format(video_id=name)) if pattern else ("", 0, 0) for pattern in patterns]
            if None not in files:
                break
        if None in files:
            missing.append(video_id)
        else:
            mirrored = bool(files[0][0]) and name != video_id
            found.append(Video(video_id, *files[0], *files[1], mirrored=mirrored))
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

    videos.parquet says for ever in which shard and row a video is: a listed video keeps its row, marked as gone once
    its file has gone; new videos, sorted by id, are added in new shards at the end. A shard's name is its number and
    the digest of its list, shards/<name>.tsv, so that a list never changes.
    """
    path = collection / "videos.parquet"
    collection.mkdir(parents=True, exist_ok=True)
    now = {video.video_id: video for video in found}
    with exclusive(collection / ".shards.lock"):  # other data sets may have the same collection
        listed = [[_as_it_is(video, now) for video in videos] for videos in read_membership(path)]
        known = {video.video_id for videos in listed for video in videos}
        new = sorted(video for video in found if video.video_id not in known)
        listed += [new[start : start + shard_size] for start in range(0, len(new), shard_size)]
        retries = read_retries(collection)
        listed = [[video._replace(retries=retries.get(video.video_id, 0)) for video in videos] for videos in listed]
        shards = {f"{number:05d}-{digest(videos)[:DIGITS]}": videos for number, videos in enumerate(listed)}
        for name, videos in shards.items():
            write_shard_list(collection / "shards" / f"{name}.tsv", videos)
        rows = [(*video, number, row) for number, videos in enumerate(listed) for row, video in enumerate(videos)]
        write_parquet(pd.DataFrame(rows, columns=[*Video._fields, "shard", "row"]), path)
    return shards


def write_lost_list(path: str | Path) -> None:
    """Write a shard's list again. Raises AVQAError where videos.parquet of the collection has other files by now."""
    path = Path(path)
    number, _, digits = path.stem.partition("-")
    listed = read_membership(path.parent.parent / "videos.parquet")
    videos = listed[int(number)] if number.isdecimal() and int(number) < len(listed) else []
    if digest(videos)[:DIGITS] != digits:
        raise AVQAError(f"{path}: is lost, and its videos have changed since; move the data set's manifests away")
    write_shard_list(path, videos)


def read_membership(path: Path) -> list[list[Video]]:
    """The videos of each shard of a collection, in the order of their rows; none before the first manifest. Where
    videos.parquet is lost or damaged, the shards' lists say the same: that which video is where never changes."""
    with suppress(AVQAError):
        table = read_table(path)
        table = table if "retries" in table else table.assign(retries=0)  # an earlier version had none
        if {*Video._fields, "shard", "row"} <= {*table}:
            shards = table.sort_values(["shard", "row"]).groupby("shard")[list(Video._fields)]
            return [[Video(*row) for row in shard.itertuples(index=False)] for _, shard in shards]
    lists = {tsv.stem.split("-")[0]: tsv for tsv in sorted((path.parent / "shards").glob("*.tsv"))}
    return [read_shard_list(lists[number]) for number in sorted(lists, key=int)]


def _as_it_is(video: Video, now: dict[str, Video]) -> Video:
    """A listed video with its file's present size and time; another data set's videos are looked up too."""
    if video.video_id in now:
        return now[video.video_id]
    paths = (video.path, video.audio_path)
    states = [_state(Path(path)) if path else (0, 0) for path in paths]
    files = [(path, *(state or (0, 0))) for path, state in zip(paths, states, strict=True)]
    return Video(video.video_id, *files[0], *files[1], gone=None in states, mirrored=video.mirrored)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a table in one step, and only if it differs from what is there, so that nothing is due in vain."""
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with suppress(OSError, pa.ArrowInvalid):  # not there, or damaged: written again
        if pq.read_table(path).equals(table):
            return
    with atomic(path) as partial:
        pq.write_table(table, partial)
