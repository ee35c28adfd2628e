"""A project that is small enough to be made again and again: clips of which anybody can tell colour and loudness,
questions, a configuration, the workflow in this process, and what came out of it in a form that can be compared."""

import copy
import html
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, NamedTuple

import av
import h5py
import numpy as np
import pandas as pd
import yaml
from toy_table import TOYS

from pipeline.config import NEUTRAL, check_configs
from pipeline.local import run_workflow
from pipeline.manifest import read_membership
from pipeline.media.segments import MachineError, MediaError, read_segments
from pipeline.media.worker import WorkerFailure
from pipeline.paths import Paths, paths_of
from pipeline.storage.contract import DECODED, PER_VIDEO
from pipeline.timing import Stopwatch

FPS, RATE = 4, 16000
SPLITS = ("train", "val", "test")
CONFIG = {
    "datasets": {"tiny": {"annotations": {split: f"data/{split}.json" for split in SPLITS}}},
    "format": "plain",
    "videos": {"collection": "clips", "folder": "data/videos"},
    "shard_size": 3,
    "max_failed_fraction": 1.0,
    "allow_missing": True,
    "decode": {"segments": 2, "workers": 1},
    "encoders": {"toy_colour": {"weights": "random"}, "toy_loudness": {"weights": "random", "outputs": ["mixed"]}},
    "text": {"encoder": "toy_words", "weights": "random"},
    "models": {"pooled": {"audio": "toy_loudness/mixed", "visual": "toy_colour/mixed", "width": 4}},
    "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.01, "threads": 1, "workers": 1, "standardize": True},
}
# Below a data set's folder, what has a key in its name; the rest is what people find without one.
WITH_KEYS = ("manifests", "text", "data", "runs", "scores", "reports", "ablations", "benchmarks", "logs")
NOT_COMPARED = ("tensorboard", "resume.pt", "files", "findings.json", "timing.json", "benchmark.tsv")


class Clip(NamedTuple):
    """What is in a video file: one colour and one loudness from 0 to 1. No colour: the file is no video."""

    colour: tuple[float, float, float] | None
    loudness: float
    seconds: int


def write_clip(path: Path, clip: Clip) -> None:
    """Write a video of 64x48, or bytes that are none."""
    if clip.colour is None:
        path.write_bytes(b"no video" * (1 + round(100 * clip.loudness)))
        return
    with av.open(str(path), "w") as file:
        video, audio = file.add_stream("libx264", FPS), file.add_stream("aac", RATE, layout="mono")
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        pixels = np.broadcast_to(np.uint8(np.round(255 * np.array(clip.colour))), (48, 64, 3))
        for n in range(FPS * clip.seconds):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            file.mux(video.encode(frame))
        wave = np.float32(clip.loudness * np.sqrt(2) * np.sin(2 * np.pi * 440 * np.arange(RATE * clip.seconds) / RATE))
        for start in range(0, len(wave), 1000):
            samples = av.AudioFrame.from_ndarray(wave[None, start : start + 1000], "fltp", "mono")
            samples.sample_rate, samples.pts, samples.time_base = RATE, start, Fraction(1, RATE)
            file.mux(audio.encode(samples))
        for stream in (video, audio):
            file.mux(stream.encode(None))


class DirectWorker:
    """Decodes in this process, in place of `pipeline.media.worker.Worker`. Files in `failing` fail, whatever is in
    them; `tried` lists what was decoded."""

    failing: ClassVar[set[str]] = set()
    tried: ClassVar[list[str]] = []

    def __init__(self, limits: object):
        pass

    def read(self, path: str | None, inputs, segments: int, **options):
        self.tried.append(path)
        if path in self.failing:
            raise WorkerFailure("took longer than its limit of 60 s")
        try:
            found = read_segments(path, inputs=inputs, segments=segments, **options)
        except MachineError:
            raise
        except MediaError as error:
            raise WorkerFailure(error.reason) from error
        named = {"num_segments": found.num_segments, "has_audio": found.has_audio, "unheard": found.unheard}
        return named, found.data

    def stop(self) -> None: ...

    def close(self) -> None: ...


