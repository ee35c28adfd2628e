"""Configuration: a YAML file with one data set or several, checked against config/schema.yaml, defaults filled in."""

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import jsonschema
import yaml

from extractors import ENCODERS, EncoderSpec, FrameInput, is_file
from extractors import text_encoders as known_text_encoders
from pipeline.cards import apply_card, decides_numbers
from pipeline.data.formats import FORMATS, SPLITS
from pipeline.errors import AVQAError
from pipeline.models import entry_schema, entry_settings, settings_class
from pipeline.models.settings import TOKENS, StrictValidator

ROOT = Path(__file__).parent.parent  # of the repository, or site-packages: config/ and manifests/ lie beside pipeline/
SCHEMA = ROOT / "config" / "schema.yaml"
OF_A_COLLECTION = ("videos", "shard_size", "decode")  # settings that data sets with one collection must have in common
# Settings that change no result, by section: how fast, how many at a time, where; and checks.
NEUTRAL: Mapping[str, tuple[str, ...]] = {
    "decode": ("workers", "ahead", "selective"),
    "weights": ("batch_size", "sha256", "outputs"),  # of an encoder of videos or texts
    "train": ("seeds", "threads", "workers"),
}
OF_ALL_MODELS = NEUTRAL["train"]  # a model's own `train` cannot have them
OF_A_RUN = (
    "models",
    "train",
    "text",
    "encoders",
    "merge_answers",
)  # settings that a data set shares with those its models are from
PROTOCOLS = ROOT / "config" / "protocols.yaml"


def load_config(source: str | Path, *sections: str, dataset: str | None = None) -> dict:
    """Read and check the configuration of one data set.

    `source` is a file, or the JSON text of the sections that a rule passes on. `dataset` says which data set of a file
    with several (default: the first). Only the given sections must be there (default: all that the schema requires).
    Raises AVQAError naming the file and the field.
    """
    if str(source).startswith("{"):
        return check_config(json.loads(str(source)), "--config", sections)
    configs = load_configs(source, *sections)
    if dataset is not None and dataset not in configs:
        raise AVQAError(f"{source}: has no data set {dataset}; it has {', '.join(configs)}")
    return configs[dataset or next(iter(configs))]


def load_configs(source: str | Path, *sections: str) -> dict[str, dict]:
    """The configurations of all data sets of a file, by name. Raises AVQAError naming the file and the field."""
    return check_configs(read_written(source), source, sections)


