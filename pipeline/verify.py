"""Prove features: every number of every file, and whether files, questions and shard lists belong together."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import __version__
from pipeline.config import collection_dir, dataset_dir, load_configs
from pipeline.errors import AVQAError
from pipeline.manifest import read_numbering
from pipeline.numbering import index_answers
from pipeline.storage.atomic import write_if_changed
from pipeline.storage.checks import LOOK, FileReport, Finding, check_file
from pipeline.storage.contract import PER_VIDEO, PROVENANCE, comparable
from pipeline.storage.features import FeatureIndex, is_text
from pipeline.storage.index_checks import index_faults
from pipeline.storage.shard_list import Video, digest, read_shard_list

SHOWN = 5  # findings of one check that are printed; the JSON has all
AGAIN, MANIFEST_AGAIN = "run the workflow again", "run `avqa manifest` again"
QUESTIONS = ["video_id", "question", "answer", "answer_id"]  # columns that are checked

log = logging.getLogger(__name__)


@dataclass
class Verification:
    """The files that were read, and what is wrong with them."""

    path: Path
    files: list[FileReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(
        self, check: str, file: Path, message: str, remedy: str = AGAIN, row: int | None = None, name: str = ""
    ) -> None:
        """Record an error that no single file shows."""
        self.findings.append(Finding("error", check, str(file), row, name, message, remedy))

    @property
    def errors(self) -> int:
        """How many findings cannot be right."""
        return sum(finding.level == "error" for finding in self.findings)

    @property
    def failed(self) -> list[str]:
        """The videos that could not be decoded, whose rows are zeros."""
        return sorted({name for report in self.files for name in report.failed})

    def to_json(self) -> str:
        """Path, version, counts, failed videos, findings and files."""
        files = [
            {
                "file": str(report.path),
                "kind": report.kind,
                "rows": len(report.names),
                "failed": len(report.failed),
                "shapes": report.shapes,
                **{name: report.provenance.get(name) for name in ("encoder", "weights", "pretrained", "imported")},
            }
            for report in self.files
        ]
        counts = {"errors": self.errors, "warnings": len(self.findings) - self.errors}
        findings = [finding._asdict() for finding in self.findings]
        head = {"path": str(self.path), "verified_by": f"avqa-pipeline {__version__}", **counts}
        return json.dumps({**head, "failed": self.failed, "findings": findings, "files": files}, indent=1) + "\n"

    def __str__(self) -> str:
        frame = pd.DataFrame(
            [
                (
                    r.kind,
                    r.provenance.get("encoder", ""),
                    r.provenance.get("weights", ""),
                    1,
                    len(r.names),
                    len(r.failed),
                )
                for r in self.files
            ],
            columns=["kind", "encoder", "weights", "files", "rows", "failed"],
        )
        table = frame.groupby(["kind", "encoder", "weights"], dropna=False).sum()
        lines = [table.reset_index().to_string(index=False)] if self.files else []
        if self.failed:
            shown = ", ".join(self.failed[:SHOWN]) + (", …" if len(self.failed) > SHOWN else "")
            lines += ["", f"failed: {shown}: could not be decoded, their rows are zeros; failures.tsv has the reasons"]
        for check in dict.fromkeys(finding.check for finding in self.findings):
            found = [finding for finding in self.findings if finding.check == check]
            lines += ["", *(_line(finding) for finding in found[:SHOWN])]
            lines += [f"  and {len(found) - SHOWN} more of the check {check}"] if len(found) > SHOWN else []
        warnings = len(self.findings) - self.errors
        counts = f"{self.errors} errors, {warnings} warnings, {len(self.failed)} failed videos"
        return "\n".join([*lines, "", f"{self.path}: {counts}"])


def _line(finding: Finding) -> str:
    row = "" if finding.row is None else f" row {finding.row}" + (f" ({finding.name})" if finding.name else "")
    return f"{finding.level} {finding.check}: {finding.file}{row}: {finding.message}; {finding.remedy}"


def verify(path: str | Path) -> Verification:
    """Check an HDF5 file, a folder of them, a collection, a data set, or all data sets of a configuration (.yaml).

    A data set's collection is checked with it. Raises AVQAError if there is nothing to check.
    """
    path = Path(path)
    result = Verification(path)
    if path.suffix in (".yaml", ".yml"):
        configs = load_configs(path, "dataset", "videos")
        begun = {name: each for name, each in configs.items() if (dataset_dir(each) / "questions.parquet").exists()}
        for config in (begun or configs).values():
            _verify_dataset(result, dataset_dir(config), collection_dir(config))
        if begun and (others := configs.keys() - begun.keys()):
            log.warning(f"{path}: of {', '.join(sorted(others))} there are no results yet")
    elif path.is_file():
        _verify_file(result, path)
    elif (path / "questions.parquet").exists():
        _verify_dataset(result, path, None)
    elif (path / "features").is_dir():
        _verify_collection(result, path, None)
    elif files := sorted(path.glob("*.h5")):
        _same_provenance(result, _check(result, files))
        _duplicates(result, result.files, {})
    else:
        raise AVQAError(f"{path}: has no features; give a file, a folder of results, or a configuration")
    result.findings = list(dict.fromkeys(result.findings))
    return result


def _verify_file(result: Verification, path: Path) -> None:
    kind = _kind(path)
    if kind == "index":
        _verify_dataset(result, path.parent, None)
    else:
        _check(result, [path])
        _duplicates(result, result.files, {})


def _kind(path: Path) -> str:
    try:
        with h5py.File(path) as file:
            return str(file.attrs.get("kind", "features"))
    except OSError:
        return "features"


def _check(result: Verification, files: Iterable[Path]) -> list[FileReport]:
    reports, known = [], {report.path: report for report in result.files}
    for file in tqdm(list(files), desc="verify", unit="file", mininterval=2, disable=None):
        if file in known:  # of another data set with the same collection
            reports.append(known[file])
            continue
        kind = _kind(file)
        reports.append(check_file(file, kind if kind in ("text", "segments") else "features"))
        result.findings += reports[-1].findings
    result.files += [report for report in reports if report.path not in known]
    return reports


def _verify_dataset(result: Verification, dataset: Path, collection: Path | None) -> None:
    """Text features, index and questions of a data set, and what it uses of its collection."""
    questions = _read_questions(result, dataset / "questions.parquet")
    path = dataset / "features.h5"
    try:
        index = FeatureIndex(path)
    except (AVQAError, OSError, KeyError) as error:
        result.add("index", path, str(error).removeprefix(f"{path}: "))
        if collection:
            _verify_collection(result, collection, None)
        return
    with closing(index):
        files = {
            name: [Path(os.path.normpath(file)) for file in files]
            for name, files in index.files.items()
            if not is_text(name)
        }
        texts = [Path(os.path.normpath(file)) for name, found in index.files.items() if is_text(name) for file in found]
        for report in _check(result, dict.fromkeys(texts)):
            for text in sorted(set(questions["question"]) - set(report.names)):
                result.add("questions", report.path, f"lacks the text of a question, {text!r}")
        _verify_collection(result, next(iter(files.values()))[0].parents[2], files)
        for video_id in sorted(set(questions["video_id"]) - set(index.video_id)):
            result.add("questions", path, f"lacks the video of a question, {video_id}")
        _index_rows(result, index)


def _read_questions(result: Verification, path: Path) -> pd.DataFrame:
    try:
        questions = pd.read_parquet(path, columns=QUESTIONS)
    except (OSError, ValueError, KeyError) as error:
        result.add("questions", path, f"cannot be read ({error})", MANIFEST_AGAIN)
        return pd.DataFrame({name: [] for name in QUESTIONS})
    _answer_numbers(result, path.parent, questions)
    return questions


def _answer_numbers(result: Verification, dataset: Path, questions: pd.DataFrame) -> None:
    """Whether questions.parquet and manifest.json, by which models are trained, number the answers alike."""
    path = dataset / "manifest.json"
    try:
        numbers = index_answers(questions["answer"], read_numbering(dataset).answers)
    except (AVQAError, ValueError) as error:
        result.add("questions", path, str(error).removeprefix(f"{path}: "), MANIFEST_AGAIN)
        return
    wrong = questions.loc[questions["answer_id"] != numbers, "answer"]
    if len(wrong):
        message = f"numbers {len(wrong)} questions' answers otherwise than questions.parquet, as {wrong.iloc[0]!r}"
        result.add("questions", path, message, MANIFEST_AGAIN)


def _index_rows(result: Verification, index: FeatureIndex) -> None:
    """Whether each row of the index says where its video is."""
    known = {report.path.resolve(): report for report in result.files}
    for encoder, files in index.files.items():
        for n, path in enumerate(files):
            if report := known.get(path.resolve()):
                _one_file(result, index, encoder, n, report)
    try:
        for fault in index_faults(index, known):
            result.add("index", index.path, fault.message, row=fault.row, name=fault.name)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # of h5py and NumPy
        result.add("index", index.path, f"is not laid out as an index ({error})")


def _one_file(result: Verification, index: FeatureIndex, encoder: str, n: int, report: FileReport) -> None:
    """Whether the index's rows of its file n of an encoder are those videos, and whether it was made from this file."""
    path = index.files[encoder][n]
    if report.names and not is_text(encoder):
        at = np.flatnonzero(index.shard == n)
        names = [report.names[row] if row < len(report.names) else "" for row in index.row[at].tolist()]
        if names != list(index.video_id[at]):
            result.add("index", index.path, f"its rows for {path.name} of {encoder} are of other videos")
    if any(f.check in ("shard", "provenance") and f.file == str(report.path) for f in result.findings):
        return  # which already says that the file is not as it should be
    made_as = index.made_as[path]
    found = {name: report.provenance.get(name, value) for name, value in made_as.items()}
    differing = [name for name in made_as if comparable(name, found[name]) != comparable(name, made_as[name])]
    if "source" in differing:
        result.add("index", index.path, f"was made before {path.name} of {encoder} was made from other files")
    elif differing:
        message = f"was made before {path.name} of {encoder} was made in another way: {', '.join(differing)} differ"
        result.add("index", index.path, message)