def prepare(monkeypatch, folder: Path) -> None:
    """Work in a folder, with toy encoders, decoders in this process and no times in reports."""
    monkeypatch.chdir(folder)
    for name, spec in TOYS.items():
        monkeypatch.setitem(__import__("extractors").ENCODERS, name, spec)
    monkeypatch.setattr("pipeline.decode.Worker", DirectWorker)
    monkeypatch.setattr("pipeline.reporting.sheet.Worker", DirectWorker)
    monkeypatch.setattr(DirectWorker, "failing", set())
    monkeypatch.setattr(DirectWorker, "tried", [])
    monkeypatch.setattr(Stopwatch, "write", lambda *arguments: None)


class Project:
    """What a user has in the working folder: clips, questions and a configuration."""

    results, folder = Path("results"), Path("data/videos")

    def __init__(self, rng: np.random.Generator):
        self.rng, self.config, self.clips, self.clock = rng, copy.deepcopy(CONFIG), {}, 1_700_000_000
        self.late: set[str] = set()  # videos that may have failed for another reason than their file
        self.folder.mkdir(parents=True)
        self.questions: dict[str, list[dict]] = {split: [] for split in (*SPLITS, "other")}
        for n, split in enumerate(("train", "train", "train", "val", "test", "test")):
            self.add_video(f"v{n}")
            for _ in range(2):
                self.ask(split, f"v{n}")
        self.ask("other", "v4")
        self.ask("other", "v0")

    def path(self, video_id: str) -> Path:
        return self.folder / f"{video_id}.mp4"

    def set_time(self, path: Path, seconds: int | None = None) -> None:
        """Set a file's time, by default to one that no file has had."""
        self.clock += 1
        time = self.clock if seconds is None else seconds
        os.utime(path, (time, time))

    def add_video(self, video_id: str, seconds: int | None = None) -> None:
        """Add or replace a video."""
        colour = tuple(self.rng.choice([0.1, 0.3, 0.5, 0.7, 0.9], 3).tolist())
        clip = Clip(colour, float(self.rng.choice([0.1, 0.2, 0.3, 0.4, 0.5])), int(self.rng.integers(1, 4)))
        self.set_clip(video_id, clip if clip != self.clips.get(video_id) else clip._replace(seconds=4), seconds)

    def set_clip(self, video_id: str, clip: Clip, seconds: int | None = None) -> None:
        self.clips[video_id] = clip
        write_clip(self.path(video_id), clip)
        self.set_time(self.path(video_id), seconds)

    def ask(self, split: str, video_id: str) -> None:
        """Add a question about a video."""
        number = sum(map(len, self.questions.values()))
        subject = self.rng.choice(["drum", "flute", "piano", "violin"])
        asked = {"video_id": video_id, "question": f"Is there a {subject} ?", "question_id": str(number)}
        self.questions[split].append(asked | {"answer": str(self.rng.choice(["yes", "no", "two", "Yes"]))})

    def can_lose(self, video_id: str) -> bool:
        """Whether without a video there are still others of each split, so that there is something to train on."""
        left = {name for name, clip in self.clips.items() if clip.colour is not None} - {video_id, *self.late}
        return all(any(record["video_id"] in left for record in records) for records in self.questions.values())

    def configs(self) -> dict[str, dict]:
        """The configuration as it is now, checked."""
        return check_configs(copy.deepcopy(self.config))

    def write_questions(self) -> None:
        for split, records in self.questions.items():
            text = json.dumps(records)
            path = Path("data", f"{split}.json")
            if not path.exists() or path.read_text() != text:
                path.write_text(text)

    def run(self) -> dict[str, Paths]:
        self.write_questions()
        return run_workflow(self.configs())

    def from_nothing(self, with_membership: bool) -> dict[str, object]:
        """What a run into an empty folder makes. With membership, there is what says for ever in which shard a video
        is, and what was tried again: videos.parquet, or where that is lost, the shards' lists, and retries.json."""
        aside = Path("aside")
        self.results.rename(aside)
        try:
            if with_membership:
                self._copy_membership(aside / "clips", self.results / "clips")
            self.run()
            return self.outcome() if with_membership else self.values()
        finally:
            shutil.rmtree(self.results)
            aside.rename(self.results)

    def _copy_membership(self, source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        if (source / "videos.parquet").exists():
            shutil.copy(source / "videos.parquet", target)
        else:
            shutil.copytree(source / "shards", target / "shards")
        if (source / "retries.json").exists():
            shutil.copy(source / "retries.json", target)

    def outcome(self) -> dict[str, object]:
        """Everything that the configuration names, with and without keys."""
        paths = paths_of(self.configs())
        found: dict[str, object] = {}
        for files in paths.values():
            for path in files.everything():
                if path.parts[1:3] not in (("clips", "features"), ("clips", "failures")):
                    found |= dict(_contents(path))
            for encoder in files.config["encoders"]:
                for path in files.features_files(encoder):
                    found[f"features of {encoder}, {path.stem}"] = _hdf5(path, files.outputs(encoder))
            for path in files.folder.iterdir():
                if path.name not in WITH_KEYS:
                    found |= {f"link: {name}": value for name, value in _contents(path)}
        return found

    def values(self) -> dict[str, object]:
        """What there is of each video, text and question, wherever it is."""
        found: dict[str, object] = {}
        for name, files in paths_of(self.configs()).items():
            with h5py.File(files.folder / "features.h5") as file:
                for row, video in enumerate(file["video_id"].asstr()):
                    for path, values in _datasets(file):
                        group, *rest = path.split("/")
                        if rest[-1:] not in (["files"], ["sources"]) and group in (
                            *PER_VIDEO,
                            *files.config["encoders"],
                        ):
                            found[f"{name}: {path} of {video}"] = values[row].tobytes()
                found[f"{name}: texts"] = file["text/text"].asstr()[:].tolist(), file["text/words"][:].tobytes()
            found[f"{name}: questions"] = _table(files.folder / "questions.parquet")
        return found

    def check(self) -> None:
        """What follows from the clips and the questions alone."""
        for files in paths_of(self.configs()).values():
            listed = [r for path in files.config["annotations"].values() for r in self.questions[Path(path).stem]]
            asked = [record for record in listed if record["video_id"] in self.clips]
            table = pd.read_parquet(files.folder / "questions.parquet")
            assert table["question"].tolist() == [record["question"] for record in asked]
            assert table["question_id"].tolist() == [record["question_id"] for record in asked]
            with h5py.File(files.folder / "features.h5") as file:
                assert set(file["text/text"].asstr()[:]) == set(table["question"])
                assert sorted(file["video_id"].asstr()[:]) == sorted(set(table["video_id"]))
                for row, video in enumerate(file["video_id"].asstr()[:]):
                    if video not in self.late or file["status"][row] == DECODED:
                        self._check_row(file, row, self.clips[video], files.config)

    def _check_row(self, file: h5py.File, row: int, clip: Clip, config: dict) -> None:
        assert (file["status"][row] == DECODED) == (clip.colour is not None)
        true = min(clip.seconds, config["decode"]["segments"])
        for name, expected in (("toy_colour/mean", clip.colour), ("toy_loudness/level", (clip.loudness,))):
            if name not in file:
                continue
            values = file[name][row]
            if clip.colour is None:
                assert not values.any()
                continue
            assert file["num_segments"][row] == true
            filled = len(values) if config["decode"]["pad"] == "repeat" else true
            np.testing.assert_allclose(values[:filled], np.tile(np.add(expected, 1), (filled, 1)), atol=0.05)
            assert not values[filled:].any()

    def files(self) -> dict[str, tuple[int, int]]:
        """The identity and time of everything in the results, but for locks."""
        found = (path for path in self.results.rglob("*") if not path.name.endswith(".lock") and not path.is_dir())
        return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in found}

    def places(self) -> dict[str, tuple[int, int]]:
        """Shard and row of each video that was ever listed."""
        shards = read_membership(self.results / "clips" / "videos.parquet")
        return {video.video_id: (n, row) for n, shard in enumerate(shards) for row, video in enumerate(shard)}


