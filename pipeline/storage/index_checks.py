"""Whether features.h5 says of each row what the files say that it leads to: per-video numbers, and virtual datasets."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.storage.checks import FileReport
from pipeline.storage.contract import PER_VIDEO
from pipeline.storage.features import FeatureIndex, is_text


class Fault(NamedTuple):
    """What is wrong with a row of the index, or with the index as a whole."""

    message: str
    row: int | None = None
    name: str = ""


def index_faults(index: FeatureIndex, reports: Mapping[Path, FileReport]) -> Iterator[Fault]:
    """Each disagreement of features.h5 with its files, whose reports are given by their resolved paths."""
    kept = _kept(index.path)
    for encoder, files in index.files.items():
        for n, path in enumerate(files):
            report = reports.get(path.resolve())
            if report and is_text(encoder):
                yield from _texts(index, encoder, report)
            elif report and report.per_video:
                yield from _per_video(index, np.flatnonzero(index.shard == n), encoder, report)
            if report:
                yield from _outputs(index, encoder, report, kept.get(encoder, report.shapes))
    with h5py.File(index.path) as file:
        for name in index.names:
            values = file[name]
            if values.ndim > 1:  # the numbers of tokens are copied
                yield from _virtual_rows(index, name, values)


def _kept(path: Path) -> dict[str, Collection[str]]:
    """The outputs of each encoder that an index's configuration keeps, as its key says: the files may have more."""
    with h5py.File(path) as file, suppress(ValueError, LookupError, TypeError, AttributeError):  # no key of ours
        return {encoder: outputs for encoder, (_, outputs) in json.loads(file.attrs["key"])["features"].items()}
    return {}


def _outputs(index: FeatureIndex, group: str, report: FileReport, kept: Collection[str]) -> Iterator[Fault]:
    """Whether the index has each output of a file that is kept, with as many numbers in a row, and of the same type."""
    count = len(index.texts) if is_text(group) else len(index.row)
    for output, shape in report.shapes.items():
        if output not in kept:
            continue
        name, theirs = f"{group}/{output}", ((count, *shape), report.dtypes[output])
        if name not in index.names:
            yield Fault(f"has no {name}, which {report.path.name} has")
        elif (mine := (index.names[name], index.dtypes[name])) != theirs:
            yield Fault(f"{name} is {mine[1]} {mine[0]}, by {report.path.name} it is {theirs[1]} {theirs[0]}")


def _per_video(index: FeatureIndex, at: np.ndarray, encoder: str, report: FileReport) -> Iterator[Fault]:
    """The rows `at` of the index, which lead to one file."""
    at = at[(index.row[at] >= 0) & (index.row[at] < len(report.names))]
    for name in PER_VIDEO:
        mine, theirs = getattr(index, name)[at], report.per_video[name][index.row[at]]
        for n in np.flatnonzero(mine != theirs):
            message = f"{name} is {mine[n]}, {report.path.name} of {encoder} says {theirs[n]}"
            yield Fault(message, int(at[n]), str(index.video_id[at[n]]))


def _texts(index: FeatureIndex, group: str, report: FileReport) -> Iterator[Fault]:
    with h5py.File(index.path) as file:
        texts, lengths = file[group]["text"].asstr()[:].tolist(), file[group]["length"][:]
    if report.names and texts != report.names:
        yield Fault(f"the texts of {group} are not those of {report.path.name}")
    elif report.names and not np.array_equal(lengths, report.lengths):
        yield Fault(f"the lengths of texts of {group} are not those of {report.path.name}")


def _virtual_rows(index: FeatureIndex, name: str, values: h5py.Dataset) -> Iterator[Fault]:
    """Whether row n of a virtual dataset is the row of the file that `shard` and `row` name."""
    group, _, output = name.partition("/")
    if not values.is_virtual:
        yield Fault(f"{name} is no virtual dataset")
        return
    count = len(index.texts) if is_text(group) else len(index.row)
    if len(values) != count:
        yield Fault(f"{name} has {len(values)} rows, expected {count}")
        return
    wanted_rows = np.arange(count) if is_text(group) else index.row
    wanted_files = np.zeros(count, int) if is_text(group) else index.shard
    numbers = {os.path.normpath(path): n for n, path in enumerate(index.files[group])}
    files, rows = np.full(count, -1), np.full(count, -1)
    for part in values.virtual_sources():
        mine, whole = _whole_rows(part.vspace), part.src_space.get_select_type() == h5py.h5s.SEL_ALL
        theirs = np.arange(len(mine)) if whole and mine is not None else _whole_rows(part.src_space)
        if mine is None or theirs is None or len(mine) != len(theirs) or mine.max(initial=0) >= count:
            yield Fault(f"{name} maps parts of rows")
            return
        same = part.dset_name.lstrip("/") == (output if is_text(group) else name)
        files[mine] = numbers.get(os.path.normpath(index.path.resolve().parent / part.file_name), -1) if same else -1
        rows[mine] = theirs
    wrong = np.flatnonzero((files != wanted_files) | (rows != wanted_rows))
    if len(wrong):
        of = index.texts if is_text(group) else index.video_id
        message = (
            f"{name}: {len(wrong)} of the virtual dataset's rows are of other {'texts' if is_text(group) else 'videos'}"
        )
        yield Fault(message, int(wrong[0]), str(of[wrong[0]]))


def _whole_rows(space: h5py.h5s.SpaceID) -> np.ndarray | None:
    """The rows that a selection holds, each in full; None for one that holds parts of rows."""
    shape = space.shape
    if space.get_select_type() != h5py.h5s.SEL_HYPERSLABS:
        return None
    if not space.is_regular_hyperslab():  # scattered rows: runs of them, as first and last corner
        first, last = np.moveaxis(space.get_select_hyper_blocklist(), 1, 0)
        if first[:, 1:].any() or (last[:, 1:] != np.array(shape[1:]) - 1).any():
            return None
        return np.concatenate([np.arange(a, b + 1) for a, b in zip(first[:, 0], last[:, 0], strict=True)])
    start, stride, count, block = (values[0] for values in space.get_regular_hyperslab())
    if count * block > shape[0] or space.get_select_npoints() != count * block * int(np.prod(shape[1:])):
        return None
    return (start + stride * np.arange(count)[:, None] + np.arange(block)).ravel()
