"""The demo's data as a test of models: each must use what is seen and heard, not only the questions."""

import json
import subprocess

import pytest
import yaml
from test_workflow import ROOT, command

MARGIN = 0.10  # above the model that reads questions only, in accuracy
PATCHES = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls", "patch": "clip_vit_b32/patch"}
MODELS = {
    "tspm": PATCHES | {"width": 64, "top_k": 2},
    "qa_tiger": PATCHES | {"width": 64, "heads": 4, "experts": 3, "top_k": 2},
    "avst": {"audio": "vggish/embedding", "map": "resnet18/map", "every": 1, "train": {"epochs": 5, "pretrain": None}},
}


@pytest.mark.slow
def test_models_that_the_demo_leaves_out_use_audio_and_video(tmp_path):
    """Those of the demo itself have the same margin: `make demo` shows it."""
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["datasets"].pop("demo_r")
    config["encoders"]["resnet18"] = {"weights": "random", "outputs": ["map"]}
    config["models"] = MODELS | {"question_only": config["models"]["question_only"]}
    config["train"]["seeds"] = [0, 1]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    subprocess.run(command(tmp_path, config="config.yaml"), cwd=tmp_path, check=True)
    means = {}
    for name in config["models"]:
        scores = (tmp_path / "results/demo/models" / name).glob("seed-*/scores.json")
        accuracies = [json.loads(path.read_text())["overall"]["accuracy"] for path in scores]
        assert len(accuracies) == 2
        means[name] = sum(accuracies) / 2
    for name in MODELS:
        assert means[name] > means["question_only"] + MARGIN, means
