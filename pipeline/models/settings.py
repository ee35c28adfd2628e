"""The settings of a model: a dataclass, from which its part of the configuration's schema follows.

Nothing here imports PyTorch, so that a configuration is checked without waiting for it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import jsonschema

# JSON Schema takes 16.0 for an integer and .nan for a number.
StrictValidator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            "integer": lambda _, value: type(value) is int,
            "number": lambda _, value: type(value) in (int, float) and math.isfinite(value),
        }
    ),
)
# Texts of a model that are no outputs of a text encoder but word numbers, int64 (L,), padded with 0; see
# pipeline/data/vocabulary.py.
TOKENS = ("tokens", "keywords", "type")
TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A field of ModelSettings; `limits` are JSON Schema's: minimum, exclusiveMinimum, exclusiveMaximum, …"""
    return dataclasses.field(default=default, metadata={"description": description, **limits})


@dataclass
class ModelSettings:
    """A model's settings with their defaults. Raises ValueError naming the first field with a wrong value.

    `features` names what the model reads from videos, and `texts` what it reads from questions: outputs of the text
    encoder (words, sentence) and TOKENS, each with the shape of one sample in the paper's setting. `recipe` is how its
    authors trained it: values of the configuration's `train` section that differ from the schema's defaults.
    `training_mb` is the memory that training takes per second of video in a batch, in MB, with the paper's sizes
    (bench/training_memory.py); a job on a cluster requests it."""

    features: ClassVar[dict[str, tuple[int, ...]]]
    texts: ClassVar[dict[str, tuple[int, ...]]]
    recipe: ClassVar[dict[str, Any]] = {}
    training_mb: ClassVar[float] = 3.5

    def reads(self) -> dict[str, slice]:
        """Which seconds of a feature the model uses, by the feature's name; a feature that is not here is used whole.
        The others are not read, so that the model is given (and built for) fewer seconds. With `seconds` in the
        configuration, the slice is of these first seconds."""
        return {}

    def __post_init__(self):
        properties = self.schema()
        for name, value in dataclasses.asdict(self).items():
            value = list(value) if isinstance(value, tuple) else value
            for error in StrictValidator(properties[name]).iter_errors(value):
                raise ValueError(f"{name}: {error.message}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSettings:
        """Settings as a configuration has them: lists in place of tuples. Raises ValueError."""
        unknown = values.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"{min(unknown)}: no such setting")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})

    @classmethod
    def schema(cls) -> dict[str, dict]:
        """The JSON schema of each field."""
        types = get_type_hints(cls)
        return {field.name: _field_schema(field, types[field.name]) for field in dataclasses.fields(cls)}


def _field_schema(field: dataclasses.Field, kind: Any) -> dict:
    default = list(field.default) if isinstance(field.default, tuple) else field.default
    return {**_type_schema(kind), **field.metadata, "default": default}


def _type_schema(kind: Any) -> dict:
    """The schema of int, float, bool, str, a Literal, or a tuple[item, ...]."""
    if kind in TYPES:
        return {"type": TYPES[kind]}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is tuple and get_args(kind)[1:] == (...,):
        return {"type": "array", "uniqueItems": True, "items": _type_schema(get_args(kind)[0])}
    raise TypeError(f"no JSON schema for a setting of type {kind}")
