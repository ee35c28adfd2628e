"""Features for other code: .npy folders of published models, WebDataset, Hugging Face `datasets`, safetensors."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import __version__
from pipeline.data.containers import CONTAINERS, Record
from pipeline.data.feature_set import FeatureSet, is_text
from pipeline.data.formats.base import VIDEO_ID
from pipeline.data.layouts import LAYOUTS, Folder
from pipeline.errors import AVQAError
from pipeline.export_protocol import array_shape, check_protocol, choose, folder_texts, text_group
from pipeline.export_questions import (
    IDS,
    LEFT_OUT,
    USABLE,
    VIDEOS,
    mark_unnumbered,
    numbering_questions,
    published_questions,
    to_json,
    write_annotations,
    write_tables,
    zero_videos,
)
from pipeline.manifest import read_numbering
from pipeline.numbering import Numbering
from pipeline.storage.atomic import partial_path, write_if_changed

RECORD = "export.json"  # what an export was made from; says when it is complete
FILE_BYTES = 2**28  # of a container, at most, unless a single record is larger

log = logging.getLogger(__name__)


def export(folder: str | Path, layout: str, out: str | Path, *, dtype: str = "float32", force: bool = False) -> None:
    """Write the features of a data set to `out` in a layout of LAYOUTS or CONTAINERS.

    A finished file is left as it is, so an interrupted export resumes. All published questions are exported, since
    released code numbers answers and words by them; those whose video failed or is missing have zeros in place of
    features and are marked in the tables. Containers have no such videos. Raises AVQAError if a feature is lacking, if
    `out` holds another export, or if features were not made as the layout's release made them and `force` is false.
    """
    out = Path(out)
    with FeatureSet(folder) as features:
        numbering, questions = read_numbering(features.folder), published_questions(features)
        videos = list(features)
        zeros = zero_videos(questions, videos)
        record = {"created_by": f"avqa-pipeline {__version__}", "layout": layout, "dtype": dtype}
        record |= {"dataset": features.folder.name, "features": dict(features.index.provenance)}
        if layout in CONTAINERS:
            record["questions"] = _digest(questions)
            start(out, record)
            _write_containers(features, videos, layout, dtype, out)
        else:
            questions = mark_unnumbered(questions, LAYOUTS[layout], numbering)
            _write_layout(features, videos, questions, numbering, record, force, out)
        write_tables(features, videos, zeros, questions, out)
        _summarize(layout, out, videos, questions)
    write_if_changed(out / RECORD, to_json(record | {"complete": True}))


def _write_layout(
    features: FeatureSet,
    videos: list[str],
    questions: pd.DataFrame,
    numbering: Numbering,
    record: dict[str, Any],
    force: bool,
    out: Path,
) -> None:
    """Folders of arrays and annotation files of one of LAYOUTS."""
    layout, dtype = LAYOUTS[record["layout"]], record["dtype"]
    _check_names([*videos, *questions["video_id"]], features.folder)
    borrowed = numbering_questions(features.folder, questions)
    written = pd.concat([questions, borrowed], ignore_index=True) if len(borrowed) else questions
    texts = text_group(layout, features)
    chosen = [(folder, choose(folder, texts, features)) for folder in layout.folders]
    check_protocol(record["layout"], layout, chosen, written, features, force)
    record["questions"] = _digest(written, *numbering.answers)
    record["features"]["text"] = features.index.provenance[texts]
    record["folders"] = {f.path: [n.replace(f"{texts}/", "text/") for n in names] for f, names in chosen if names}
    start(out, record)
    for folder, names in chosen:
        if names:
            _write_folder(features, _keys(features, videos, questions, folder), folder, names, dtype, out)
    write_annotations(layout, written, numbering.answers, int(features.index.text_lengths.max()), out)


def _check_names(video_ids: Iterable[str], folder: Path) -> None:
    """Ids become names of files, and the results may be someone else's, who could have them written anywhere."""
    if wrong := [video_id for video_id in video_ids if not VIDEO_ID.fullmatch(video_id)]:
        raise AVQAError(f"{folder}: the video id {wrong[0]!r} could leave the folder of the export; rename the video")


def _digest(questions: pd.DataFrame, *answers: str) -> str:
    """Of all that the questions decide."""
    names = ["export_id", "split", "video_id", "question", "prompt", "answer", LEFT_OUT]
    table = questions[names].to_csv(index=False)
    return hashlib.sha256("\n".join([table, *answers]).encode()).hexdigest()


def start(out: Path, record: dict[str, Any]) -> None:
    """Claim the folder for an export. Raises AVQAError if it holds something else."""
    path = out / RECORD
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        ours = json.loads(to_json(record))
        if any(found.get(name) != value for name, value in ours.items() if name != "created_by"):
            raise AVQAError(f"{out}: holds another export ({RECORD} says what it was made from); give a new folder")
    elif out.exists() and any(out.iterdir()):
        raise AVQAError(f"{out}: holds files that are not of an export; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_if_changed(path, to_json(record | {"complete": False}))


def _write_folder(
    features: FeatureSet, keys: pd.Series, folder: Folder, names: list[str], dtype: str, out: Path
) -> None:
    """One array per entry of `keys`: the video or text whose features it holds, "" for zeros, by the file's name. Equal
    ones share one array on the disk."""
    target = out / folder.path
    target.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(keys), desc=folder.path, unit=folder.per, mininterval=2) as bar:
        for key, group in keys.groupby(keys, sort=False):
            paths = [target / f"{name}.npy" for name in group.index]
            if not paths[0].exists():
                zeros = np.zeros(array_shape(folder, names, features), dtype)
                _save(paths[0], _array(names, features, key, dtype) if key else zeros)
            for path in paths[1:]:
                _link(paths[0], path)
            bar.update(len(paths))


