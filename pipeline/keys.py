"""What decides the content of each kind of file, as a key that stands in the file's name.

A key is the text of what decides a file and, for names, the first digits of its sha256. Keys chain: that of a run holds
those of the features that it reads, and these hold what decides decoding. Files with equal keys are equal, so a file
that exists is right and a file that is missing is due. Only what changes a number is in a key
(`pipeline.config.NEUTRAL` lists the settings that change none). The functions read annotations, the folder of videos,
weights and what `avqa retry` noted, and no result.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from pathlib import Path

from extractors import ENCODERS, is_file, major_minor
from pipeline import __version__
from pipeline.config import (
    annotation_files,
    collection_dir,
    reads_prompts,
    text_encoders,
    videos_fingerprint,
    without_neutral,
)
from pipeline.data.formats.music_avqa import PROMPTS
from pipeline.errors import AVQAError
from pipeline.storage.checksums import content_digest
from pipeline.storage.contract import DECODER_VERSION
from pipeline.storage.retries import read_retries

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"  # of the environments in envs/ too
DIGITS = 10  # of a key's digest, in names
MANIFEST_VERSION = 2  # to be increased with every change after which equal annotations give another manifest


class Key:
    """What decides a file, as JSON text, and the digits that stand for it in names."""

    def __init__(self, **parts: object):
        self.parts = parts
        self.text = json.dumps(parts, sort_keys=True, ensure_ascii=False)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def digits(self) -> str:
        """The digest's first digits, for names."""
        return self.digest[:DIGITS]


def decoding(config: dict) -> Key:
    """Of the seconds of videos: how they are chosen, and the libraries that decode and resize."""
    backend, audio_files = config["decode"]["backend"], config["videos"].get("audio_pattern")
    packages = ["av", "imageio-ffmpeg", "pillow", *(("soundfile", "soxr") if audio_files else ())]
    packages += [{"nvdec": "torchcodec", "decord": "decord"}[backend]] if backend != "pyav" else []
    libraries = {name: release(name) for name in packages}
    return Key(decode=without_neutral("decode", config["decode"]), decoder=DECODER_VERSION, libraries=libraries)


def encoding(config: dict, encoder: str) -> Key:
    """Of an encoder's features, whatever the videos and outputs."""
    return Key(**decoding(config).parts, encoder=_encoder(encoder, config["encoders"][encoder]))


def text_encoding(config: dict, encoder: str) -> Key:
    """Of a text encoder's features, whatever the texts."""
    return Key(encoder=_encoder(encoder, text_encoders(config)[encoder]))


def _encoder(name: str, entry: Mapping) -> dict:
    settings = without_neutral("weights", entry) | {"name": name}
    settings |= {"libraries": {package: release(package) for package in ("torch", *ENCODERS[name].libraries)}}
    settings["version"] = ENCODERS[name].version(entry["weights"])
    if entry["weights"] != "random":
        del settings["seed"]
    if is_file(entry["weights"]):
        beside = ENCODERS[name].beside and Path(entry["weights"]).with_name(ENCODERS[name].beside)
        try:
            settings["weights"] = content_digest(entry["weights"])
            if beside and beside.exists():
                settings["beside"] = content_digest(beside)
        except OSError as error:
            raise AVQAError(
                f"weights of {name}: {entry['weights']}: {error.strerror}; give a file, a hub tag, or random"
            ) from error
    return settings


@cache
def release(package: str) -> str:
    """The part of a package's version that may change a number. Where it is not installed, as in the environment that
    only starts jobs in others, theirs is the locked version; "" where there is none."""
    try:
        return major_minor(package)
    except ModuleNotFoundError:
        lines = CONSTRAINTS.read_text().split() if CONSTRAINTS.exists() else []
        locked = dict(line.split("==") for line in lines if line.count("==") == 1)
        return ".".join(locked.get(package, "").split(".")[:2])