def read_written(source: str | Path) -> object:
    """A configuration as it is written. Raises AVQAError naming the file."""
    try:
        return yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AVQAError(f"{source}: no such configuration; those of the project are in config/") from None
    except IsADirectoryError:
        raise AVQAError(f"{source}: is a folder; give the configuration file in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AVQAError(f"{source}: not YAML: {error}") from error


def check_configs(config: object, source: str | Path = "configuration", sections: tuple[str, ...] = ()) -> dict:
    """The configuration of each data set by name, defaults filled in: the common settings with the data set's own.

    Raises AVQAError naming `source` and every wrong field, and data sets that contradict each other.
    """
    if not isinstance(config, dict) or "datasets" not in config:
        checked = check_config(config, source, sections)
        return {checked["dataset"]: checked}
    common = {name: value for name, value in config.items() if name != "datasets"}
    if "dataset" in common:
        raise AVQAError(f"{source}: has both dataset and datasets; name one data set, or several")
    own = config["datasets"]
    if not isinstance(own, dict) or not own or not all(isinstance(values, dict | None) for values in own.values()):
        raise AVQAError(f"{source}: datasets must map each data set's name to its settings")
    configs = {
        name: check_config(merge(common, {**(values or {}), "dataset": name}), f"{source}, data set {name}", sections)
        for name, values in own.items()
    }
    if lines := [f"  {line}" for line in _conflicts(configs)]:
        raise AVQAError(f"{source}: data sets that do not fit together:\n" + "\n".join(lines))
    for config in configs.values():
        if config["trained_on"] and not is_trained(config) and "annotations" in config:
            config["numbered_as"] = decides_numbers(configs[config["trained_on"][0]])
    return configs


def merge(common: object, own: object) -> object:
    """Settings of a data set over the common ones: mappings are merged, anything else is replaced."""
    if isinstance(common, dict) and isinstance(own, dict):
        both = {name: merge(common[name], own[name]) for name in common.keys() & own.keys()}
        return {name: copy.deepcopy(both.get(name, {**common, **own}[name])) for name in {**common, **own}}
    return copy.deepcopy(own)


def _conflicts(configs: dict[str, dict]) -> Iterator[str]:
    """What data sets contradict each other about; each line begins with the data set."""
    first: dict[str, str] = {}
    encoders: dict[tuple[str, str], tuple[str, dict]] = {}  # by collection and name: the first data set's settings
    for name, config in configs.items():
        if "videos" not in config:  # only some sections
            continue
        collection = config["videos"]["collection"]
        if collection in configs:
            yield f"{name}.videos.collection: {collection} is a data set's name; results of both would be in one folder"
        other = first.setdefault(collection, name)
        for section in OF_A_COLLECTION:
            if _as_results(config, section) != _as_results(configs[other], section):
                yield f"{name}.{section}: differs from that of {other}, whose collection is {collection} too"
        for encoder, entry in config.get("encoders", {}).items():
            other, theirs = encoders.setdefault((collection, encoder), (name, entry))
            if _made_alike(theirs) != _made_alike(entry):
                yield f"{name}.encoders.{encoder}: differs from that of {other}, whose collection is {collection} too"
        if config["results"] != configs[next(iter(configs))]["results"]:
            yield f"{name}.results: must be the same for all data sets"
        yield from _conflicts_with_trained(name, configs)


def _conflicts_with_trained(name: str, configs: dict[str, dict]) -> Iterator[str]:
    for trained in configs[name].get("trained_on", []):
        if trained not in configs:
            yield f"{name}.trained_on: there is no data set {trained}; there are {', '.join(configs)}"
        elif trained != name and configs[name].get("models") and not is_trained(configs[trained]):
            yield f"{name}.trained_on: {trained} is not trained on itself, so there are no models"
        elif differing := [part for part in OF_A_RUN if configs[name].get(part) != configs[trained].get(part)]:
            yield f"{name}.trained_on: {', '.join(differing)} must be as in {trained}; make them common settings"
        elif _as_results(configs[name], "decode") != _as_results(configs[trained], "decode"):
            yield f"{name}.decode: must be as in {trained}, whose models are tested here; make it a common setting"


def _as_results(config: dict, section: str) -> object:
    """A section without what changes no result."""
    value = config.get(section)
    return without_neutral(section, value) if section in NEUTRAL and value else value


def _made_alike(entry: Mapping) -> dict:
    """What decides in which folder the features of an encoder are."""
    return without_neutral("weights", entry) | {"outputs": sorted(entry.get("outputs", []))}


def without_neutral(section: str, values: Mapping) -> dict:
    """The settings of a section that change results."""
    return {name: value for name, value in values.items() if name not in NEUTRAL[section]}


def check_config(config: object, source: str | Path = "configuration", sections: tuple[str, ...] = ()) -> dict:
    """One data set's configuration with its card, its protocol and defaults filled in.

    Raises AVQAError naming `source` and every wrong field.
    """
    if isinstance(config, dict):
        apply_card(config)
    if isinstance(config, dict) and isinstance(config.get("protocol"), str):
        _fill_below(config, read_protocols().get(config["protocol"], {}))
    if isinstance(config, dict) and isinstance(config.get("encoders"), dict):
        for name, entry in config["encoders"].items():  # the schema has the others' dtype
            if isinstance(entry, dict) and name in ENCODERS and ENCODERS[name].dtype != EncoderSpec.dtype:
                entry.setdefault("dtype", ENCODERS[name].dtype)
    errors = sorted(
        _Validator(_schema(config, sections)).iter_errors(config), key=lambda e: [*map(str, e.absolute_path)]
    )
    if errors:
        lines = [f"  {'.'.join(map(str, e.absolute_path)) or '(top level)'}: {_sentence(e)}" for e in errors]
        raise AVQAError(f"{source} does not fit config/schema.yaml:\n" + "\n".join(lines))
    config.setdefault("trained_on", [config["dataset"]] if "dataset" in config and config.get("models") else [])
    if lines := [f"  {line}" for line in _contradictions(config)]:
        raise AVQAError(f"{source}: settings that do not fit together:\n" + "\n".join(lines))
    return config


def read_protocols() -> dict[str, dict]:
    """Name of a published model's protocol -> the sections of a configuration that it stands for."""
    return yaml.safe_load(PROTOCOLS.read_text(encoding="utf-8"))


def _fill_below(settings: dict, defaults: dict) -> None:
    """Add what `settings` lacks, at every depth."""
    for name, value in defaults.items():
        if isinstance(value, dict) and isinstance(settings.setdefault(name, {}), dict):
            _fill_below(settings[name], value)
        else:
            settings.setdefault(name, value)


def _schema(config: object, sections: tuple[str, ...]) -> dict:
    """config/schema.yaml, and what follows from the registries of encoders, formats and models."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    if sections:
        schema["required"] = list(sections)
    models = config.get("models") if isinstance(config, dict) else None
    models = models if isinstance(models, dict) else {}
    properties = schema["properties"]
    properties["models"]["properties"] = {name: entry_schema(name, models[name]) for name in models}
    properties["format"]["enum"] = list(FORMATS)
    properties["protocol"]["enum"] = list(read_protocols())
    properties["encoders"]["propertyNames"] = properties["text"]["properties"]["encoder"] = {"enum": list(ENCODERS)}
    properties["text"]["properties"]["others"]["propertyNames"] = {"enum": list(ENCODERS)}
    return schema


def _sentence(error: jsonschema.ValidationError) -> str:
    """What is wrong; in place of a regular expression, the schema's words."""
    if error.validator == "pattern" and "description" in error.schema:
        return f"{error.instance!r} is not possible; expected: {error.schema['description']}"
    return error.message


def _contradictions(config: dict) -> Iterator[str]:
    """Mistakes that only a comparison of fields reveals; each line begins with the field."""
    encoders, models, videos = config.get("encoders", {}), config.get("models", {}), config.get("videos")
    kept = kept_features(config)
    if videos and videos["pattern"] is None:
        if "audio_pattern" not in videos:
            yield "videos.pattern: is null, so videos.audio_pattern must say where the audio files are"
        for name in encoders:
            if any(isinstance(item, FrameInput) for item in ENCODERS[name].inputs):
                yield f"encoders.{name}: reads frames, and videos.pattern: null says that there are audio files alone"
    for name, entry in encoders.items():
        for output in entry.get("outputs", ()):
            if output not in ENCODERS[name].outputs:
                yield f"encoders.{name}.outputs: has no {output}; it has {', '.join(ENCODERS[name].outputs)}"
    try:
        re.compile(config.get("video_ids", ""))
    except re.error as error:
        yield f"video_ids: {config['video_ids']!r} is no regular expression ({error})"
    texts = text_encoders(config)
    if (name := config.get("text", {}).get("encoder")) in config.get("text", {}).get("others", {}):
        yield f"text.others.{name}: is text.encoder too; give its settings in one place"
    for name in texts:
        if not ENCODERS[name].text_outputs:
            yield f"text: {name} reads no text; use one of {known_text_encoders()}"
    for name, entry in models.items():
        try:
            settings = entry_settings(entry)
        except ValueError as error:
            yield f"models.{name}: {error}"
            continue
        for feature in settings.features if encoders else ():
            if entry[feature] not in kept:
                known = ", ".join(kept)
                yield f"models.{name}.{feature}: {entry[feature]} is not kept by any encoder; these are: {known}"
        if stage := training(config, name)["pretrain"]:
            try:
                pretraining_entry(entry, stage)
            except ValueError as error:
                yield f"models.{name}: pretrain.settings: {error}"
        encoder = entry.get("text", next(iter(texts), None))
        if texts and encoder not in texts:
            yield f"models.{name}.text: {encoder} is not among the text encoders, {', '.join(texts)}; see text.others"
        elif texts:
            for lacking in (
                settings.texts.keys() - {*TOKENS, "length", "prompt"} - ENCODERS[encoder].text_outputs.keys()
            ):
                yield f"text: {encoder} gives no {lacking}, which models.{name} reads"
    annotations = config.get("annotations")
    if isinstance(annotations, str) and not Path(annotations).suffix:
        yield "annotations: is a folder, which needs a card that says what is in it; see manifests/ for the cards"
    lacking = [split for split in needed_splits(config) if split not in (annotations or ())]
    if lacking and isinstance(annotations, dict):
        yield f"annotations: {needs(config)}; {', '.join(lacking)} missing"


def is_trained(config: dict) -> bool:
    """Whether models are trained on the data set, and not only scored."""
    return config.get("dataset") in config.get("trained_on", [])


def needed_splits(config: dict) -> tuple[str, ...]:
    """The splits that a data set needs questions of: none where no model is trained or scored."""
    return SPLITS if is_trained(config) else ("test",) if config.get("trained_on") else ()


def needs(config: dict) -> str:
    """The same as a sentence."""
    *others, last = needed_splits(config)
    return f"training needs the splits {', '.join(others)} and {last}" if others else f"scoring needs the split {last}"


def reads_prompts(config: dict) -> bool:
    """Whether a model reads questions as statements, so that these have to be encoded as well."""
    return any("prompt" in entry_settings(entry).texts for entry in config.get("models", {}).values())


def text_encoders(config: dict) -> dict[str, dict]:
    """The settings of each text encoder by name, that of `text.encoder` first."""
    if "text" not in config:
        return {}
    own = {name: value for name, value in config["text"].items() if name not in ("encoder", "others")}
    return {config["text"]["encoder"]: own, **config["text"].get("others", {})}


def kept_features(config: dict) -> list[str]:
    """The features that models can read, encoder/output."""
    encoders = config.get("encoders", {}).items()
    return [
        f"{name}/{output}"
        for name, entry in encoders
        for output in entry.get("outputs", ENCODERS[name].default_outputs)
    ]


def training(config: dict, name: str) -> dict:
    """How a model is trained: the schedule, and under `pretrain` that of the training before it, or None.

    A value is the one that `models.<name>.train` has, else the section `train`, else the model's release, else what is
    usual. Of a pretraining, each of these has its `pretrain` first. A complete schedule stays as it is.
    """
    entry = config["models"][name]
    release = settings_class(entry["architecture"]).recipe
    layers = [_usual_schedule(), release, config.get("train", {}), entry.get("train", {})]
    stages = [layer["pretrain"] for layer in layers if "pretrain" in layer]
    schedule: dict = {}
    stage: dict = {}
    for layer in layers:
        own = {key: value for key, value in layer.items() if key not in (*OF_ALL_MODELS, "pretrain")}
        schedule |= own
        stage |= own | (layer.get("pretrain") or {})
    return schedule | {"pretrain": {"settings": {}, **stage} if stages and stages[-1] is not None else None}


def of_one_model(config: dict, name: str) -> dict:
    """The configuration of a run: one model, whose complete schedule is `train`. Raises AVQAError."""
    if name not in config["models"]:
        raise AVQAError(f"models: has no {name}; it has {', '.join(config['models'])}")
    entry = {key: value for key, value in config["models"][name].items() if key != "train"}
    common = {key: value for key, value in config["train"].items() if key in OF_ALL_MODELS}
    return config | {"models": {name: entry}, "train": common | training(config, name)}


def pretraining_entry(entry: dict, stage: dict) -> dict:
    """The entry of a model as its pretraining has it. Raises ValueError naming a wrong setting."""
    changed = entry | stage["settings"]
    entry_settings(changed)
    return changed


@cache
def _usual_schedule() -> dict:
    schedule = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))["$defs"]["schedule"]["properties"]
    return {name: value["usually"] for name, value in schedule.items()}


