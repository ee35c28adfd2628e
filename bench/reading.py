"""Speed of reading whole videos in random order: this pipeline's shards, .npy files, a virtual dataset, zarr, Lance.

    python bench/reading.py                     # 1,000 videos of CLS, 64 of patch rows; 2 GB in a temporary folder
    python bench/reading.py --videos 20 --patch-videos 4 --rounds 1   # a quick check of the script
    python bench/reading.py --folder DIR        # makes the data there and keeps it

The same float16 numbers in every format; zarr and Lance in their defaults but for one video per chunk, and left out
where they are not installed. `cold` is after the kernel was told to drop the files from its page cache, by the clock;
`warm` is the same reads again, per processor second (all threads), so that other load on the machine matters little.
Opening is part of both. Each read ends as an array in memory whose first number is looked at. Readers take turns;
figures are medians. Prints a table in Markdown.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

import pipeline
from pipeline.index import build_index
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, read_shard_list, write_shard_list

SECONDS, SHARD = 60, 64
Read = Callable[[int], np.ndarray]


class Feature(NamedTuple):
    """What is read: the encoder's output, its shape per second, and of how many videos."""

    name: str
    shape: tuple[int, ...]
    videos: int

    def values(self, n: int) -> np.ndarray:
        """Video n: T, … float16, cheap to make and different for each video."""
        size = SECONDS * int(np.prod(self.shape))
        words = np.random.default_rng(n).integers(0x3000, 0x4000, size, dtype="uint16")
        return words.view("float16").reshape(SECONDS, *self.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--patch-videos", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to keep the data (default: a temporary folder)")
    args = parser.parse_args()
    features = [
        Feature("clip_vit_l14/cls", (768,), args.videos),
        Feature("clip_vit_l14/patch", (256, 768), args.patch_videos),
    ]
    print("| feature | reader | cold, videos/s | warm, videos/s | cold, MB/s | warm, MB/s | on disk, MB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        for feature in features:
            measure(feature, (args.folder or Path(temporary)) / feature.name.replace("/", "-"), args.rounds)


def measure(feature: Feature, folder: Path, rounds: int) -> None:
    """Write the feature in all formats, read it in turns, print its rows of the table."""
    readers = {name: (folder / name, make) for name, make in FORMATS.items() if installed(name)}
    for path, (write, _) in readers.values():
        if not (path / "complete").exists():
            path.mkdir(parents=True, exist_ok=True)
            write(feature, path)
            (path / "complete").touch()
    order = np.random.default_rng(0).permutation(feature.videos)
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds):
        for name in list(readers)[:: -1 if turn % 2 else 1]:
            path, (_, opened) = readers[name]
            drop_from_cache(folder)  # all formats: the virtual dataset reads the shards
            for state, clock in (("cold", time.perf_counter), ("warm", time.process_time)):
                begin = clock()
                read = opened(feature, path)
                for n in order:
                    assert read(int(n)).flat[0] > 0
                times.setdefault((name, state), []).append(clock() - begin)
                del read  # closes its files: HDF5 would keep what it has read
    size = feature.videos * feature.values(0).nbytes / 1e6
    for name, (path, _) in readers.items():
        cold, warm = (median(times[name, state]) for state in ("cold", "warm"))
        disk = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        rates = f"{feature.videos / cold:.0f} | {feature.videos / warm:.0f} | {size / cold:.0f} | {size / warm:.0f}"
        print(f"| {feature.name} | {name} | {rates} | {disk:.0f} |", flush=True)


def installed(name: str) -> bool:
    """Whether the library that a format needs is there."""
    return name not in ("zarr", "lance") or importlib.util.find_spec(name) is not None


