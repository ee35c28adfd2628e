"""A small results folder, written by the pipeline's own writers, with known numbers: what several tests need."""

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from extractors import ENCODERS
from pipeline.index import build_index
from pipeline.manifest import write_parquet
from pipeline.numbering import index_answers, number
from pipeline.storage.contract import PER_VIDEO, SCHEMA_VERSION, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, write_shard_list

SECONDS = 6
OUTPUTS = {"clip_vit_b32": ("cls", "patch"), "vggish": ("embedding",)}
TEXT = "clip_vit_b32"
SHAPES = {  # of encoders that a layout reads and that need not be in the table
    "tome_vit_l16_384": {"tokens": (14, 1024)},
    "resnet18_music_avqa": {"map": (512, 14, 14)},
    "ast": {"cls": (768,), "pooled": (12, 768)},
}
PROVENANCE = {"weights": "openai", "weights_sha256": "0" * 64, "pretrained": True, "libraries": {"torch": "2.0"}}


def feature(name: str, video_id: str, seconds: int = SECONDS) -> np.ndarray:
    """T, … float16 of a video; the seconds after 4 + (its number % 3) repeat the last true one."""
    shape = output_shape(*name.split("/"))
    rng = np.random.default_rng([*name.encode(), *video_id.encode()])
    values = rng.normal(size=(seconds, *shape)).astype("float16")
    true = length(video_id) * seconds // SECONDS
    values[true:] = values[true - 1]
    return values


def output_shape(encoder: str, output: str) -> tuple[int, ...]:
    """Of one second."""
    return SHAPES[encoder][output] if encoder in SHAPES else ENCODERS[encoder].outputs[output]


def length(video_id: str) -> int:
    """The true seconds of a video."""
    return 4 + int(video_id[1:]) % 3


def text_feature(output: str, text: str, encoder: str = TEXT) -> np.ndarray:
    """A text's words or sentence, float16."""
    rng = np.random.default_rng([*output.encode(), *text.encode()])
    return rng.normal(size=ENCODERS[encoder].text_outputs[output]).astype("float16")


def questions(videos: list[str]) -> pd.DataFrame:
    """Two questions about each video, split 4 : 1 : 1; the last has the id of the first, the one before it none."""
    rows = []
    for n, video_id in enumerate(videos):
        split = ("train", "train", "train", "train", "val", "test")[n % 6]
        for m, text in enumerate((f"How many of kind {n % 3}?", "Is it loud?")):
            answer = ("yes", "no", "two")[(n + m) % 3]
            rows.append((split, str(2 * n + m), video_id, text, "Audio", "Counting", answer, None, None))
    columns = ["split", "question_id", "video_id", "question", "scenario", "type", "answer", "choices", "keywords"]
    table = pd.DataFrame(rows, columns=columns)
    table.loc[len(table) - 2, "question_id"] = None
    table.loc[len(table) - 1, "question_id"] = "0"
    numbers = index_answers(table["answer"], number({}, table).answers)
    return table.assign(part=None, prompt=None, record=range(len(table)), answer_id=numbers)


def write_shard(
    collection: Path, encoder: str, shard: str, videos: list[Video], change: dict | None = None, **attributes
) -> Path:
    """One features file; `change` maps (output or dataset, video id) to what stands in place of its numbers."""
    path, change = collection / "features" / encoder / f"{shard}.h5", change or {}
    outputs = attributes.pop("outputs", OUTPUTS.get(encoder, ()))
    seconds = attributes.pop("seconds", SECONDS)
    specs = {f"{encoder}/{o}": DatasetSpec((seconds, *output_shape(encoder, o)), "float16") for o in outputs}
    specs |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    config = {"dtype": "float32", "decode": {"segments": seconds, "pad": "repeat"}}
    made = {"kind": "features", "collection": collection.name, "shard": shard, "source": digest(videos)}
    made |= {"encoder": encoder, "config": config, **PROVENANCE, **attributes}
    with ShardWriter(path, len(videos), specs, made, {"video_id": [v.video_id for v in videos]}) as writer:
        for n, video in enumerate(videos):
            true = length(video.video_id) * seconds // SECONDS
            row = {"num_segments": true, "has_audio": True, "status": 0}
            row |= {f"{encoder}/{o}": feature(f"{encoder}/{o}", video.video_id, seconds) for o in outputs}
            row |= {name: value for (name, video_id), value in change.items() if video_id == video.video_id}
            writer.write(n, row)
    return path


