"""What is in the project's HDF5 files: README.md, "HDF5 contract", as code."""

import json
from dataclasses import dataclass
from pathlib import Path

SCHEMA_VERSION = 2
DECODER_VERSION = 4  # to be increased with every change of the decoder that changes a number in segments
DECODED, FAILED = 0, 1  # values of the dataset `status`
FAILURE_FIELDS = ("video_id", "stage", "reason", "seconds")  # columns of failures.tsv
MANIFEST = ("manifest.json", "questions.parquet", "left_out.parquet", "absent.tsv")  # what the manifest makes
UNHEARD = "audio"  # the stage of a video that was decoded without its sound, which is no failure
PER_VIDEO = {"num_segments": "int32", "has_audio": "bool", "status": "int32"}  # in segments, features and features.h5
# What decides the numbers of a features or text file, and must be equal in all shards of an encoder.
PROVENANCE = ("encoder", "weights", "weights_sha256", "pretrained", "libraries", "config")


def unheard_table(failures: str | Path) -> Path:
    """Beside a shard's table of failures, in the same columns: the videos that were decoded without their sound."""
    return Path(failures).with_suffix(".unheard.tsv")


def comparable(name: str, value: object) -> object:
    """An attribute of PROVENANCE as it is compared: features of version 0.2.0 say in their `config` how packets were
    chosen, which changes no number."""
    if name != "config" or not isinstance(value, str) or '"selective"' not in value:
        return value
    config = json.loads(value)
    config.get("decode", {}).pop("selective", None)
    return json.dumps(config, sort_keys=True)


@dataclass(frozen=True)
class DatasetSpec:
    """One HDF5 dataset of a shard: the shape of one row, its type, how many rows a chunk holds."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...] | None = None  # of one row; None: the whole row