def _verify_collection(result: Verification, collection: Path, wanted: dict[str, list[Path]] | None) -> None:
    """Features against the shard lists and against each other: the wanted files of each encoder (default: all)."""
    lists, sizes = {}, {}
    for tsv in sorted((collection / "shards").glob("*.tsv")):
        videos = lists[tsv.stem] = read_shard_list(tsv)
        sizes |= {video.video_id: video.size for video in videos}
    if wanted is None:
        folders = sorted(path for path in (collection / "features").glob("*") if path.is_dir())
        wanted = {folder.name: sorted(folder.glob("*.h5")) for folder in folders}
    by_shard: dict[str, list[FileReport]] = {}
    for files in wanted.values():
        reports = _check(result, files)
        _same_provenance(result, reports)
        for report in reports:
            by_shard.setdefault(report.path.stem, []).append(report)
            _against_list(result, report, lists)
    _duplicates(result, [report for reports in by_shard.values() for report in reports], sizes)
    for reports in by_shard.values():
        _same_seconds(result, reports)


def _against_list(result: Verification, report: FileReport, lists: dict[str, list[Video]]) -> None:
    if report.path.stem not in lists:
        result.add("shard", report.path, "has no shard list")
        return
    videos = lists[report.path.stem]
    if report.names and report.names != [video.video_id for video in videos]:
        result.add("shard", report.path, "its videos are not those of its shard list")
    elif report.provenance.get("source", digest(videos)) != digest(videos):
        result.add("shard", report.path, "was made from an earlier state of the videos in its shard list")


