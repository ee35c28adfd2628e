"""Models: features and questions in, scores of the answers out. One file or folder per model, and a row here.

A model is its settings (a ModelSettings) and an AVQAModel. The configuration's schema, training, evaluation, the report
and the command line follow from these.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from pipeline.models.settings import TOKENS, ModelSettings

if TYPE_CHECKING:
    from pipeline.models.base import AVQAModel

# Name: where the settings are and where the model is. Settings in a file without PyTorch save the seconds that its
# import takes whenever a configuration is checked.
MODELS = {
    "av_master": ("pipeline.models.av_master.config:AVMasterSettings", "pipeline.models.av_master.model:AVMaster"),
    "pstp_net": ("pipeline.models.pstp_net.config:PSTPNetSettings", "pipeline.models.pstp_net.model:PSTPNet"),
    "avaf_net": ("pipeline.models.avaf_net.config:AVAFNetSettings", "pipeline.models.avaf_net.model:AVAFNet"),
    "mcd": ("pipeline.models.mcd.config:MCDSettings", "pipeline.models.mcd.model:MCD"),
    "avst": ("pipeline.models.avst.config:AVSTSettings", "pipeline.models.avst.model:AVST"),
    "tspm": ("pipeline.models.tspm.config:TSPMSettings", "pipeline.models.tspm.model:TSPM"),
    "qa_tiger": ("pipeline.models.qa_tiger.config:QATigerSettings", "pipeline.models.qa_tiger.model:QATiger"),
    "pooled": ("pipeline.models.pooled.config:PooledSettings", "pipeline.models.pooled.model:Pooled"),
}

ENTRY = (
    "architecture",
    "seconds",
    "text",
    "train",
)  # what an entry of `models` has besides features and the model's settings


def settings_class(name: str) -> type[ModelSettings]:
    """The settings of a registered model."""
    return _load(MODELS[name][0])


def model_class(name: str) -> "type[AVQAModel]":
    """A registered model."""
    return _load(MODELS[name][1])


def entry_schema(name: str, entry: object) -> dict:
    """The JSON schema of `models.<name>` in a configuration: `architecture` (the name itself where that is a model),
    the features to read, `seconds`, `text`, `train`, and the model's settings."""
    architecture = entry.get("architecture", name) if isinstance(entry, dict) else name
    properties: dict[str, dict] = {"architecture": {"description": "Which model it is", "enum": list(MODELS)}}
    schema = {"type": "object", "properties": properties, "required": []}
    if name in MODELS:
        properties["architecture"]["default"] = name
    else:
        schema["required"].append("architecture")
    if not isinstance(architecture, str) or architecture not in MODELS:
        return schema
    settings = settings_class(architecture)
    for feature in settings.features:
        properties[feature] = {
            "description": f"Which {feature} features it reads: encoder/output",
            "type": "string",
            "pattern": "^[^/]+/[^/]+$",
        }
        schema["required"].append(feature)
    properties["seconds"] = {
        "description": "How many seconds of a video it reads, from the first (default: all)",
        "type": "integer",
        "minimum": 1,
    }
    if any(name not in TOKENS for name in settings.texts):
        properties["text"] = {
            "description": "Which of the text encoders it reads (default: text.encoder)",
            "type": "string",
        }
    properties["train"] = {
        "description": "How it is trained, where this differs from the section `train`",
        "unevaluatedProperties": False,
        "$ref": "#/$defs/training",
    }
    return schema | {"properties": properties | settings.schema(), "additionalProperties": False}


def entry_settings(entry: dict) -> ModelSettings:
    """The settings in an entry of `models`. Raises ValueError naming a wrong one."""
    settings = settings_class(entry["architecture"])
    other = {*ENTRY, *settings.features}
    return settings.from_dict({name: value for name, value in entry.items() if name not in other})


def _load(place: str):
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