def dataset_dir(config: dict) -> Path:
    """Where questions, text features, the index, models and scores of the data set are."""
    return Path(config["results"]) / config["dataset"]


def data_dir(config: dict) -> Path:
    """Where features.h5 and the questions are that models read: a folder that never changes, `data`, or else what the
    data set's folder leads to."""
    return Path(config["data"]) if "data" in config else dataset_dir(config)


def collection_dir(config: dict) -> Path:
    """Where shards, segments and features of the data set's videos are; other data sets may share them."""
    return Path(config["results"]) / config["videos"]["collection"]


def scores_dir(config: dict, trained_on: str, model: str, seed: int | str) -> Path:
    """Where the scores on this data set of a model that was trained on `trained_on` are."""
    folder = dataset_dir(config)
    if trained_on != config["dataset"]:
        folder = folder / "trained_on" / trained_on
    return folder / "models" / model / f"seed-{seed}"


def annotation_files(config: dict) -> list[tuple[str | None, str | None, str]]:
    """Split, part of the split and path of each annotation file; the split is None where the file names splits."""
    annotations = config["annotations"]
    if isinstance(annotations, str):
        return [(None, None, annotations)]
    files = []
    for split, paths in annotations.items():
        parts = paths if isinstance(paths, dict) else {None: paths}
        files += [(split, part, path) for part, path in parts.items()]
    return files