def _same_provenance(result: Verification, reports: list[FileReport]) -> None:
    """Whether all shards of an encoder were made in the same way: as most of them."""
    for name in (*PROVENANCE, "imported", "shapes"):
        values = [str(r.shapes if name == "shapes" else comparable(name, r.provenance.get(name))) for r in reports]
        usual = max(values, key=values.count, default="")
        for report, value in zip(reports, values, strict=True):
            if value != usual and report.shapes and (name == "shapes" or name in report.provenance):
                result.add("provenance", report.path, f"{name} is {value}, that of other shards {usual}")


def _duplicates(result: Verification, reports: list[FileReport], sizes: dict[str, int]) -> None:
    """Different videos with equal features: an error if all encoders agree and the files differ in size.

    Otherwise they may be copies of one file, or share a sound track or the frames, as mirrored and composed videos do.
    """
    first: dict[tuple[object, str, bytes], tuple[FileReport, int]] = {}
    pairs: dict[tuple[str, str], list[tuple[FileReport, int, str]]] = {}
    encoders = {report.provenance.get("encoder") for report in reports if report.digests}
    for report, output, row, value in _digests(reports):
        other, other_row = first.setdefault((report.provenance.get("encoder"), output, value), (report, row))
        name, other_name = report.names[row], other.names[other_row]
        if name != other_name:
            message = f"{output}: the same features as {other_name} (row {other_row} of {other.path.name})"
            pairs.setdefault((name, other_name), []).append((report, row, message))
    for (name, other_name), found in pairs.items():
        same = {report.provenance.get("encoder") for report, _, _ in found}
        copied = sizes.get(name, 0) == sizes.get(other_name, -1)
        wrong = len(encoders) > 1 and same == encoders and not copied
        level, remedy = ("error", "extract both again and compare") if wrong else ("warning", LOOK)
        for report, row, message in found:
            result.findings.append(Finding(level, "duplicate", str(report.path), row, name, message, remedy))


def _digests(reports: list[FileReport]) -> Iterator[tuple[FileReport, str, int, bytes]]:
    for report in reports:
        if report.kind == "features":
            for output, digests in report.digests.items():
                for row, value in digests.items():
                    yield report, output, row, value


def _same_seconds(result: Verification, reports: list[FileReport]) -> None:
    """Whether the encoders of one shard agree on what the videos are and how long."""
    reports = [report for report in reports if report.per_video]
    for report in reports[1:]:
        first = reports[0]
        other = f"those of {first.path.parent.name}"
        seconds, expected = ({shape[0] for shape in r.shapes.values()} for r in (report, first))
        if seconds != expected:
            result.add("seconds", report.path, f"has {seconds or 'no'} seconds, {other} {expected or 'no'}")
        for name in PER_VIDEO:
            mine, theirs = report.per_video[name], first.per_video[name]
            for row in np.flatnonzero(mine != theirs).tolist() if len(mine) == len(theirs) else ():
                message = f"{name} is {mine[row]}, {other} say {theirs[row]}"
                remedy = "call `avqa retry` and " + AGAIN if name == "status" else AGAIN
                result.add("seconds", report.path, message, remedy, row=row, name=report.names[row])


def run(path: str | Path, json_file: str | Path | None, show: Callable[[str], None]) -> None:
    """Verify, show the table, write the JSON. Raises AVQAError if there are errors."""
    result = verify(path)
    show(str(result))
    if json_file:
        write_if_changed(json_file, result.to_json())
    if result.errors:
        raise AVQAError(f"{path}: {result.errors} errors")
