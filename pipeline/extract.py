"""Segments to features: one frozen encoder over one shard, batched across videos."""

import hashlib
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from tqdm import tqdm

from extractors import EncoderSpec, Input, encoder_spec, load_encoder
from extractors.base import Encoder
from pipeline.config import without_neutral
from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED, PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5
from pipeline.storage.read_ahead import read_ahead
from pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

BATCH_SIZES = {"cpu": 32, "cuda": 256}  # seconds


class Piece(NamedTuple):
    """Seconds start … stop - 1 of the video in row `video`."""

    video: int
    start: int
    stop: int


def extract_shard(
    segments: str | Path,
    out: str | Path,
    *,
    encoder: str,
    weights: str,
    outputs: list[str] | None = None,
    sha256: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    batch_size: int | None = None,
    timing: str | Path | None = None,
    key: str = "",
) -> None:
    """Run an encoder over a segments file and write N, T, … float16 features under <encoder>/<output>.

    Only a video's true seconds are encoded; the padded rows repeat the last one, or are zeros, as the segments
    file was padded. A finished file of the same inputs, weights and outputs is left as it is; an interrupted run
    resumes. The next batch is read and the one before is written while the encoder computes. `batch_size` is in
    seconds, by default 32 on a CPU and 256 on a GPU; it is halved while it does not fit the GPU's memory. The file
    `timing` then says how long reading, encoder and writing took (`pipeline.timing`). `key` is the text of what decides
    the features (`pipeline.keys`).
    Raises AVQAError if the file lacks an input of the encoder or a feature is not finite, and EncoderError.
    """
    spec = encoder_spec(encoder)
    outputs, watch, ended = _check_outputs(encoder, spec, outputs), Stopwatch(), 0.0
    with open_hdf5(segments, "segments") as source:
        seconds = _check_inputs(encoder, spec, source)
        dtype = dtype or spec.dtype
        model = load_encoder(encoder, weights, sha256=sha256, seed=seed, dtype=dtype)
        attributes = _attributes(source, {"encoder": encoder, **model.provenance}, dtype) | {"key": key}
        layout = {f"{encoder}/{name}": _layout(seconds, spec.outputs[name]) for name in outputs}
        layout |= {name: DatasetSpec((), kind) for name, kind in PER_VIDEO.items()}
        videos = source["video_id"].asstr()[:].tolist()
        failed = source["status"][:] != DECODED
        lengths = np.where(failed, 0, source["num_segments"][:])
        if failed.any():
            log.warning(f"{segments}: {failed.sum()} of {len(videos)} videos failed; their features are zeros")
        with ShardWriter(out, len(videos), layout, attributes, {"video_id": videos}) as writer:
            rows = FeatureRows(writer, source, encoder, lengths, videos)
            # Batches are cut alike in every run: a sum's last bit may depend on what else is in its batch.
            size = batch_size or BATCH_SIZES[model.device.type]
            batches = [batch for batch in cut_batches(lengths, size) if rows.due(batch)]
            on_gpu = model.device.type == "cuda"
            reads = (partial(_read_tensors, source, spec.inputs, lengths, batch, on_gpu, watch) for batch in batches)
            encode = FittingEncoder(model, outputs)
            total = sum(piece.stop - piece.start for batch in batches for piece in batch)
            watch.started()
            with tqdm(total=total, desc=encoder, unit="s", mininterval=2) as bar, _WriteBehind() as writing:
                for batch, windows in zip(batches, read_ahead(reads), strict=True):
                    writing.submit(partial(rows.add, batch, _start_encoding(encode, windows, watch), watch))
                    bar.update(len(windows[0]))
            ended = time.monotonic()
    watch.add("writing", time.monotonic() - ended)  # of the finished file, from the rows
    watch.write(timing, total)