def manifest(config: dict) -> Key:
    """Of questions and shards: annotations, numbers of answers and words, and the files in the folder of videos."""
    names = [
        "dataset",
        "format",
        "card",
        "answers",
        "merge_answers",
        "video_ids",
        "allow_missing",
        "shard_size",
        "videos",
    ]
    names += ["numbered_as", "trained_on"]
    settings = {name: config[name] for name in names if name in config}
    # Questions and answers are in the order of their files, which mappings as JSON text do not keep.
    settings["order"] = [annotation_files(source) for source in (config, config.get("numbered_as")) if source]
    retries = read_retries(collection_dir(config))
    asked = {"retries": retries} if retries else {}
    if "synthesize" in config:  # annotations and videos come with each other
        return Key(version=MANIFEST_VERSION, settings=settings, synthesize=config["synthesize"], **asked)
    try:
        videos = videos_fingerprint(config["videos"])
    except OSError as error:
        raise AVQAError(f"videos.folder: {error}; see README.md for what goes there") from error
    digests = {path: _file_digest(path) for path in source_files(config)}
    if config["format"] == "music_avqa":
        digests["prompts"] = _file_digest(PROMPTS)
    return Key(version=MANIFEST_VERSION, settings=settings, files=digests, videos=videos, **asked)


def source_files(config: dict) -> list[str]:
    """The files of users that questions and their numbers are read from."""
    files: dict[str, None] = {}
    for source in (config, config.get("numbered_as")):
        if source:
            files |= dict.fromkeys(path for _, _, path in annotation_files(source))
            if isinstance(source.get("answers"), str):
                files[source["answers"]] = None
    return list(files)


def _file_digest(path: str | Path) -> str:
    try:
        return content_digest(path)
    except OSError:
        return ""  # whoever reads it names the missing file


def texts(config: dict, encoder: str, manifest: Mapping) -> Key:
    """Of a text encoder's file of a data set."""
    prompts = {"prompts": manifest["prompts"]} if reads_prompts(config) else {}
    return Key(**text_encoding(config, encoder).parts, texts=manifest["texts"], **prompts)


def data(config: dict, manifest: Mapping) -> Key:
    """Of what models read of a data set: its questions, and the features of their videos and texts."""
    features = {
        name: [encoding(config, name).digest, sorted(outputs(config, name))] for name in config.get("encoders", {})
    }
    texts_of = {name: texts(config, name, manifest).digest for name in text_encoders(config)}
    return Key(
        dataset=config["dataset"],
        collection=config["videos"]["collection"],
        questions=manifest["questions"],
        numbering=manifest["numbering"],
        shards=manifest["shards"],
        left_out=[manifest["left_out"], manifest["absent"]],
        features=features,
        texts=texts_of,
        first_text=next(iter(texts_of), None),
        max_failed_fraction=config["max_failed_fraction"],
    )


def outputs(config: dict, encoder: str) -> list[str]:
    """The outputs of an encoder that a configuration keeps."""
    return config["encoders"][encoder].get("outputs", ENCODERS[encoder].default_outputs)


def run(config: dict, manifest: Mapping) -> Key:
    """Of a run of a model, whatever the seed: its settings, its complete schedule, what its batches hold. `config` is
    that of one model (`pipeline.config.of_one_model`)."""
    (entry,) = config["models"].values()
    return Key(
        model=entry,
        schedule=without_neutral("train", config["train"]),
        reads=_reads(config, entry),
        questions=manifest["training"],
        videos=manifest["training_videos"],
        torch=release("torch"),
    )


def scores(config: dict, trained: Key, manifest: Mapping) -> Key:
    """Of a run's answers to a data set's test questions; `trained` is the key of the run."""
    (entry,) = config["models"].values()
    return Key(
        run=trained.digest,
        reads=_reads(config, entry),
        questions=manifest["test"],
        videos=manifest["test_videos"],
    )


def report(config: dict, data: Key, scores: Iterable[str]) -> Key:
    """Of a data set's page: what is scored, and the settings that it shows."""
    shown = {name: value for name, value in config.items() if name not in ("results", "scratch", "ablations")}
    shown["decode"] = without_neutral("decode", config["decode"])
    for name, entries in (("encoders", config["encoders"]), ("text", text_encoders(config))):
        shown[name] = {encoder: without_neutral("weights", entry) for encoder, entry in entries.items()}
    shown["order"] = [list(config["encoders"]), list(config["models"])]
    shown["train"] = without_neutral("train", config["train"]) | {"seeds": config["train"]["seeds"]}
    return Key(version=__version__, config=shown, data=data.digest, scores=list(scores))


def _reads(config: dict, entry: Mapping) -> dict:
    """What a model reads of videos and texts, by the name of the feature."""
    from pipeline.models import entry_settings

    read = {entry[name]: encoding(config, entry[name].split("/")[0]).parts for name in entry_settings(entry).features}
    encoders = text_encoders(config)
    if encoders:
        read["text"] = text_encoding(config, entry.get("text", next(iter(encoders)))).parts
    return read
