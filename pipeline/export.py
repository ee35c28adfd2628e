"""Features for other code: .npy folders of published models, WebDataset, Hugging Face `datasets`, safetensors."""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections import Counter
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
from pipeline.data.layouts import LAYOUTS, Folder, Layout, T
from pipeline.errors import AVQAError
from pipeline.storage.atomic import partial_path, write_if_changed
from pipeline.storage.contract import DECODED

RECORD = "export.json"  # what an export was made from; says when it is complete
IDS = "question_ids.csv"
VIDEOS = "videos.csv"
FILE_BYTES = 2**28  # of a container, at most, unless a single record is larger

log = logging.getLogger(__name__)


def export(folder: str | Path, layout: str, out: str | Path, *, dtype: str = "float32", force: bool = False) -> None:
    """Write the features of a data set to `out` in a layout of LAYOUTS or CONTAINERS.

    A finished file is left as it is, so an interrupted export resumes. Videos that could not be decoded are left out
    with their questions. Raises AVQAError if a feature is lacking, if `out` holds another export, or if features were
    not made as the layout's release made them and `force` is false.
    """
    out = Path(out)
    with FeatureSet(folder) as features:
        failed = set(features.index.video_id[features.index.status != DECODED])
        questions = features.questions[lambda table: ~table["video_id"].isin(failed)].reset_index(drop=True)
        questions["export_id"] = export_ids(questions)
        videos = [video_id for video_id in features if video_id not in failed]
        record = {"created_by": f"avqa-pipeline {__version__}", "layout": layout, "dtype": dtype}
        record |= {"dataset": features.folder.name, "features": features.index.provenance}
        asked = questions[["export_id", "video_id", "question"]].to_csv(index=False)
        record["questions"] = hashlib.sha256(asked.encode()).hexdigest()
        if layout in CONTAINERS:
            start(out, record)
            _write_containers(features, videos, layout, dtype, out)
        else:
            row = LAYOUTS[layout]
            chosen = [(folder, _choose(folder, features)) for folder in row.folders]
            _check_protocol(layout, row, chosen, features, force)
            record["folders"] = {folder.path: names for folder, names in chosen if names}
            start(out, record)
            for folder, names in chosen:
                _write_folder(features, videos, questions, folder, names, dtype, out)
            _write_annotations(row, questions, features, out)
        _write_tables(features, videos, questions, out)
        _summarize(layout, out, videos, failed, questions)
    write_if_changed(out / RECORD, _json(record | {"complete": True}))


