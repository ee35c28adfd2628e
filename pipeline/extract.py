"""Segments to features: one frozen encoder over one shard, batched across videos."""

import json
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from extractors import load_encoder, spec
from pipeline.errors import AVQAError
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5


def extract_shard(
    segments: str | Path,
    out: str | Path,
    *,
    encoder: str,
    weights: str,
    outputs: list[str] | None = None,
    sha256: str | None = None,
    seed: int = 0,
    dtype: str = "bfloat16",
    batch_size: int = 32,
) -> None:
    """Run an encoder over a segments file and write N, T, … float16 features.

    Only a video's true seconds are encoded; the padded rows repeat the last one, or are zeros, as the segments
    file was padded. Raises AVQAError if the file lacks what the encoder reads or a feature is not finite.
    """
    entry = spec(encoder)
    outputs = outputs or list(entry.outputs)
    if unknown := set(outputs) - set(entry.outputs):
        raise AVQAError(
            f"encoder {encoder}: outputs {sorted(unknown)} are not known; choose from {list(entry.outputs)}"
        )
    with open_hdf5(segments, "segments") as source:
        if entry.reads not in source:
            raise AVQAError(f"{segments}: has no {entry.reads}, which {encoder} reads; decode with that size")
        model = load_encoder(encoder, weights, sha256=sha256, seed=seed, dtype=dtype)
        rows, seconds = source[entry.reads].shape[:2]
        datasets = {
            f"{encoder}/{name}": DatasetSpec(
                (seconds, *entry.outputs[name]),
                "float16",
                (1, *entry.outputs[name]) if len(entry.outputs[name]) > 1 else None,
            )
            for name in outputs
        }
        attributes = {
            "kind": "features",
            **{name: source.attrs[name] for name in ("dataset", "shard", "source")},
            "encoder": encoder,
            **model.provenance,
            "config": {"dtype": dtype, "decode": json.loads(source.attrs["config"])},
        }
        constants = {"video_id": list(source["video_id"].asstr()[:])}
        about = {
            "num_segments": DatasetSpec((), "int32"),
            "has_audio": DatasetSpec((), "bool"),
            "status": DatasetSpec((), "int32"),
        }
        with ShardWriter(out, rows, {**datasets, **about}, attributes, constants) as writer:
            true = np.where(source["status"][:] == 0, source["num_segments"][:], 0)
            facts = {name: source[name][:] for name in ("num_segments", "has_audio", "status")}
            repeat = json.loads(source.attrs["config"])["pad"] == "repeat"

            def write(n: int, features: dict[str, np.ndarray]) -> None:
                row = {name: values[n] for name, values in facts.items()}
                for name in outputs:
                    padded = np.zeros((seconds, *entry.outputs[name]), "float16")
                    if true[n]:
                        padded[: true[n]] = features[name]
                        padded[true[n] :] = features[name][-1] if repeat else 0
                    row[f"{encoder}/{name}"] = padded
                writer.write(n, row)

            due = ~writer.done
            # Batches are cut alike in every run: a sum's last bit may depend on what else is in its batch.
            batches = [batch for batch in _batches(true, batch_size) if any(due[n] for n, _, _ in batch)]
            seconds_due = sum(stop - start for batch in batches for _, start, stop in batch)
            with tqdm(total=seconds_due, desc=encoder, unit="s", mininterval=2) as bar:
                parts: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
                for n in np.flatnonzero(due & (true == 0)):
                    write(n, {})
                for batch, frames in _prefetched(source[entry.reads], batches):
                    encoded = {k: v.half().cpu().numpy() for k, v in model.encode(frames).items() if k in outputs}
                    if not all(np.isfinite(values).all() for values in encoded.values()):
                        raise AVQAError(
                            f"{segments}: {encoder} gives values that are not finite in float16 for one of videos "
                            f"{[constants['video_id'][n] for n, _, _ in batch]}; try dtype: float32"
                        )
                    at = 0
                    for n, start, stop in batch:
                        parts[n].append({k: v[at : at + stop - start] for k, v in encoded.items()})
                        at += stop - start
                        if stop == true[n] and due[n]:
                            pieces = parts.pop(n)
                            write(n, {k: np.concatenate([piece[k] for piece in pieces]) for k in encoded})
                    bar.update(at)


def _batches(true: np.ndarray, size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Cut the true seconds of the videos, end to end, into batches of (video, first second, last + 1)."""
    batch, room = [], size
    for n, seconds in enumerate(true.tolist()):
        start = 0
        while start < seconds:
            stop = min(seconds, start + room)
            batch.append((n, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def _prefetched(dataset: h5py.Dataset, batches: list) -> Iterator[tuple[list, np.ndarray]]:
    """Read the next batch while the encoder works on this one."""

    def read(batch):
        return batch, np.concatenate([dataset[n, start:stop] for n, start, stop in batch])

    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for batch in batches:
            following = pool.submit(read, batch)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()
