"""AVAF-Net and MCD through the commands: from features on disk to scores, and a table of a paper in a reduced size."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from made_results import make_index
from test_learning import SECONDS, VIDEOS, config, folder, write_features  # noqa: F401

from pipeline.ablations import MANIFESTS
from pipeline.cli import main
from pipeline.config import check_config
from pipeline.evaluate import evaluate
from pipeline.models import MODELS
from pipeline.train import train

ENTRIES = {
    "avaf_net": {"patch": "resnet18/map", "width": 16, "heads": 2, "hidden": 16, "dropout": 0.0},
    "mcd": {"width": 16, "hidden": 16, "dropout": 0.0},
}


@pytest.fixture
def with_patches(config, folder):  # noqa: F811
    """The features of test_learning, a map of four patches per frame, and questions with keywords."""
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((VIDEOS, SECONDS, 4, 8)).astype("float16")
    maps[..., 0] = 3 * (2 * (np.arange(VIDEOS) % 2)[:, None, None] - 1)
    status = np.zeros(VIDEOS, int)
    status[3] = 1
    write_features(folder.parent / "c", "resnet18", "map", maps, status)
    (folder / "features.h5").unlink()
    make_index(folder, folder.parent / "c", ["clip_vit_b32", "vggish", "resnet18"], "clip_vit_b32")
    table = pd.read_parquet(folder / "questions.parquet")
    table["keywords"] = [["violin"] if n % 3 else [] for n in range(len(table))]
    table.to_parquet(folder / "questions.parquet", index=False)
    config["encoders"]["resnet18"] = {"weights": "random"}
    common = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls", "train": {"learning_rate": 0.01}}
    models = {name: common | entry for name, entry in ENTRIES.items()}
    schedule = {"epochs": 25, "batch_size": 8, "decay_every": 40, "threads": 1, "standardize": True}
    return check_config(config | {"models": models, "train": schedule})


@pytest.mark.parametrize("name", ENTRIES)
def test_features_on_disk_to_scores(with_patches, folder, name):  # noqa: F811
    assert name in MODELS
    train(with_patches, name, 0, folder / "x")
    assert evaluate(folder / "x")["overall"]["accuracy"] > 0.8
    losses = {"avaf_net": {"answer", "temporal", "spatial"},
              "mcd": {"answer", "question_audio", "question_visual", "audio_visual"}}  # fmt: skip
    assert losses[name] <= set(pd.read_csv(folder / "x" / "history.csv").columns)


@pytest.mark.parametrize(("name", "table"), [("avaf_net", "table_3"), ("mcd", "table_vii"), ("mcd", "table_ii")])
def test_a_table_of_the_paper(with_patches, folder, tmp_path, name, table):  # noqa: F811
    with_patches["models"][name]["train"]["epochs"] = 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(with_patches))
    grid = pd.read_csv(MANIFESTS / f"{name}_tables.csv").query("table == @table")
    for row in grid.to_dict("records"):
        out = folder / "rows" / str(row["row"]) / "seed-0"
        given = ["--config", str(tmp_path / "c.yaml"), "--model", name, "--settings", row["settings"]]
        assert main(["train", *given, "--out", str(out)]) == 0 and main(["evaluate", str(out)]) == 0
        changed = yaml.safe_load((out / "config.yaml").read_text())["config"]["models"][name]
        assert json.loads(row["settings"]).items() <= changed.items()
    with_patches["train"]["seeds"] = [0]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(with_patches))
    rows = json.dumps({row: str(folder / "rows" / str(row)) for row in grid["row"].tolist()})
    common = ["--config", str(tmp_path / "c.yaml"), "--model", name, "--table", table]
    assert main(["ablations", *common, "--rows", rows, "--out", str(tmp_path / "made.csv")]) == 0
    made = pd.read_csv(tmp_path / "made.csv")
    assert made["row"].tolist() == grid["label"].tolist() and made["avg"].between(0, 100).all()
    np.testing.assert_array_equal(made["avg_paper"], grid["avg"])