def write_text(dataset: Path, texts: list[str], change: dict | None = None, encoder: str = TEXT, **attributes) -> Path:
    """The text file of a data set."""
    outputs = {name: ENCODERS[encoder].text_outputs[name] for name in ("words", "sentence")}
    specs = {name: DatasetSpec(shape, "float16") for name, shape in outputs.items()}
    specs["length"] = DatasetSpec((), "int32")
    made = {"kind": "text", "dataset": dataset.name, "shard": "", "encoder": encoder}
    made |= {"config": {"dtype": "float32", "sentence": "eot"}, **PROVENANCE, **attributes}
    path = dataset / "text" / f"{encoder}.h5"
    with ShardWriter(path, len(texts), specs, made, {"text": texts}) as writer:
        for n, text in enumerate(texts):
            row = {name: text_feature(name, text, encoder) for name in outputs} | {"length": 7}
            writer.write(n, row | {name: value for (name, of), value in (change or {}).items() if of == text})
    return path


def shard_lists(videos: list[str], per_shard: int) -> dict[str, list[Video]]:
    """The videos of each shard; no two have files of one size."""
    files = [Video(video_id, f"/videos/{video_id}.mp4", 1000 + n, 1) for n, video_id in enumerate(videos)]
    return {f"{n:05d}": files[start : start + per_shard] for n, start in enumerate(range(0, len(videos), per_shard))}


def make_results(
    folder: Path,
    videos: int = 12,
    per_shard: int = 4,
    outputs: dict[str, tuple[str, ...]] = OUTPUTS,
    text: str = TEXT,
    change: dict | None = None,
    ids: list[str] | None = None,
    **attributes,
) -> Path:
    """<folder>/results/{small, small_videos}; returns the folder of the data set."""
    ids = ids or [f"v{n:03d}" for n in range(videos)]
    dataset, collection = folder / "results" / "small", folder / "results" / "small_videos"
    shards = shard_lists(ids, per_shard)
    for shard, files in shards.items():
        write_shard_list(collection / "shards" / f"{shard}.tsv", files)
        for encoder in outputs:
            write_shard(collection, encoder, shard, files, change, outputs=outputs[encoder], **attributes)
    dataset.mkdir(parents=True)
    table = questions(ids)
    write_parquet(table, dataset / "questions.parquet")
    write_parquet(table.assign(reason="")[:0], dataset / "left_out.parquet")
    manifest = {"videos": videos, "shards": {shard: digest(files) for shard, files in shards.items()}}
    manifest |= number({}, table).as_dict()
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    attributes.pop("seconds", None)
    write_text(dataset, table["question"].unique().tolist(), encoder=text, **attributes)
    make_index(dataset, collection, list(outputs), text)
    return dataset


def make_index(dataset: Path, collection: Path, encoders: list[str], *texts: str) -> None:
    """`build_index` of files whose names have no keys: features/<encoder>/<shard>.h5 and text/<encoder>.h5."""
    first = next(iter(json.loads((dataset / "manifest.json").read_text())["shards"]))
    features = {}
    for encoder in encoders:
        with h5py.File(collection / "features" / encoder / f"{first}.h5") as file:
            features |= {f"{encoder}/{output}": [encoder] for output in file[encoder]}
    build_index(dataset, collection, features, {text: dataset / "text" / f"{text}.h5" for text in texts}, dataset)


def write_statuses(dataset: Path, statuses: dict[str, int]) -> None:
    """Of features.h5 what says which videos failed."""
    with h5py.File(dataset / "features.h5", "w") as file:
        file.attrs.update(schema_version=SCHEMA_VERSION, kind="index")
        file["video_id"], file["status"] = list(statuses), list(statuses.values())


def shard_file(folder: Path, number: int = 0) -> Path:
    """A shard's features, whose name ends in the digest of its list."""
    (path,) = folder.glob(f"{number:05d}-*.h5")
    return path