def start(out: Path, record: dict[str, Any]) -> None:
    """Claim the folder for an export. Raises AVQAError if it holds something else."""
    path = out / RECORD
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        ours = json.loads(_json(record))
        if any(found.get(name) != value for name, value in ours.items() if name != "created_by"):
            raise AVQAError(f"{out}: holds another export ({RECORD} says what it was made from); give a new folder")
    elif out.exists() and any(out.iterdir()):
        raise AVQAError(f"{out}: holds files that are not of an export; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    write_if_changed(path, _json(record | {"complete": False}))


def _json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n"


def export_ids(questions: pd.DataFrame) -> list[int | str]:
    """A file name for each question: its own id, or where that is missing, repeated or no file name, a number of 15
    digits that follows from split, video, question and id, so that it is the same in every export."""
    own = questions["question_id"].astype("string").tolist()
    times = Counter(own)
    seen: Counter[str] = Counter()
    ids: list[int | str] = []
    for value, split, video, text in zip(
        own, questions["split"], questions["video_id"], questions["question"], strict=True
    ):
        if not pd.isna(value) and times[value] == 1 and VIDEO_ID.fullmatch(value) and len(value) < 16:
            ids.append(int(value) if value.isdecimal() and str(int(value)) == value else value)
            continue
        what = repr((split, video, text, None if pd.isna(value) else value))
        seen[what] += 1
        digest = hashlib.sha256(f"{what}{seen[what]}".encode()).hexdigest()
        ids.append(10**14 + int(digest, 16) % (9 * 10**14))
    if len(set(map(str, ids))) != len(ids):
        raise AVQAError("two questions got one id; give one of them a question_id of its own in the annotations")
    return ids


def _choose(folder: Folder, features: FeatureSet) -> list[str] | None:
    """The features of a folder: those of the release, or of the only other encoder that has such outputs."""
    if all(name in features.names for name in folder.features):
        return list(folder.features)
    outputs = [name.split("/")[1] for name in folder.features]
    encoders = dict.fromkeys(name.split("/")[0] for name in features.names if not is_text(name))
    others = [[f"{encoder}/{output}" for output in outputs] for encoder in encoders]
    others = [names for names in others if all(name in features.names for name in names)]
    if len(others) == 1:
        return others[0]
    if folder.optional:
        return None
    raise AVQAError(
        f"{features.index.path}: has no {' and '.join(folder.features)}, which {folder.option} ({folder.path}) is made "
        "from; add it under encoders: in the configuration and run the workflow again"
    )


def _check_protocol(
    name: str, layout: Layout, chosen: list[tuple[Folder, list[str] | None]], features: FeatureSet, force: bool
) -> None:
    differences = list(dict.fromkeys(_differences(layout, chosen, features)))
    for note in layout.notes:
        log.warning(f"{name}: {note}")
    if differences and not force:
        lines = "\n".join(f"  {line}" for line in differences)
        raise AVQAError(
            f"{features.folder}: features are not those of {layout.release}:\n{lines}\n"
            "give --force to export them nevertheless"
        )
    for line in differences:
        log.warning(f"{name}: {line}")


def _differences(layout: Layout, chosen: list[tuple[Folder, list[str] | None]], features: FeatureSet) -> Iterator[str]:
    """What a reader of the release would not expect, one sentence each."""
    for folder, names in chosen:
        if names is None:
            yield f"{folder.path}: is left out, for lack of {' and '.join(folder.features)}"
            continue
        if names != list(folder.features):
            yield f"{folder.path}: {' and '.join(names)} in place of {' and '.join(folder.features)}"
        shape = _shape(folder, names, features)
        expected = tuple(layout.seconds if size == T else size for size in folder.shape)
        if shape != expected:
            yield f"{folder.path}: arrays of shape {shape}, not {expected}"
        for encoder in dict.fromkeys(name.split("/")[0] for name in names):
            made = features.index.provenance[encoder]
            if not made.get("pretrained", True):
                yield f"{made['encoder']}: its weights are {made['weights']}, not pretrained ones"
            if encoder == "text" and made["encoder"] != layout.text_encoder:
                yield f"{folder.path}: texts of {made['encoder']} in place of {layout.text_encoder}"
            sentence = json.loads(made.get("config", "{}")).get("sentence", "eot")
            if encoder == "text" and sentence != "eot":
                yield f"{folder.path}: sentences are made from {sentence}, not from the end-of-text token"


def _shape(folder: Folder, names: list[str], features: FeatureSet) -> tuple[int, ...]:
    shapes = [features.names[name] for name in names]
    if folder.per == "question":
        return (1, *shapes[0])
    if len(shapes) == 1:
        return shapes[0]
    tokens = sum(shape[1] if len(shape) == 3 else 1 for shape in shapes)
    return (shapes[0][0], tokens, shapes[0][-1])


def _array(names: list[str], features: FeatureSet, key: str, dtype: str) -> np.ndarray:
    """The array of one file: T, …; or 1, … of a text."""
    values = [features[name, key].astype(dtype) for name in names]
    if is_text(names[0]):
        return values[0][None]
    if len(values) == 1:
        return values[0]
    return np.concatenate([value[:, None] if value.ndim == 2 else value for value in values], axis=1)


def _write_folder(
    features: FeatureSet,
    videos: list[str],
    questions: pd.DataFrame,
    folder: Folder,
    names: list[str] | None,
    dtype: str,
    out: Path,
) -> None:
    if names is None:
        return
    target = out / folder.path
    target.mkdir(parents=True, exist_ok=True)
    if folder.per == "video":
        for video_id in tqdm(videos, desc=folder.path, unit="video", mininterval=2):
            if not (path := target / f"{video_id}.npy").exists():
                _save(path, _array(names, features, video_id, dtype))
        return
    with tqdm(total=len(questions), desc=folder.path, unit="question", mininterval=2) as bar:
        for text, group in questions.groupby("question", sort=False):
            paths = [target / f"{export_id}.npy" for export_id in group["export_id"]]
            if not paths[0].exists():
                _save(paths[0], _array(names, features, text, dtype))
            for path in paths[1:]:
                _link(paths[0], path)
            bar.update(len(paths))


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


def _write_annotations(layout: Layout, questions: pd.DataFrame, features: FeatureSet, out: Path) -> None:
    """Questions in MUSIC-AVQA's form, with their slots filled, and the table of answers."""
    for split, group in questions.groupby("split", sort=False):
        records = [
            {
                "video_id": row.video_id,
                "question_id": row.export_id,
                "type": json.dumps([row.scenario, row.type]),
                # The released code takes the last character for a question mark and drops it.
                "question_content": row.question if row.question.endswith("?") else f"{row.question}?",
                "templ_values": "[]",
                "anser": row.answer,
            }
            for row in group.itertuples()
        ]
        for path in layout.annotations:
            write_if_changed(out / path.format(split=split), _json(records))
    if layout.answers:  # with the numbers that they have here, whether or not videos failed
        every = features.questions[lambda table: table["answer_id"] >= 0].sort_values("answer_id")
        answers = dict(zip(every["answer"], every["answer_id"].tolist(), strict=True))
        table = {"ans2ix": answers, "max_que_len": int(features.index.text_lengths.max())}
        write_if_changed(out / layout.answers, _json(table))


def _write_tables(features: FeatureSet, videos: list[str], questions: pd.DataFrame, out: Path) -> None:
    """True lengths of the videos, and which exported id is which question: what `avqa import` reads back."""
    table = features.videos.set_index("video_id").loc[videos, ["num_segments", "has_audio"]].reset_index()
    write_if_changed(out / VIDEOS, table.to_csv(index=False, lineterminator="\n"))
    names = ["export_id", "split", "question_id", "video_id", "question", "answer"]
    write_if_changed(out / IDS, questions[names].to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL))


def _summarize(layout: str, out: Path, videos: list[str], failed: set[str], questions: pd.DataFrame) -> None:
    new = int((questions["export_id"].astype(str) != questions["question_id"].astype("string").fillna("")).sum())
    log.info(f"{out}: {len(videos)} videos and {len(questions)} questions as {layout}")
    if failed:
        log.info(f"{len(failed)} videos could not be decoded: they and their questions are left out")
    if new:
        log.info(f"{new} questions whose id is missing or repeated have ids of their own: {out / IDS}")
    for folder in LAYOUTS[layout].folders if layout in LAYOUTS else ():
        if (out / folder.path).exists():
            log.info(f"  {folder.option} {out / folder.path}")


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
