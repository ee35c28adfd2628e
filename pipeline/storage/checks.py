"""What can be wrong with one features, text or segments file, found in one pass over its numbers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from extractors import ENCODERS, AudioInput, EncoderSpec
from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED, PER_VIDEO, PROVENANCE
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import REMEDY, open_hdf5

BLOCK = 2**25  # bytes that are checked at a time
ORIGIN = ("created_by", "collection", "shard", "source")  # attributes of features files besides PROVENANCE
NORMS = (1e-3, 1e4)  # of an encoder that is not in the table
LOOK = "look at the video; if it is as the features say, nothing is wrong"


class Finding(NamedTuple):
    """One thing that is wrong. An `error` cannot be right; a `warning` is possible and rare."""

    level: str
    check: str
    file: str
    row: int | None  # of the file; None: the whole file
    name: str  # the row's video id or text
    message: str
    remedy: str


@dataclass
class FileReport:
    """What one file holds, and what is wrong with it."""

    path: Path
    kind: str
    findings: list[Finding] = field(default_factory=list)
    provenance: dict[str, object] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # video ids or texts, by row
    per_video: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, int))  # tokens, of each text
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # output -> shape of one row
    dtypes: dict[str, np.dtype] = field(default_factory=dict)  # output -> type of its numbers
    digests: dict[str, dict[int, bytes]] = field(default_factory=dict)  # output -> row -> digest of its true seconds

    @property
    def failed(self) -> list[str]:
        """The videos that could not be decoded."""
        failed = self.per_video["status"] != DECODED if self.per_video else ()
        return [name for name, lost in zip(self.names, failed, strict=False) if lost]

    def add(self, check: str, message: str, remedy: str = REMEDY, row: int | None = None, level: str = "error") -> None:
        """Record a finding about this file, or about one of its rows."""
        name = self.names[row] if row is not None and row < len(self.names) else ""
        self.findings.append(Finding(level, check, str(self.path), row, name, message, remedy))


def check_file(path: str | Path, kind: str) -> FileReport:
    """Check a file of kind features, text or segments: schema, shapes, checksums and all numbers. Never raises for
    what is wrong with the file: that is in the report's findings."""
    report = FileReport(Path(path), kind)
    try:
        with open_hdf5(path, kind) as file:
            {"features": _check_features, "text": _check_text, "segments": _check_segments}[kind](report, file)
    except (AVQAError, OSError) as error:
        report.add("schema", str(error).removeprefix(f"{path}: ").removesuffix(f"; {REMEDY}"))
    except Exception as error:  # of h5py and NumPy, which raise many kinds for types and shapes that nobody expects
        report.add("schema", f"is not laid out as a file of kind {kind} ({type(error).__name__}: {error})")
    return report


def _check_features(report: FileReport, file: h5py.File) -> None:
    encoder = str(file.attrs.get("encoder", ""))
    spec = ENCODERS.get(encoder)
    _check_attributes(report, file, (*ORIGIN, *PROVENANCE))
    if lacking := [name for name in ("video_id", *PER_VIDEO) if name not in file]:
        return report.add("schema", f"has no {', '.join(lacking)}")
    if not isinstance(file.get(encoder), h5py.Group) or not len(file[encoder]):
        return report.add("schema", f"has no features of its encoder, {encoder!r}")
    report.names = list(file["video_id"].asstr()[:])
    report.per_video = {name: file[name][:] for name in PER_VIDEO}
    decoded = report.per_video["status"] == DECODED
    lengths = np.where(decoded, report.per_video["num_segments"], 0)
    silent = ~report.per_video["has_audio"] if _reads_only_audio(spec) else np.zeros(len(lengths), bool)
    for output, values in file[encoder].items():
        expected = spec.outputs.get(output) if spec and not file.attrs.get("imported") else values.shape[2:]
        if values.ndim < 3 or len(values) != len(report.names) or values.shape[2:] != expected:
            report.add("shape", f"{encoder}/{output} is {values.shape}, expected N, T, {expected}")
            continue
        report.shapes[output], report.dtypes[output] = values.shape[1:], values.dtype
        if (wrong := decoded & ((lengths < 1) | (lengths > values.shape[1]))).any():
            row = int(np.argmax(wrong))
            report.add("seconds", f"num_segments is {lengths[row]} of {values.shape[1]} seconds", row=row)
            continue
        report.digests[output] = {}
        for row, block in _blocks(report, values):
            rows = slice(row, row + len(block))
            _check_block(report, output, row, block, lengths[rows], silent[rows], _norms(spec), _pad(file))


def _pad(file: h5py.File) -> str:
    """How the file says that its rows go on after a video's true seconds; "" where it does not say, or the features
    were imported: what is there then is as it was published."""
    try:
        return "" if file.attrs.get("imported") else str(json.loads(file.attrs["config"])["decode"]["pad"])
    except (KeyError, TypeError, ValueError):
        return ""


