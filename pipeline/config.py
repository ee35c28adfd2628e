"""Configuration: one YAML file a data set, checked against config/schema.yaml, defaults filled in from there."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import yaml

from pipeline.errors import AVQAError
from pipeline.models import entry_schema, entry_settings
from pipeline.models.settings import StrictValidator

SCHEMA = Path(__file__).parent.parent / "config" / "schema.yaml"


def load_config(path: str | Path) -> dict:
    """Read and check a configuration. Raises AVQAError naming the file and the field."""
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such configuration; the ones that come with the project are in config/") from None
    except yaml.YAMLError as error:
        raise AVQAError(f"{path}: not YAML: {error}") from error
    return check_config(config, path)


def check_config(config: object, source: str | Path = "configuration") -> dict:
    """The configuration with defaults filled in. Raises AVQAError naming `source` and every wrong field."""
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    models = config.get("models") if isinstance(config, dict) else None
    models = models if isinstance(models, dict) else {}
    schema["properties"]["models"]["properties"] = {name: entry_schema(name, models[name]) for name in models}
    errors = sorted(_Validator(schema).iter_errors(config), key=lambda e: list(map(str, e.absolute_path)))
    if errors:
        lines = [f"  {'.'.join(map(str, e.absolute_path)) or '(top level)'}: {e.message}" for e in errors]
        raise AVQAError(f"{source} does not fit config/schema.yaml:\n" + "\n".join(lines))
    for name, entry in models.items():
        try:
            entry_settings(entry)
        except ValueError as error:
            raise AVQAError(f"{source}: models.{name}: {error}") from None
    return config


def results_dir(config: dict) -> Path:
    """Where everything of the data set goes."""
    return Path(config["results"]) / config["dataset"]


def videos_fingerprint(videos: dict) -> str:
    """Changes when a file of the video folder appears, vanishes or is replaced: what makes the manifest due.

    Raises FileNotFoundError while the folder is not there.
    """
    with os.scandir(videos["folder"]) as entries:
        stats = sorted((e.name, (info := e.stat()).st_size, info.st_mtime_ns) for e in entries)
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _fill_defaults(validator, properties: dict, instance: object, schema: dict) -> Iterator:
    if isinstance(instance, dict):
        for name, subschema in properties.items():
            if "default" in subschema:
                default = subschema["default"]
                instance.setdefault(name, default.copy() if isinstance(default, dict | list) else default)
    yield from jsonschema.Draft202012Validator.VALIDATORS["properties"](validator, properties, instance, schema)


_Validator = jsonschema.validators.extend(StrictValidator, {"properties": _fill_defaults})