def _contents(path: Path) -> Iterator[tuple[str, object]]:
    """A file's name and content, or those of all files of a folder, but for times and what was not asked for."""
    if path.name in NOT_COMPARED or path.name.startswith("."):
        return
    if path.is_dir():
        for part in sorted(path.iterdir()):
            yield from _contents(part)
    elif path.exists():
        yield str(path), READERS.get(path.name, READERS.get(path.suffix, Path.read_bytes))(path)
    else:
        yield str(path), "a link that leads nowhere" if path.is_symlink() else "missing"


def _table(path: Path) -> str:
    """Of tables of failures, without times and messages."""
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, sep="\t", dtype=str)
    return table.drop(columns=["seconds", "reason"], errors="ignore").to_json(orient="split")


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    names: list[str] = []
    file.visit(names.append)
    yield from ((name, file[name]) for name in names if isinstance(file[name], h5py.Dataset))


def _hdf5(path: Path, outputs: list[str] | None = None) -> object:
    """Attributes and numbers; of features, those of the given outputs."""
    found: dict[str, object] = {}
    with suppress(FileNotFoundError), h5py.File(path) as file:
        found["attributes"] = {name: str(value) for name, value in file.attrs.items() if name != "created_by"}
        for name, values in _datasets(file):
            extra = outputs is not None and "/" in name and name.split("/")[1] not in outputs
            if not extra and name.split("/")[-1] != "files":
                read = values.asstr()[:].tolist() if values.dtype.kind == "O" else values[:].tobytes()
                found[name] = (values.shape, str(values.dtype), read)
    return found or "missing"


