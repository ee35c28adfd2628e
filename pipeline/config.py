"""Configuration: one YAML file per data set, checked against config/schema.yaml, defaults filled in from there."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from extractors import ENCODERS, FrameInput, is_file
from pipeline.data.formats import FORMATS
from pipeline.errors import AVQAError
from pipeline.models import entry_schema, entry_settings
from pipeline.models.settings import StrictValidator

ROOT = Path(__file__).parent.parent  # of the repository, or site-packages: config/ and manifests/ lie beside pipeline/
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
        lines = [f"  {'.'.join(map(str, e.absolute_path)) or '(top level)'}: {_sentence(e)}" for e in errors]
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
    return schema


def _sentence(error: jsonschema.ValidationError) -> str:
    """What is wrong; in place of a regular expression, the schema's words."""
    if error.validator == "pattern" and "description" in error.schema:
        return f"{error.instance!r} is not possible; expected: {error.schema['description']}"
    return error.message


def _contradictions(config: dict) -> Iterator[str]:
    """Mistakes that only a comparison of fields reveals; each line begins with the field."""
    encoders, models, videos = config.get("encoders", {}), config.get("models", {}), config.get("videos")
    if videos and videos["pattern"] is None:
        if "audio_pattern" not in videos:
            yield "videos.pattern: is null, so videos.audio_pattern must say where the audio files are"
        for name in encoders:
            if any(isinstance(item, FrameInput) for item in ENCODERS[name].inputs):
                yield f"encoders.{name}: reads frames, and videos.pattern: null says that there are audio files alone"
    kept = {name: entry.get("outputs", list(ENCODERS[name].outputs)) for name, entry in encoders.items()}
    for name, outputs in kept.items():
        for output in outputs:
            if output not in ENCODERS[name].outputs:
                yield f"encoders.{name}.outputs: has no {output}; it has {', '.join(ENCODERS[name].outputs)}"
    text = config.get("text")
    texts = ENCODERS[text["encoder"]].text_outputs if text else {}
    if text and not texts:
        yield f"text.encoder: {text['encoder']} reads no text; use one of the CLIP encoders"
    for name, entry in models.items():
        try:
            settings = entry_settings(entry)
        except ValueError as error:
            yield f"models.{name}: {error}"
            continue
        for feature in settings.features if encoders else ():
            encoder, output = entry[feature].split("/")
            if output not in kept.get(encoder, ()):
                known = ", ".join(f"{e}/{o}" for e, outputs in kept.items() for o in outputs)
                yield f"models.{name}.{feature}: {entry[feature]} is not kept by any encoder; these are: {known}"
        for lacking in settings.texts.keys() - texts.keys() if text else ():
            yield f"text.encoder: gives no {lacking}, which models.{name} reads"
    if models and config.get("annotations") and (lacking := {"train", "val", "test"} - config["annotations"].keys()):
        yield f"annotations: training needs the splits train, val and test; {', '.join(sorted(lacking))} missing"


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
        if not any("/" in (videos.get(name) or "") for name in ("pattern", "audio_pattern")):
            subfolders.clear()
        for path in (os.path.join(parent, name) for name in names):
            try:
                info = os.stat(path)
            except OSError:
                continue  # a link that leads nowhere is a missing video
            stats.append((os.path.relpath(path, folder), info.st_size, info.st_mtime_ns))
    return hashlib.sha256(repr(sorted(stats)).encode()).hexdigest()


def weights_fingerprint(entry: dict) -> str:
    """Changes when the weights file of an encoder's entry is replaced: what makes its features due.

    Empty for a hub tag and for random weights. Raises OSError if the file cannot be found.
    """
    if not is_file(entry["weights"]):
        return ""
    info = os.stat(entry["weights"])
    return f"{info.st_size} bytes of {info.st_mtime_ns} ns"


def _fill_defaults(validator, properties: dict, instance: object, schema: dict) -> Iterator:
    if isinstance(instance, dict):
        for name, subschema in properties.items():
            if "default" in subschema:
                default = subschema["default"]
                instance.setdefault(name, default.copy() if isinstance(default, dict | list) else default)
    yield from jsonschema.Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


_Validator = jsonschema.validators.extend(StrictValidator, {"properties": _fill_defaults})