def _check_text(report: FileReport, file: h5py.File) -> None:
    spec = ENCODERS.get(str(file.attrs.get("encoder", "")))
    _check_attributes(report, file, ("created_by", "dataset", *PROVENANCE))
    if "text" not in file or "length" not in file:
        return report.add("schema", "has no text or no length")
    report.names = list(file["text"].asstr()[:])
    _check_lengths(report, file, spec)
    for output, values in file.items():
        if values.ndim < 2:
            continue
        expected = spec.text_outputs.get(output) if spec and not file.attrs.get("imported") else values.shape[1:]
        if len(values) != len(report.names) or values.shape[1:] != expected:
            report.add("shape", f"{output} is {values.shape}, expected Q, {expected}")
            continue
        report.shapes[output], report.dtypes[output] = values.shape[1:], values.dtype
        report.digests[output] = {}
        for row, block in _blocks(report, values):
            ones = np.ones(len(block), int)
            _check_block(report, output, row, block[:, None], ones, np.zeros(len(block), bool), _norms(spec))
        _check_different(report, output)


def _check_different(report: FileReport, output: str) -> None:
    """Whether texts that differ in more than case and white space have other features. Two that are the same up to the
    last token that the encoder reads have not, and nothing that is made from them can tell them apart."""
    first: dict[bytes, int] = {}
    for row, value in report.digests[output].items():
        other = first.setdefault(value, row)
        one, two = (report.names[n].casefold().split() for n in (row, other))
        if one != two:
            message = f"{output}: the same features as row {other}, {report.names[other]!r}"
            remedy = "compare the texts; if an encoder may read both alike, nothing is wrong"
            report.add("duplicate", message, remedy, row, "warning")


def _check_lengths(report: FileReport, file: h5py.File, spec: EncoderSpec | None) -> None:
    """A text has one token at least, the end, and no more than there are rows of words."""
    report.lengths = lengths = file["length"][:]
    if lengths.shape != (len(report.names),) or lengths.dtype.kind not in "iu":
        return report.add("length", f"length is {lengths.dtype} {lengths.shape}, expected a whole number per text")
    imported = bool(file.attrs.get("imported"))
    if "words" in file and file["words"].ndim > 1:
        most = file["words"].shape[1]
    elif spec and not imported:
        most = spec.text_outputs["words"][0]
    else:
        return None  # published sentences alone, whose tokens nobody counts
    for row in np.flatnonzero((lengths < 1) | (lengths > most)).tolist():
        report.add("length", f"length is {lengths[row]} tokens, expected 1 to {most}", row=row)
    return None


def _check_segments(report: FileReport, file: h5py.File) -> None:
    _check_attributes(report, file, ("created_by", "collection", "shard", "source", "config"))
    if lacking := [name for name in ("video_id", *PER_VIDEO) if name not in file]:
        return report.add("schema", f"has no {', '.join(lacking)}")
    report.names = list(file["video_id"].asstr()[:])
    report.per_video = {name: file[name][:] for name in PER_VIDEO}
    for group in ("frames", "audio"):
        for name, values in file.get(group, {}).items():
            report.shapes[f"{group}/{name}"] = values.shape[1:]
            for row, block in _blocks(report, values):
                if not all_finite(block):
                    report.add("finite", f"{group}/{name} has numbers that are not finite", row=row)


def _check_attributes(report: FileReport, file: h5py.File, required: tuple[str, ...]) -> None:
    report.provenance = {k: v.item() if isinstance(v, np.generic) else v for k, v in file.attrs.items()}
    if lacking := [name for name in required if name not in file.attrs]:
        report.add("provenance", f"has no attribute {', '.join(lacking)}")