def videos_fingerprint(videos: dict) -> str:
    """Changes when a file in the video folder appears, vanishes or is replaced: what makes the manifest due.

    Files in subfolders count where the pattern names subfolders. Raises FileNotFoundError if there is no such folder.
    """
    folder = videos["folder"]
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    deep = any("/" in (videos.get(name) or "") for name in ("pattern", "audio_pattern"))
    total = 0  # of all files' digests: independent of their order, so that a million need not be sorted
    for name, info in _files(folder, deep, videos["follow_links"]):
        line = f"{name[len(folder) :]}\0{info.st_size}\0{info.st_mtime_ns}".encode()
        total += int.from_bytes(hashlib.blake2b(line, digest_size=16).digest())
    return f"{total % 2**128:032x}"


def _files(folder: str, deep: bool, follow_links: bool) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=follow_links):
                    if deep:
                        yield from _files(entry.path, deep, follow_links)
                else:
                    yield entry.path, entry.stat()
            except OSError:
                continue  # a link that leads nowhere is a missing video


def weights_fingerprint(entry: dict) -> str:
    """Changes when the weights file of an encoder's entry is replaced: what makes its features due.

    Empty for a hub tag and for random weights. Raises OSError if the file cannot be found.
    """
    if not is_file(entry["weights"]):
        return ""
    info = os.stat(entry["weights"])
    return f"{info.st_size} bytes of {info.st_mtime_ns} ns"


def _fill_defaults(validator, properties: dict, instance: object, schema: dict) -> Iterator:
    """JSON Schema's `properties`, which also fills in defaults and turns texts into the numbers that they hold:
    Snakemake passes what is given with --config on as text."""
    if isinstance(instance, dict):
        for name, subschema in properties.items():
            if "default" in subschema:
                default = subschema["default"]
                instance.setdefault(name, default.copy() if isinstance(default, dict | list) else default)
            if isinstance(instance.get(name), str) and subschema.get("type") in ("integer", "number", "boolean"):
                instance[name] = _number(instance[name], subschema["type"])
    yield from jsonschema.Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


def _number(text: str, kind: str) -> object:
    """The number or truth value that a text holds; the text itself if it holds none of that kind."""
    try:
        value = json.loads(text.lower() if kind == "boolean" else text)
    except ValueError:
        return text
    return value if StrictValidator({"type": kind}).is_valid(value) else text


_Validator = jsonschema.validators.extend(StrictValidator, {"properties": _fill_defaults})