def drop_from_cache(folder: Path) -> None:
    """Have the kernel forget the files' pages, which needs no privilege once they are on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write_shards(feature: Feature, path: Path) -> None:
    """A results folder: shards, an index, and a data set with one question per video."""
    encoder = feature.name.split("/")[0]
    ids = [f"{n:06d}" for n in range(feature.videos)]
    dataset, collection = path / "dataset", path / "collection"
    made = {"encoder": encoder, "weights": "-", "weights_sha256": "-", "pretrained": True, "libraries": {}}
    made |= {"config": {}, "source": "-"}
    chunk = (1, *feature.shape) if len(feature.shape) > 1 else None
    for start in range(0, feature.videos, SHARD):
        shard, names = f"{start // SHARD:05d}", ids[start : start + SHARD]
        videos = [Video(name, name, 1, 1) for name in names]
        write_shard_list(collection / "shards" / f"{shard}.tsv", videos)
        specs = {feature.name: DatasetSpec((SECONDS, *feature.shape), "float16", chunk)}
        specs |= {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
        attributes = {"kind": "features", "collection": "collection", "shard": shard, **made, "source": digest(videos)}
        file = collection / "features" / encoder / f"{shard}.h5"
        with ShardWriter(file, len(names), specs, attributes, {"video_id": names}) as writer:
            for n in range(len(names)):
                row = {feature.name: feature.values(start + n), "num_segments": SECONDS, "has_audio": True, "status": 0}
                writer.write(n, row)
    dataset.mkdir(parents=True)
    pd.DataFrame({"video_id": ids, "question": "?"}).to_parquet(dataset / "questions.parquet")
    lists = {tsv.stem: read_shard_list(tsv) for tsv in sorted((collection / "shards").glob("*.tsv"))}
    shards = {name: digest(videos) for name, videos in lists.items()}
    (dataset / "manifest.json").write_text(json.dumps({"videos": feature.videos, "shards": shards}))
    specs = {"sentence": DatasetSpec((8,), "float16"), "length": DatasetSpec((), "int32")}
    attributes = {"kind": "text", "dataset": "dataset", "shard": "", **made}
    with ShardWriter(dataset / "text" / "text.h5", 1, specs, attributes, {"text": ["?"]}) as writer:
        writer.write(0, {"sentence": np.ones(8), "length": 1})
    build_index(dataset, collection, {feature.name: [encoder]}, {"text": dataset / "text" / "text.h5"}, dataset)


def open_shards(feature: Feature, path: Path) -> Read:
    features = pipeline.open_features(path / "dataset")
    ids = list(features)
    return lambda n: features[feature.name, ids[n]]


def open_virtual(feature: Feature, path: Path) -> Read:
    dataset = h5py.File(path.parent / "ours" / "dataset" / "features.h5")[feature.name]
    return lambda n: dataset[n]


def write_npy(feature: Feature, path: Path) -> None:
    for n in range(feature.videos):
        np.save(path / f"{n:06d}.npy", feature.values(n))


def open_npy(feature: Feature, path: Path) -> Read:
    return lambda n: np.load(path / f"{n:06d}.npy")


def write_zarr(feature: Feature, path: Path) -> None:
    import zarr

    shape = (feature.videos, SECONDS, *feature.shape)
    array = zarr.create_array(path / "array", shape=shape, chunks=(1, *shape[1:]), dtype="float16")
    for n in range(feature.videos):
        array[n] = feature.values(n)


def open_zarr(feature: Feature, path: Path) -> Read:
    import zarr

    array = zarr.open_array(path / "array", mode="r")
    return lambda n: np.asarray(array[n])


def write_lance(feature: Feature, path: Path) -> None:
    import lance
    import pyarrow as pa

    size = SECONDS * int(np.prod(feature.shape))
    schema = pa.schema([pa.field("values", pa.list_(pa.float16(), size))])

    def batches() -> Iterator[pa.RecordBatch]:
        for n in range(feature.videos):
            values = pa.FixedSizeListArray.from_arrays(pa.array(feature.values(n).ravel()), size)
            yield pa.record_batch([values], schema=schema)

    lance.write_dataset(batches(), str(path / "data"), schema=schema)


def open_lance(feature: Feature, path: Path) -> Read:
    import lance

    dataset = lance.dataset(str(path / "data"))

    def read(n: int) -> np.ndarray:
        values = dataset.take([n]).column("values").combine_chunks().values
        return values.to_numpy(zero_copy_only=False).reshape(SECONDS, *feature.shape)

    return read


def nothing(feature: Feature, path: Path) -> None:
    """The virtual dataset is in the pipeline's own index."""


FORMATS: dict[str, tuple[Callable[[Feature, Path], None], Callable[[Feature, Path], Read]]] = {
    "ours": (write_shards, open_shards),
    "virtual": (nothing, open_virtual),
    "npy": (write_npy, open_npy),
    "zarr": (write_zarr, open_zarr),
    "lance": (write_lance, open_lance),
}


if __name__ == "__main__":
    main()
