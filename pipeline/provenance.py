"""Where a file comes from: versions, weights, configuration, source files, and the command that makes it again."""

import json
import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipeline.errors import AVQAError
from pipeline.export import RECORD
from pipeline.storage.shard_list import digest, read_shard_list


def provenance(path: str | Path) -> str:
    """What an HDF5 file of the pipeline, or the folder of an export, says of its origin. Raises AVQAError."""
    path = Path(path)
    if (path / RECORD).exists():
        return _export(path)
    if not path.is_file() or not h5py.is_hdf5(path):
        raise AVQAError(f"{path}: is no HDF5 file and no export; give a features, text, segments or index file")
    try:
        return _file(path)
    except OSError as error:
        if error.errno:
            raise  # the system's; HDF5's have no number
        raise AVQAError(f"{path}: is damaged ({error}); get or make it again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # for attributes that nobody expects
        raise AVQAError(f"{path}: its attributes are not those of a file of this pipeline ({error})") from error


def _file(path: Path) -> str:
    with h5py.File(path) as file:
        attributes = _plain(file.attrs)
        groups = {name: _plain(item.attrs) for name, item in file.items() if isinstance(item, h5py.Group)}
        datasets: list[str] = []
        file.visititems(
            lambda name, item: (
                datasets.append(f"{name} {item.dtype} {item.shape}") if isinstance(item, h5py.Dataset) else None
            )
        )
    if "kind" not in attributes:
        raise AVQAError(f"{path}: has no attribute kind, so that it is not a file of this pipeline")
    lines = [str(path), *_lines(attributes), "datasets:", *(f"  {name}" for name in datasets)]
    if attributes["kind"] == "index":
        for name, group in groups.items():
            lines += [f"{name}:", *(f"  {line}" for line in _lines(group))]
    folders = [*path.absolute().parents, *[Path("/")] * 2]  # a copy may be anywhere
    tsv = folders[1 if attributes["kind"] == "segments" else 2] / "shards" / f"{attributes.get('shard')}.tsv"
    lines += _sources(tsv, attributes.get("source"))
    return "\n".join([*lines, "to make it again:", *(f"  {line}" for line in _commands(path, attributes, tsv))])


def _plain(attributes: h5py.AttributeManager) -> dict[str, Any]:
    values = {k: v.tolist() if isinstance(v, np.generic | np.ndarray) else v for k, v in sorted(attributes.items())}
    return {k: json.loads(v) if k in ("config", "libraries") and v else v for k, v in values.items()}


def _lines(attributes: dict[str, Any]) -> list[str]:
    lines = [f"{name}: {value}" for name, value in attributes.items()]
    if attributes.get("pretrained") is False:
        lines.append("WARNING: the weights are random numbers, not pretrained ones")
    if attributes.get("imported"):
        lines.append("WARNING: the numbers were imported, not made here")
    return lines


def _sources(tsv: Path, source: str | None) -> list[str]:
    if not tsv.exists():
        return []
    videos = read_shard_list(tsv)
    state = "" if source in (None, digest(videos)) else " (changed since this file was made)"
    lines = [f"  {video.path} {video.size} bytes" for video in videos]
    return [f"source files, {tsv}{state}:", *lines]


def _commands(path: Path, attributes: dict[str, Any], tsv: Path) -> list[str]:
    kind, config = attributes["kind"], attributes.get("config") or {}
    if attributes.get("imported"):
        if config.get("imported") == "folders":
            given = " ".join(
                f"{attributes['encoder']}/{output}=DIR" for output in _outputs(path, attributes["encoder"])
            )
            return [f"avqa import {given} --config CONFIG.yaml"]
        return [f"avqa import DIR --layout {config.get('imported')} --config CONFIG.yaml"]
    if kind == "index":
        return ["avqa index --config CONFIG.yaml"]
    if kind == "text":
        questions = path.parent.parent / "questions.parquet"
        switches = " --drop-last-character" if config.get("drop_last_character") else ""
        switches += " --prompts" if attributes.get("prompts") else ""
        given = {"dataset": attributes.get("dataset"), "sentence": config.get("sentence"), **_weights(attributes)}
        return [_command("text", questions, path, given) + switches]
    encoders = [attributes["encoder"]] if kind == "features" else ["ENCODER"]
    decode = dict(config.get("decode") or config)
    selective = decode.pop("selective", True)
    names = ("backend", "segments", "pad", "frame_at", "frame_selection")
    given = {"encoder": encoders[0], "collection": attributes.get("collection")}
    given |= {name: decode[name] for name in names if name in decode}
    segments = "segments.h5" if kind == "features" else path
    commands = [_command("decode", tsv, segments, given) + ("" if selective else " --no-selective")]
    if kind == "features":
        outputs = _outputs(path, attributes["encoder"])
        commands.append(_command("extract", segments, path, _weights(attributes) | {"outputs": outputs}))
    return commands


def _outputs(path: Path, encoder: str) -> list[str]:
    with h5py.File(path) as file:
        return list(file[encoder])


def _weights(attributes: dict[str, Any]) -> dict[str, Any]:
    weights, seed = str(attributes["weights"]), None
    if weights.startswith("random (seed "):
        weights, seed = "random", weights.removeprefix("random (seed ").rstrip(")")
    given = {"encoder": attributes["encoder"], "weights": weights, "seed": seed}
    return given | {"sha256": attributes["weights_sha256"], "dtype": attributes["config"].get("dtype")}


def _command(stage: str, source: str | Path, out: str | Path, given: dict[str, Any]) -> str:
    words = ["avqa", stage, str(source)]
    for name, value in given.items():
        if value not in (None, ""):
            listed = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return shlex.join([*words, "--out", str(out)])


def _export(folder: Path) -> str:
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    features = record.pop("features")
    lines = [str(folder), *_lines(record)]
    for name, made in features.items():
        lines += [f"{name}:", *(f"  {line}" for line in _lines(made))]
    again = f"avqa export results/{record['dataset']} --layout {record['layout']} --dtype {record['dtype']}"
    return "\n".join([*lines, "to make it again:", f"  {again} --out {shlex.quote(str(folder))}"])
