"""The contract of models: settings give the configuration's schema, and every model trains on batches of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
import yaml
from models.building import filled_batch

from pipeline.config import check_config
from pipeline.errors import AVQAError
from pipeline.models import MODELS, complexity, model_class, settings_class
from pipeline.models.base import example_batch
from pipeline.models.settings import ModelSettings, setting

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Example(ModelSettings):
    features: ClassVar = {"audio": (2, 3)}
    texts: ClassVar = {}

    layers: int = setting(2, "How many", minimum=1)
    rate: float = setting(0.5, "How much", exclusiveMaximum=1)
    wide: bool = setting(False, "Whether")
    kind: Literal["a", "b"] = setting("a", "Which")
    parts: tuple[Literal["x", "y"], ...] = setting(("x",), "Which of them", minItems=1)


def test_a_schema_follows_from_the_settings():
    assert Example.schema() == {
        "layers": {"type": "integer", "description": "How many", "minimum": 1, "default": 2},
        "rate": {"type": "number", "description": "How much", "exclusiveMaximum": 1, "default": 0.5},
        "wide": {"type": "boolean", "description": "Whether", "default": False},
        "kind": {"enum": ["a", "b"], "description": "Which", "default": "a"},
        "parts": {
            "type": "array",
            "uniqueItems": True,
            "items": {"enum": ["x", "y"]},
            "description": "Which of them",
            "minItems": 1,
            "default": ["x"],
        },
    }


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 0}, {"layers": 2.0}, {"layers": True}, {"rate": float("nan")}, {"rate": "0.1"}, {"wide": 1},
     {"kind": "c"}, {"parts": []}, {"parts": ["z"]}, {"parts": "x"}, {"layer": 1}],
)  # fmt: skip
def test_a_wrong_setting_is_named(wrong):
    assert Example.from_dict({"layers": 3, "parts": ["y"]}) == Example(layers=3, parts=("y",))
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "):
        Example.from_dict(wrong)


def configuration(models):
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    own = config.pop("datasets")["demo"]
    return config | own | {"dataset": "demo", "models": models}


FEATURES = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}


def test_an_entry_gets_its_architecture_and_its_models_defaults():
    models = {"pooled": dict(FEATURES), "mine": FEATURES | {"architecture": "av_master", "width": 32, "seconds": 5}}
    filled = check_config(configuration(models))["models"]
    assert filled["pooled"]["architecture"] == "pooled" and filled["pooled"]["width"] == 512
    assert filled["mine"]["heads"] == 8 and filled["mine"]["width"] == 32 and filled["mine"]["seconds"] == 5


@pytest.mark.parametrize(
    ("models", "named"),
    [
        ({"mine": FEATURES}, "models.mine: 'architecture' is a required property"),
        ({"mine": FEATURES | {"architecture": "av_slave"}}, "models.mine.architecture"),
        ({"mine": FEATURES | {"architecture": ["pooled"]}}, "models.mine.architecture"),
        ({"pooled": FEATURES | {"focus_width": 3}}, "models.pooled: .*'focus_width' was unexpected"),
        ({"pooled": {"audio": "vggish/embedding"}}, "models.pooled: 'visual' is a required property"),
        ({"pooled": FEATURES | {"visual": "clip"}}, "models.pooled.visual"),
        ({"pooled": FEATURES | {"width": 8.0}}, "models.pooled.width"),
        ({"pooled": FEATURES | {"seconds": 0}}, "models.pooled.seconds"),
        ({"pooled": 3}, "models.pooled: 3 is not of type 'object'"),
        ({"av_master": FEATURES | {"heads": 5}}, "models.av_master: heads: 5 does not divide"),
        ({}, "models: "),
        ([], "models: "),
    ],
)
def test_mistakes_in_models_are_named(models, named):
    with pytest.raises(AVQAError, match=named):
        check_config(configuration(models))


def test_a_configuration_is_checked_without_pytorch():
    code = "import sys; from pipeline.config import load_config; load_config('config/music_avqa.yaml')"
    subprocess.run([sys.executable, "-c", code + "; assert 'torch' not in sys.modules"], check=True, cwd=ROOT)


SMALL = {
    "av_master": {"width": 8, "heads": 2, "focus_width": 4},
    "pstp_net": {"width": 8, "segments": 3, "top_k": 2},
    "avst": {},
    "tspm": {"width": 8, "top_k": 2},
}


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_the_contract(name):
    """What a new model must pass: all batch forms, finite loss, gradients everywhere but where something is chosen by
    rank (in parts named select…), scores that match."""
    torch.manual_seed(0)
    model = model_class(name).in_paper_setting(3, 5, **SMALL.get(name, {"width": 8}))
    assert isinstance(model.settings, settings_class(name))
    batch = filled_batch(model, 4)
    if model.needs_negatives:
        batch.negatives = {key: torch.randn_like(x) for key, x in batch.features.items()}
    output = model(batch)
    total, parts = model.loss(output, batch)
    assert total.isfinite() and all(part.isfinite() for part in parts.values())
    total.backward()
    for place, p in model.named_parameters():
        assert place.startswith("select") or (p.grad is not None and p.grad.isfinite().all()), place
    assert model.scores(output).shape == (4, 5)
    model.eval()
    batch.negatives = None
    with torch.no_grad():
        expected = model.scores(model(batch))
        batch.features, batch.videos = {k: x[[2, 0]] for k, x in batch.features.items()}, torch.tensor([1, 1, 0, 0])
        shared = model.scores(model(batch))
    torch.testing.assert_close(shared[[0, 2]], expected[[0, 2]])
    assert complexity.as_text(model).splitlines()
    assert json.loads(json.dumps(settings_class(name).schema())) == settings_class(name).schema()


@pytest.mark.parametrize("name", ["av_master", "pstp_net", "avst", "tspm", "qa_tiger"])
def test_released_weights_without_use_are_in_the_models_type(name):
    model = model_class(name).in_paper_setting(3, 5, **SMALL.get(name, {"width": 8})).double()
    assert {tensor.dtype for tensor in model.released_state_dict().values()} == {torch.float64}


def test_what_a_model_does_not_offer_is_a_clear_error():
    model = model_class("pooled").in_paper_setting()
    for ask in (lambda: model.scores_by_second(example_batch(model)), model.released_state_dict,
                lambda: model.load_released({})):  # fmt: skip
        with pytest.raises(AVQAError, match="Pooled does not offer"):
            ask()


def test_pooled_is_its_formula():
    torch.manual_seed(0)
    model = model_class("pooled").in_paper_setting(3, 5, width=4).eval()
    batch = example_batch(model, 2)
    audio, visual, sentence = torch.randn(2, 3, 128), torch.randn(2, 3, 768), torch.randn(2, 768)
    batch.features, batch.texts = {"audio": audio, "visual": visual}, {"sentence": sentence}
    x = torch.cat([audio.sum(1) / 3, visual.sum(1) / 3, sentence], 1)
    hidden = (x @ model.hidden.weight.T + model.hidden.bias).clamp(min=0)
    torch.testing.assert_close(model(batch), hidden @ model.answers.weight.T + model.answers.bias)
