"""Configuration: one YAML file per data set, checked against config/schema.yaml, defaults filled in from there."""

import hashlib
import json
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jsonschema
import yaml

from extractors import ENCODERS
from pipeline.data.formats import FORMATS
from pipeline.errors import AVQAError
from pipeline.models import entry_schema, entry_settings, settings_class
from pipeline.models.settings import TOKENS, StrictValidator

ROOT = Path(__file__).parent.parent  # of the repository, or site-packages: config/ and manifests/ lie beside pipeline/
OF_ALL_MODELS = ("seeds", "threads", "workers")  # in `train`: what no run with a given seed depends on
SCHEMA = ROOT / "config" / "schema.yaml"


def load_config(source: str | Path, *sections: str) -> dict:
    """Read and check a configuration; `source` is a file, or the JSON text of the sections that a rule passes on.

    Only the given sections must be there (default: all that the schema requires). Raises AVQAError naming the file and
    the field.
    """
    if str(source).startswith("{"):
        return check_config(json.loads(str(source)), "--config", sections)
    try:
        config = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AVQAError(
            f"{source}: no such configuration; the ones that come with the project are in config/"
        ) from None
    except IsADirectoryError:
        raise AVQAError(f"{source}: is a folder; give the configuration file in it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise AVQAError(f"{source}: not YAML: {error}") from error
    return check_config(config, source, sections)


def check_config(config: object, source: str | Path = "configuration", sections: tuple[str, ...] = ()) -> dict:
    """The configuration with defaults filled in. Raises AVQAError naming `source` and every wrong field."""
    errors = sorted(
        _Validator(_schema(config, sections)).iter_errors(config), key=lambda e: [*map(str, e.absolute_path)]
    )
    if errors:
        lines = [f"  {'.'.join(map(str, e.absolute_path)) or '(top level)'}: {e.message}" for e in errors]
        raise AVQAError(f"{source} does not fit config/schema.yaml:\n" + "\n".join(lines))
    if lines := [f"  {line}" for line in _contradictions(config)]:
        raise AVQAError(f"{source}: settings that do not fit together:\n" + "\n".join(lines))
    return config


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
    properties["encoders"]["propertyNames"] = properties["text"]["properties"]["encoder"] = {"enum": list(ENCODERS)}
    properties["text"]["properties"]["others"]["propertyNames"] = {"enum": list(ENCODERS)}
    return schema


def _contradictions(config: dict) -> Iterator[str]:
    """Mistakes that no single field shows; each line begins with the field."""
    encoders, models, kept = config.get("encoders", {}), config.get("models", {}), kept_features(config)
    for name, entry in encoders.items():
        for output in entry.get("outputs", ()):
            if output not in ENCODERS[name].outputs:
                yield f"encoders.{name}.outputs: has no {output}; it has {', '.join(ENCODERS[name].outputs)}"
    texts = text_encoders(config)
    for name in texts:
        if not ENCODERS[name].text_outputs:
            yield f"text: {name} reads no text; use one of the CLIP encoders"
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
            for lacking in settings.texts.keys() - ENCODERS[encoder].text_outputs.keys() - set(TOKENS):
                yield f"text: {encoder} gives no {lacking}, which models.{name} reads"
    if models and config.get("annotations") and (lacking := {"train", "val", "test"} - config["annotations"].keys()):
        yield f"annotations: training needs the splits train, val and test; {', '.join(sorted(lacking))} missing"


def text_encoders(config: dict) -> dict[str, dict]:
    """The settings of each text encoder by name, that of `text.encoder` first."""
    if "text" not in config:
        return {}
    own = {name: value for name, value in config["text"].items() if name not in ("encoder", "others")}
    return {config["text"]["encoder"]: own, **config["text"].get("others", {})}


def kept_features(config: dict) -> list[str]:
    """The features that models can read, encoder/output."""
    encoders = config.get("encoders", {}).items()
    return [f"{name}/{output}" for name, entry in encoders for output in entry.get("outputs", ENCODERS[name].outputs)]


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


def collection_dir(config: dict) -> Path:
    """Where shards, segments and features of the data set's videos are; other data sets may share them."""
    return Path(config["results"]) / config["videos"]["collection"]


def videos_fingerprint(videos: dict) -> str:
    """Changes when a file in the video folder appears, vanishes or is replaced: what makes the manifest due.

    Files in subfolders count where the pattern names subfolders. Raises FileNotFoundError if there is no such folder.
    """
    folder = Path(videos["folder"])
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    stats = []
    for parent, subfolders, names in os.walk(folder, followlinks=videos["follow_links"]):
        if "/" not in videos["pattern"]:
            subfolders.clear()
        for path in (os.path.join(parent, name) for name in names):
            try:
                info = os.stat(path)
            except OSError:
                continue  # a link that leads nowhere is a missing video
            stats.append((os.path.relpath(path, folder), info.st_size, info.st_mtime_ns))
    return hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()


def _fill_defaults(validator, properties: dict, instance: object, schema: dict) -> Iterator:
    if isinstance(instance, dict):
        for name, subschema in properties.items():
            if "default" in subschema:
                default = subschema["default"]
                instance.setdefault(name, default.copy() if isinstance(default, dict | list) else default)
    yield from jsonschema.Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


_Validator = jsonschema.validators.extend(StrictValidator, {"properties": _fill_defaults})