def _run(path: Path) -> object:
    """config.yaml of a run, without what changes no result and the place of the data."""
    made = yaml.safe_load(path.read_text())
    config = made["config"]
    schedule = {name: value for name, value in config["train"].items() if name not in NEUTRAL["train"]}
    return [made[name] for name in ("model", "seed", "answers", "vocabulary", "decided_by")] + [
        config["models"],
        schedule,
    ]


def _manifest(path: Path) -> object:
    """Without the list of all files that it was made from: it may be made again for a file that no question needs. The
    copy in the folder that models read may be older in what they do not read."""
    unread = ("key", "trained_on") if path.parts[-3] == "data" else ("key",)
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in unread}


def _verified(path: Path) -> object:
    found = json.loads(path.read_text())
    return found["errors"], sorted(finding["check"] for finding in found["findings"] if finding["level"] == "error")


def _page(path: Path) -> object:
    """The configuration as values without those that change no result, and the rest."""
    before, _, rest = path.read_text().rpartition("<pre>")
    configuration, _, after = rest.partition("</pre>")
    neutral = "|".join({name for names in NEUTRAL.values() for name in names} - {"seeds", "outputs"})
    kept = yaml.safe_load(re.sub(rf"(?m)^ *({neutral}): .*\n", "", html.unescape(configuration)))
    for entry in kept["encoders"].values():
        entry.pop("outputs", None)
    return before, json.dumps(kept, sort_keys=True), after


READERS = {
    "features.h5": _hdf5,
    ".h5": _hdf5,
    ".parquet": _table,
    "failures.tsv": _table,
    "config.yaml": _run,
    "manifest.json": _manifest,
    "verify.json": _verified,
    "report.html": _page,
}