class FittingEncoder:
    """An encoder that takes batches of any size, in parts that fit the device's memory: float16 outputs on the device.

    The first batch that does not fit is halved until it does, and all later ones are cut to that size.
    """

    def __init__(self, model: Encoder, outputs: list[str]):
        self.model, self.outputs = model, outputs
        self.limit: int | None = None

    def __call__(self, windows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        parts: list[dict[str, torch.Tensor]] = []
        begin, total = 0, len(windows[0])
        while begin < total:
            size = min(total - begin, self.limit or total)
            try:
                encoded = self.model.encode(*(w[begin : begin + size] for w in windows), outputs=self.outputs)
                parts.append({name: values.half() for name, values in encoded.items()})
                begin += size
                continue
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            # Outside of the handler, which keeps the tensors of the failed call.
            self.limit = size // 2
            torch.cuda.empty_cache()
        return {name: torch.cat([part[name] for part in parts]) for name in self.outputs}


def _start_encoding(
    encode: FittingEncoder, windows: list[torch.Tensor], watch: Stopwatch
) -> Callable[[], dict[str, np.ndarray]]:
    """Begin to encode a batch and to copy its features to the host; the result waits for them."""
    if encode.model.device.type != "cuda":
        with watch.part("encoder"):
            encoded = {name: values.numpy() for name, values in encode(windows).items()}
        return lambda: encoded
    began, copied = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    copies = {name: values.to("cpu", non_blocking=True) for name, values in encode(windows).items()}
    copied.record()

    def wait() -> dict[str, np.ndarray]:
        copied.synchronize()
        watch.add("encoder", began.elapsed_time(copied) / 1000)
        return {name: values.numpy() for name, values in copies.items()}

    return wait


class _WriteBehind:
    """Calls run one after the other in a thread, at most two of which wait. The first exception is raised here; no call
    after it runs."""

    def __enter__(self) -> "_WriteBehind":
        self.thread = ThreadPoolExecutor(1)
        self.waiting: list[Future] = []
        self.failed = False
        return self

    def submit(self, call: Callable[[], None]) -> None:
        if len(self.waiting) == 2:
            self.waiting.pop(0).result()
        self.waiting.append(self.thread.submit(self._run, call))

    def _run(self, call: Callable[[], None]) -> None:
        if not self.failed:
            self.failed = True
            call()
            self.failed = False

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self.thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for call in self.waiting:
                call.result()


class FeatureRows:
    """Collects the features of each video batch by batch and writes its row with its last second.

    The rows of videos without seconds (those that could not be decoded) are written at once, as zeros.
    """

    def __init__(self, writer: ShardWriter, source: h5py.File, encoder: str, lengths: np.ndarray, videos: list[str]):
        self.writer, self.encoder, self.lengths, self.videos = writer, encoder, lengths, videos
        self.per_video = {name: source[name][:] for name in PER_VIDEO}
        self.repeat = json.loads(source.attrs["config"])["pad"] == "repeat"
        self.pending: dict[int, list[dict[str, np.ndarray]]] = defaultdict(list)
        for n in np.flatnonzero(~writer.done & (lengths == 0)).tolist():
            self._write(n, {})

    def due(self, batch: list[Piece]) -> bool:
        """Whether a video of the batch has no row yet."""
        return any(not self.writer.done[piece.video] for piece in batch)

    def add(self, batch: list[Piece], encoded: Callable[[], dict[str, np.ndarray]], watch: Stopwatch) -> None:
        """Take the features of a batch; those of a video come in the order of its seconds. Raises AVQAError for values
        that are not finite."""
        features = encoded()
        with watch.part("writing"):
            self._add(batch, features)

    def _add(self, batch: list[Piece], features: dict[str, np.ndarray]) -> None:
        if not all(np.isfinite(values).all() for values in features.values()):
            raise AVQAError(
                f"{self.writer.path}: {self.encoder} gives values that are not finite in float16 for one of videos "
                f"{[self.videos[piece.video] for piece in batch]}; try dtype: float32"
            )
        begin = 0
        for n, start, stop in batch:
            end = begin + stop - start
            if not self.writer.done[n]:
                self.pending[n].append({name: values[begin:end] for name, values in features.items()})
                if stop == self.lengths[n]:
                    pieces = self.pending.pop(n)
                    self._write(n, {name: np.concatenate([piece[name] for piece in pieces]) for name in features})
            begin = end

    def _write(self, n: int, features: dict[str, np.ndarray]) -> None:
        row: dict[str, object] = {name: values[n] for name, values in self.per_video.items()}
        for dataset, spec in self.writer.datasets.items():
            if dataset not in row:
                values = features.get(dataset.removeprefix(f"{self.encoder}/"))
                row[dataset] = padded = np.zeros(spec.shape, spec.dtype)
                if values is not None:
                    padded[: len(values)] = values
                    padded[len(values) :] = values[-1] if self.repeat else 0
        self.writer.write(n, row)


def cut_batches(lengths: np.ndarray, size: int) -> Iterator[list[Piece]]:
    """Cut the true seconds of all videos, end to end, into batches of `size` seconds."""
    batch: list[Piece] = []
    room = size
    for n, seconds in enumerate(lengths.tolist()):
        start = 0
        while start < seconds:
            stop = min(seconds, start + room)
            batch.append(Piece(n, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch


def read_windows(
    source: h5py.File, inputs: tuple[Input, ...], lengths: np.ndarray, batch: list[Piece]
) -> list[np.ndarray]:
    """A batch as Encoder.encode takes it: for each input the windows of all seconds, in order."""
    return [
        np.concatenate(
            [
                source[input.key][n, start:stop]
                if input.seconds == 1 and not input.hop
                else read_audio_windows(source[input.key], input, int(lengths[n]), Piece(n, start, stop))
                for n, start, stop in batch
            ]
        )
        for input in inputs
    ]


def read_audio_windows(audio: h5py.Dataset, input: Input, length: int, piece: Piece) -> np.ndarray:
    """The windows of a piece, (stop - start, seconds * rate): AudioInput says where they begin.

    `audio` is N, T, rate. Only the video's `length` true seconds are read, outside of them windows are zeros.
    """
    rate = audio.shape[2]
    size, step = input.seconds * rate, input.hop or rate
    begin = piece.start * step - (0 if input.hop else (input.seconds - 1) * rate // 2)
    end = begin + (piece.stop - piece.start - 1) * step + size
    first, last = max(0, begin // rate), min(length, -(-end // rate))  # seconds that hold the samples begin … end - 1
    samples = np.zeros(end - begin, audio.dtype)
    known = audio[piece.video, first:last].reshape(-1)[max(0, begin - first * rate) : end - first * rate]
    offset = max(0, -begin)
    samples[offset : offset + len(known)] = known
    return np.lib.stride_tricks.sliding_window_view(samples, size)[::step]


def _read_tensors(
    source: h5py.File,
    inputs: tuple[Input, ...],
    lengths: np.ndarray,
    batch: list[Piece],
    pinned: bool,
    watch: Stopwatch,
) -> list[torch.Tensor]:
    """`read_windows` as tensors. Pinned memory is what a GPU copies from while it computes."""
    with watch.part("reading"):
        tensors = [torch.from_numpy(windows) for windows in read_windows(source, inputs, lengths, batch)]
        return [tensor.pin_memory() for tensor in tensors] if pinned else tensors


def _check_outputs(encoder: str, spec: EncoderSpec, outputs: list[str] | None) -> list[str]:
    if unknown := set(outputs or ()) - set(spec.outputs):
        raise AVQAError(f"encoder {encoder}: outputs {sorted(unknown)} are not known; choose from {list(spec.outputs)}")
    return outputs or spec.default_outputs


def _check_inputs(encoder: str, spec: EncoderSpec, source: h5py.File) -> int:
    """The number of seconds T of the segments file, which must hold all of the encoder's inputs."""
    for input in spec.inputs:
        if input.key not in source:
            raise AVQAError(
                f"{source.filename}: has no {input.key}, an input of {encoder}; "
                f"decode again with {encoder} among the encoders"
            )
        found = source[input.key]
        if found.shape[2:] != input.shape or found.dtype != input.dtype:
            raise AVQAError(
                f"{source.filename}: {input.key} holds {found.dtype} {found.shape[2:]} per second, "
                f"expected {input.dtype} {input.shape}"
            )
    return source[spec.inputs[0].key].shape[1]


def _layout(seconds: int, shape: tuple[int, ...]) -> DatasetSpec:
    """A vector per second is read by the video, anything larger by the second."""
    return DatasetSpec((seconds, *shape), "float16", (1, *shape) if len(shape) > 1 else None)


def _attributes(source: h5py.File, provenance: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What decides the numbers: the encoder's part, and what the segments file records of its decoding."""
    decoded_by = json.loads(source.attrs.get("libraries", "{}"))
    # Other encoders' inputs may be in the file too; they decide no number of this encoder's.
    decode = {k: v for k, v in without_neutral("decode", json.loads(source.attrs["config"])).items() if k != "inputs"}
    return {
        "kind": "features",
        **{name: source.attrs[name] for name in ("collection", "shard", "source")},
        "decoded": _digest_of_rows(source),
        **provenance,
        "libraries": {**decoded_by, **provenance["libraries"]},
        "config": {"dtype": dtype, "decode": decode},
    }


def _digest_of_rows(source: h5py.File) -> str:
    """What became of each video: rows that were extracted before another try of decoding are not gone on with."""
    rows = [source["video_id"].asstr()[:].tolist(), *(source[name][:].tolist() for name in PER_VIDEO)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
