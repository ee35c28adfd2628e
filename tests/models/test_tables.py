"""The grids of the papers' tables: what a row changes can be built, and the figures are the papers'."""

import json

import pandas as pd
import pytest

from pipeline.ablations import GRID_COLUMNS, MANIFESTS
from pipeline.models import MODELS, model_class, settings_class

GRIDS = sorted(MANIFESTS.glob("*_tables.csv"))
SMALL = {"av_master": {"width": 16, "focus_width": 8, "heads": 2}, "avaf_net": {"width": 8, "hidden": 8}}
QUESTIONS = {"a_qa": 1611, "v_qa": 2422, "av_qa": 5096}  # of MUSIC-AVQA's test split


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_row_of_every_table_builds_a_model(path):
    grid = pd.read_csv(path)
    assert grid.columns.tolist()[: len(GRID_COLUMNS)] == GRID_COLUMNS
    (architecture,) = grid["model"].unique()
    assert architecture in MODELS and path.stem == f"{architecture}_tables"
    entry = {"seconds", "train", *settings_class(architecture).features}
    for _, table in grid.groupby("table"):
        assert table["row"].tolist() == list(range(1, len(table) + 1)) and table["label"].is_unique
    for text in grid["settings"]:
        settings = {name: value for name, value in json.loads(text).items() if name not in entry}
        small = SMALL.get(architecture, {"width": 8})
        model_class(architecture).in_paper_setting(None, 5, **small | settings)


@pytest.mark.parametrize("name", ["avaf_net", "mcd"])
def test_a_row_changes_something_once(name):
    """No two rows of a table are the same model, and no setting of a row is the default."""
    defaults = {key: value["default"] for key, value in settings_class(name).schema().items()}
    grid = pd.read_csv(MANIFESTS / f"{name}_tables.csv")
    for _, table in grid.groupby("table"):
        assert table["settings"].is_unique
    for text in grid["settings"]:
        for key, value in json.loads(text).items():
            assert value != defaults.get(key) or key == "inputs"


def published(name, table, row):
    grid = pd.read_csv(MANIFESTS / f"{name}_tables.csv").query("table == @table and row == @row")
    return json.loads(grid["settings"].item()), grid[["a_qa", "v_qa", "av_qa", "avg"]].iloc[0].tolist()


def test_figures_of_avaf_net():
    """Read off the paper: Table 1, and rows of Tables 3 to 5."""
    assert published("avaf_net", "table_1", 1) == ({}, [80.70, 82.93, 73.78, 77.45])
    assert published("avaf_net", "table_3", 2) == ({"alpha": 0}, [78.27, 82.20, 71.17, 75.35])
    assert published("avaf_net", "table_3", 7) == ({}, [78.15, 82.37, 72.12, 75.90])
    assert published("avaf_net", "table_4", 4) == ({"threshold": 0.021}, [77.59, 82.82, 71.88, 75.79])
    assert published("avaf_net", "table_5", 1) == ({"beta": 0.1}, [78.27, 82.54, 71.74, 75.76])
    without_sacl, threshold_0 = published("avaf_net", "table_3", 4), published("avaf_net", "table_4", 1)
    assert without_sacl[1] == threshold_0[1] and without_sacl[0] == {"beta": 0}


def test_averages_of_avaf_net_are_those_of_its_categories():
    """A check of the typing: the paper's rows but four have the mean of their categories, by number of questions."""
    grid = pd.read_csv(MANIFESTS / "avaf_net_tables.csv").query("table != 'table_1'")
    mean = sum(grid[name] * count for name, count in QUESTIONS.items()) / sum(QUESTIONS.values())
    apart = grid[(mean - grid["avg"]).abs() > 0.011]
    assert apart["label"].tolist() == ["w/o QOAF: δ = 1", "w/o QOAF: no Eqs. 10 to 12", "β = 0.7", "β = 0.8"]


def test_figures_of_mcd():
    """Read off the paper: one row of each table."""
    assert published("mcd", "table_ii", 5)[1][3] == 68.31
    assert published("mcd", "table_iv", 1) == ({"visual": "resnet18/pooled"}, [76.41, 79.73, 71.66, 74.64])
    assert published("mcd", "table_vi", 4)[1][:3] == [76.84, 81.12, 74.98]
    assert published("mcd", "table_vii", 5)[1][3] == 69.12
    assert published("mcd", "table_viii", 3)[0] == {"blocks": 3} and published("mcd", "table_viii", 3)[1][3] == 75.98
    assert published("mcd", "table_ix", 1) == ({"elements": ["audio", "text"]}, [76.05, 79.92, 72.62, 72.22])
    assert published("mcd", "table_x", 2) == ({"question_audio_weight": 0}, [74.45, 81.05, 74.07, 74.52])
    grid = pd.read_csv(MANIFESTS / "mcd_tables.csv")
    assert grid["avqa"].dropna().tolist() == [89.5, 90.8, 90.14, 90.32, 90.20, 90.78]
    resnet = grid[grid["label"] == "ResNet-18"].iloc[0]  # the one row of the paper whose average fits its categories
    mean = sum(resnet[name] * count for name, count in QUESTIONS.items()) / sum(QUESTIONS.values())
    assert mean == pytest.approx(resnet["avg"], abs=0.011)