def _keys(features: FeatureSet, videos: list[str], questions: pd.DataFrame, folder: Folder) -> pd.Series:
    """What each file of a folder holds. Released code opens those of every question in its annotation files, so that
    videos that are left out, and texts that only they have, are zeros."""
    if folder.per == "question":
        keys = folder_texts(folder, questions).set_axis(questions["export_id"])
        return keys.where(keys.isin(features.texts), "")
    ids = list(dict.fromkeys([*videos, *questions["video_id"]]))
    keys = pd.Series(ids, ids)
    return keys.where(keys.isin(videos), "")


def _array(names: list[str], features: FeatureSet, key: str, dtype: str) -> np.ndarray:
    """The array of one file: T, …; or 1, … of a text."""
    values = [features[name, key].astype(dtype) for name in names]
    if is_text(names[0]):
        return values[0][None]
    if len(values) == 1:
        return values[0]
    return np.concatenate([value[:, None] if value.ndim == 2 else value for value in values], axis=1)


def _save(path: Path, array: np.ndarray) -> None:
    """One .npy file, which appears when it is complete."""
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            np.save(file, array, allow_pickle=False)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _link(source: Path, path: Path) -> None:
    """The same array under another name, without space of its own where the file system can."""
    if path.exists():
        return
    try:
        os.link(source, path)
    except OSError:
        partial = partial_path(path)
        shutil.copyfile(source, partial)
        os.replace(partial, path)


def _summarize(layout: str, out: Path, videos: list[str], questions: pd.DataFrame) -> None:
    new = int((questions["export_id"].astype(str) != questions["question_id"].astype("string").fillna("")).sum())
    log.info(f"{out}: {len(videos)} videos and {len(questions)} questions as {layout}")
    if new:
        log.info(f"{new} questions whose id is missing, repeated or no number have ids of their own: {out / IDS}")
    left_out = questions.loc[questions[LEFT_OUT] != "", LEFT_OUT].value_counts()
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        log.warning(f"questions that cannot be used: {counts} (column {LEFT_OUT} of {out / IDS} and {VIDEOS})")
    if layout not in LAYOUTS:
        return
    for folder in LAYOUTS[layout].folders:
        if (out / folder.path).exists():
            log.info(f"  {folder.option} {out / folder.path}")
    for path in sorted(out.rglob(f"*{USABLE}.json")):
        whole = path.name.replace(USABLE, "")
        log.warning(
            f"train with {path}: {whole} has the others too, for the numbers of answers, with zeros for features"
        )


def _write_containers(features: FeatureSet, videos: list[str], layout: str, dtype: str, out: Path) -> None:
    """videos-00000.<suffix> … and texts-00000.<suffix> …, each of at most FILE_BYTES, and for `datasets` its card."""
    table = features.videos.set_index("video_id")
    for kind, keys in (("videos", videos), ("texts", features.texts)):
        names = [name for name, shape in features.names.items() if shape and is_text(name) == (kind == "texts")]
        size = sum(int(np.prod(features.names[name])) for name in names) * np.dtype(dtype).itemsize
        step = max(1, FILE_BYTES // max(size, 1))
        for n, begin in enumerate(tqdm(range(0, len(keys), step), desc=kind, unit="file", mininterval=2)):
            path = out / kind / f"{kind}-{n:05d}.{CONTAINERS[layout].suffix}"
            if path.exists():
                continue
            path.parent.mkdir(exist_ok=True)
            partial = partial_path(path)
            records = _records(features, table, names, kind, range(begin, min(begin + step, len(keys))), keys, dtype)
            try:
                CONTAINERS[layout].write(partial, records)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
    if layout == "datasets":
        files = [{"config_name": kind, "data_files": f"{kind}/*.parquet"} for kind in ("videos", "texts")]
        write_if_changed(out / "README.md", f"---\nconfigs: {json.dumps(files)}\n---\n")


def _records(
    features: FeatureSet,
    table: pd.DataFrame,
    names: list[str],
    kind: str,
    rows: Iterable[int],
    keys: list[str],
    dtype: str,
) -> Iterator[Record]:
    for n in rows:
        arrays = {name: features[name, keys[n]].astype(dtype) for name in names}
        if kind == "texts":
            yield Record(f"{n:06d}", {"text": keys[n]}, arrays)
        else:
            video = table.loc[keys[n]]
            values = {"num_segments": int(video["num_segments"]), "has_audio": bool(video["has_audio"])}
            yield Record(keys[n], {"video_id": keys[n], **values}, arrays)
