"""What a data set will take: jobs, hours, temporary disk and bytes, from its manifest and an earlier run or a short
calibration here."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np

from extractors import ENCODERS, FrameInput, Input, load_encoder
from pipeline.cards import published_videos, read_card
from pipeline.config import annotation_files, collection_dir, dataset_dir, is_trained
from pipeline.decode import decode_shard
from pipeline.errors import AVQAError
from pipeline.manifest import read_manifest, read_questions
from pipeline.storage.shard_list import Video, read_shard_list
from pipeline.storage.tables import read_table
from pipeline.timing import Timing, read_timings

BATCH = 8  # windows of the calibration
SAMPLE = 3  # videos that the calibration decodes
LARGEST_START = 0.15  # of a job, before a larger shard_size is advised


def plan(config: dict, calibrate: bool = True) -> str:
    """The plan as text. `calibrate` False leaves out the hours, which take half a minute and more to measure.

    Raises AVQAError if neither a manifest nor annotations nor a card say how many videos there are."""
    videos, source = count_videos(config)
    seconds, encoders = config["decode"]["segments"], config["encoders"]
    shards, rows, others = -(-videos // config["shard_size"]), videos, ""
    if source == "manifest":  # then other data sets of the collection may have filled the shards as well
        shards, rows = count_rows(config)
        others = f"; their shards have {rows}, and a row is written for each" if rows > videos else ""
    inputs = {item.key: item for name in encoders for item in ENCODERS[name].inputs}
    at_once = min(rows, config["decode"]["ahead"] * config["shard_size"]) * seconds
    models = len(config["models"]) * len(config["train"]["seeds"]) if is_trained(config) else 0
    lines = [
        f"{config['dataset']}: {videos} videos ({source}) of {seconds} s, {videos * seconds / 3600:,.0f} hours{others}",
        f"jobs: {shards} shards, {shards} decode and {shards * len(encoders)} extract, {models} models to train",
        f"collection: {config['videos']['collection']}, extracted once for all data sets that name it",
        f"temporary disk: {2 * at_once * sum(map(bytes_of, inputs.values())) / 1e9:,.1f} GB at most",
    ]
    for name, entry in encoders.items():
        for output in entry.get("outputs", ENCODERS[name].default_outputs):
            size = 2 * int(np.prod(ENCODERS[name].outputs[output])) * seconds * rows
            lines.append(f"{name}/{output}: {size / 1e9:,.2f} GB")
    if calibrate:
        lines += hours(config, rows * seconds, list(inputs.values()))
    return "\n".join(lines)


def count_videos(config: dict) -> tuple[int, str]:
    """How many videos a data set has, and what says so."""
    if (dataset_dir(config) / "questions.parquet").exists():
        table = read_table(dataset_dir(config) / "questions.parquet", ["video_id"])
        return int(table["video_id"].nunique()), "manifest"
    if all(Path(path).exists() for _, _, path in annotation_files(config)):
        return int(read_questions(config)["video_id"].nunique()), "annotations"
    if "card" in config and (videos := published_videos(read_card(config["card"]))):
        return videos, "card"
    raise AVQAError(
        f"{config['dataset']}: there is no manifest, and neither annotations nor a card count videos; make it first"
    )


def count_rows(config: dict) -> tuple[int, int]:
    """How many shards hold the videos of a data set that has a manifest, and how many videos are in these."""
    names = read_manifest(dataset_dir(config))["shards"]
    lists = [read_shard_list(collection_dir(config) / "shards" / f"{name}.tsv") for name in names]
    return len(lists), sum(map(len, lists))


def bytes_of(item: Input) -> int:
    """Bytes of a second of an input."""
    return int(np.prod(item.shape)) * np.dtype(item.dtype).itemsize


def hours(config: dict, total: int, inputs: list[Input]) -> list[str]:
    """Lines with the hours of decoding and of each encoder for `total` seconds of video: of the jobs of an earlier run,
    starts included, and where there are none, as measured here."""
    lines, device, benchmarks = [], "CPU", collection_dir(config) / "benchmarks"
    for name, entry in config["encoders"].items():
        if past := read_timings((benchmarks / name).glob("*.json")):
            lines.append(_past(name, past, config, total))
            continue
        encoder = load_encoder(name, "random", dtype=entry["dtype"])
        device = "GPU" if encoder.device.type == "cuda" else "CPU"
        windows = [np.zeros((BATCH, *_window(item)), item.dtype) for item in ENCODERS[name].inputs]
        encoder.encode(*windows)  # the first call is slower
        clock = time.monotonic if device == "GPU" else _cpu_seconds
        start = clock()
        for values in encoder.encode(*windows).values():
            values.cpu()
        rate = (clock() - start) / BATCH
        lines.append(_hours(name, device, rate, total))
    if past := read_timings(benchmarks.glob("decode/*/*.json")):
        return [_past("decode", past, config, total), *lines]
    shards = sorted((collection_dir(config) / "shards").glob("*.tsv"))
    sample = [video for tsv in shards[:1] for video in read_shard_list(tsv) if not video.gone][:SAMPLE]
    if not sample:
        return [*lines, "decode: not measured, since the manifest is not there yet"]
    return [_hours("decode", "CPU", _decode_rate(config, sample, inputs), total), *lines]


def _hours(stage: str, device: str, rate: float, total: int) -> str:
    return (
        f"{stage}: {1000 * rate:.1f} ms of {device} per second of video here, {total * rate / 3600:,.1f} {device} hours"
    )


def _past(stage: str, past: Timing, config: dict, total: int) -> str:
    """A stage's line from the times of its jobs; with the shard size that makes their start short, if it is long."""
    working = (past.wall - past.start * past.jobs) / past.items  # per second of video
    shard = config["shard_size"] * config["decode"]["segments"]
    share = past.start / (past.start + shard * working)
    wall = total * working + past.start * -(-total // shard)
    line = (
        f"{stage}: {1000 * working:.1f} ms per second of video in {past.jobs} jobs of an earlier run, limited by "
        f"{past.limit}; start of a job {past.start:.1f} s, {share:.1%} of a full shard's job; {wall / 3600:,.1f} hours"
        ", one job after the other"
    )
    if share > LARGEST_START:
        needed = past.start * (1 / LARGEST_START - 1) / working / config["decode"]["segments"]
        line += f"; shard_size: {int(needed) + 1} would make the start {LARGEST_START:.0%}"
    return line


def _window(item: Input) -> tuple[int, ...]:
    return item.shape if isinstance(item, FrameInput) else (item.seconds * item.rate,)


def _decode_rate(config: dict, sample: list[Video], inputs: list[Input]) -> float:
    """Seconds of CPU per second of video, without the start of a job where there are two videos."""
    whole = _decode(config, sample, inputs)
    first = _decode(config, sample[:1], inputs) if len(sample) > 1 else 0.0
    return (whole - first) / (max(len(sample) - 1, 1) * config["decode"]["segments"])


def _decode(config: dict, sample: list[Video], inputs: list[Input]) -> float:
    """Seconds of CPU that decoding takes."""
    options = {name: value for name, value in config["decode"].items() if name not in ("workers", "ahead")}
    with tempfile.TemporaryDirectory() as folder:
        start = _cpu_seconds()
        out, failures = Path(folder, "segments.h5"), Path(folder, "failures.tsv")
        decode_shard(sample, out, inputs=inputs, collection="", shard="", workers=1, failures=failures, **options)
        return _cpu_seconds() - start


def _cpu_seconds() -> float:
    """Processor time of this process, its threads, and the processes that it has started and that have ended: unlike
    time by the clock, it does not depend on what else the machine is doing."""
    return sum(os.times()[:4])