def _blocks(report: FileReport, values: h5py.Dataset) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of a dataset, some at a time; those that cannot be read are findings."""
    if not values.fletcher32:
        report.add("checksum", f"{values.name[1:]} has no checksums, so that damage would not be noticed")
    step = max(1, BLOCK // max(1, values.dtype.itemsize * int(np.prod(values.shape[1:]))))
    for start in range(0, len(values), step):
        try:
            yield start, values[start : start + step]
        except OSError:
            yield from _readable(report, values, range(start, min(start + step, len(values))))


def _readable(report: FileReport, values: h5py.Dataset, rows: range) -> Iterator[tuple[int, np.ndarray]]:
    for row in rows:
        try:
            yield row, values[row : row + 1]
        except OSError as error:
            report.add("checksum", f"{values.name[1:]} cannot be read ({error})", row=row)


def _check_block(
    report: FileReport,
    output: str,
    first: int,
    values: np.ndarray,
    lengths: np.ndarray,
    silent: np.ndarray,
    norms: tuple[float, float],
    pad: str = "",
) -> None:
    """Check rows first, first + 1, … of an output: values R, T, …, of which the first `lengths` seconds are true ones,
    none of a failed video. Rows that are `silent` may be constant and equal to one another. The seconds after the true
    ones, which models read, repeat the last of them or are zeros as `pad` says."""
    true = np.arange(values.shape[1]) < lengths[:, None]
    bits = values.view(f"u{values.itemsize}")  # comparing bits takes a fifth of the time of comparing float16 numbers
    flat = bits.reshape(*bits.shape[:2], -1)
    infinite = np.array(np.inf, values.dtype).view(bits.dtype)  # the bits of the exponent, all set
    is_finite = ((flat & infinite) != infinite).all(2)
    finite = is_finite | ~true
    _check_padding(report, output, first, flat, lengths, is_finite, pad)
    zero = ~(flat << 1).any(2) & true  # without the sign
    constant = ((flat == flat[:, :1]).all(2) | ~true).all(1)
    tokens = _vectors(bits)
    repeated = ((tokens == tokens[:, :, :1]).all((2, 3)) | ~true).all(1) & (tokens.shape[2] > 1)
    vectors = _vectors(values).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.sqrt(np.einsum("rtpd,rtpd->rtp", vectors, vectors))
    within = ((size >= norms[0]) & (size <= norms[1])).all(2) | ~true
    for n in np.flatnonzero(lengths > 0):
        row, seconds = first + int(n), lengths[n]
        if not finite[n].all():
            report.add("finite", f"{output}: {_seconds(~finite[n])} not finite", row=row)
        elif zero[n].any() and not silent[n]:
            report.add("zeros", f"{output}: {_seconds(zero[n])} all zeros in a video that was decoded", row=row)
        elif repeated[n]:
            report.add("tokens", f"{output}: the {vectors.shape[2]} rows of each second are one row, repeated", row=row)
        elif not within[n].all() and not silent[n]:
            worst = size[n][true[n]].ravel()
            worst = worst[np.argmax(np.abs(np.log(worst + 1e-30) - np.log(norms).mean()))]
            report.add(
                "norm", f"{output}: a vector has norm {worst:.3g}, expected {norms[0]:g} to {norms[1]:g}", row=row
            )
        elif constant[n] and seconds > 1 and not silent[n]:
            report.add("constant", f"{output}: all {seconds} seconds are equal", LOOK, row, "warning")
        elif not silent[n]:
            report.digests[output][row] = hashlib.blake2b(values[n, :seconds].tobytes(), digest_size=16).digest()


def _check_padding(
    report: FileReport,
    output: str,
    first: int,
    bits: np.ndarray,
    lengths: np.ndarray,
    is_finite: np.ndarray,
    pad: str,
) -> None:
    """The seconds after the true ones of rows first, first + 1, …, whose bits are R, T, numbers of a second."""
    rest = np.arange(bits.shape[1]) >= lengths[:, None]
    if not rest.any():
        return
    wrong, expected = ~is_finite & rest, "is not finite"
    if pad == "repeat":
        last = np.take_along_axis(bits, np.maximum(lengths - 1, 0)[:, None, None], axis=1)
        wrong, expected = (bits != last).any(2) & rest, f"differs from second {{}}, which {pad} repeats"
    elif pad == "zero":
        wrong, expected = bits.any(2) & rest, "is not zeros"
    for n in np.flatnonzero(lengths == 0):
        if bits[n].any():
            report.add("failed", f"{output}: the video failed, but its row is not zeros", row=first + int(n))
    for n in np.flatnonzero(wrong.any(1) & (lengths > 0)):
        at, after = np.flatnonzero(wrong[n])[0], lengths[n]
        message = f"{output}: second {at}, after the {after} true ones, {expected.format(after - 1)}"
        report.add("padding", message, row=first + int(n))


def _vectors(values: np.ndarray) -> np.ndarray:
    """R, T, D; R, T, P, D; or R, T, C, H, W to R, T, vectors, numbers of a vector."""
    if values.ndim == 5:
        values = np.moveaxis(values.reshape(*values.shape[:3], -1), 2, 3)
    return values[:, :, None] if values.ndim == 3 else values


def _seconds(wrong: np.ndarray) -> str:
    at = np.flatnonzero(wrong)
    return f"second {at[0]} is" if len(at) == 1 else f"{len(at)} seconds from {at[0]} to {at[-1]} are"


def _reads_only_audio(spec: EncoderSpec | None) -> bool:
    return spec is not None and all(isinstance(input, AudioInput) for input in spec.inputs)


def _norms(spec: EncoderSpec | None) -> tuple[float, float]:
    return spec.norms if spec else NORMS
