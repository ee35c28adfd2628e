"""The published results against values read by eye from the papers, and `avqa results`."""

import json

import pandas as pd
import pytest
import yaml

from pipeline.ablations import MANIFESTS
from pipeline.cli import main
from pipeline.results import COLUMNS, published, short_name, wide

A, V, AV = "Audio", "Visual", "Audio-Visual"
ON_BIASED, ON_BALANCED = "tested on biased", "tested on balanced"
# source, method, data set, setting, encoder, column, value; None: whatever it is
BY_EYE = [
    ("AV-Master, Table II", "AV-Master", "MUSIC-AVQA", None, None, f"{A}/Counting", 87.02),
    ("AV-Master, Table II", "AV-Master", "MUSIC-AVQA", None, None, f"{AV}/Temporal", 70.80),
    ("AV-Master, Table II", "AV-Master", "MUSIC-AVQA", None, None, "overall", 78.51),
    ("AV-Master, Table II", "MCAN", "MUSIC-AVQA", None, None, f"{AV}/Temporal", 47.57),
    ("AV-Master, Table II", "HCRN", "MUSIC-AVQA", None, None, f"{AV}/Existential", 54.47),
    ("AV-Master, Table II", "LAVISH", "MUSIC-AVQA", None, None, f"{A}/Counting", 82.09),
    ("AV-Master, Table II", "PSOT", "MUSIC-AVQA", None, None, V, 80.07),
    ("AV-Master, Table II", "CoQo", "MUSIC-AVQA", None, None, "overall", 77.40),
    ("AV-Master, Table II", "QA-TIGER", "MUSIC-AVQA", None, None, f"{AV}/Counting", 78.58),
    ("AV-Master, Table II", "SHMamba", "MUSIC-AVQA", None, None, f"{AV}/Comparative", 61.31),
    ("AV-Master, Table II", "TSPM", "MUSIC-AVQA", None, None, f"{AV}/Location", 71.85),
    ("AV-Master, Table III", "HCAttn", "MUSIC-AVQA-R", None, None, f"{V}/Counting (tail)", 9.20),
    ("AV-Master, Table III", "AV-Master", "MUSIC-AVQA-R", None, None, f"{AV}/Location (tail)", 77.41),
    ("AV-Master, Table III", "AV-Master", "MUSIC-AVQA-R", None, None, "overall", 71.19),
    ("AV-Master, Table III", "QA-TIGER", "MUSIC-AVQA-R", None, None, f"{A}/Comparative (tail)", 43.11),
    ("AV-Master, Table III", "FCNLSTM", "MUSIC-AVQA-R", None, None, f"{AV}/Temporal (head)", 37.02),
    ("AV-Master, Table III", "LAVISH", "MUSIC-AVQA-R", None, None, "overall", 57.63),
    ("AV-Master, Table IV", "LAST-Att", "MUSIC-AVQA-v2.0", f"trained on balanced, {ON_BIASED}", None, V, 83.47),
    ("AV-Master, Table IV", "ST-AVQA", "MUSIC-AVQA-v2.0", f"trained on biased, {ON_BIASED}", None, "overall", 73.07),
    ("AV-Master, Table IV", "AV-Master", "MUSIC-AVQA-v2.0", f"trained on biased, {ON_BALANCED}", None, AV, 69.11),
    ("AV-Master, Table IV", "QA-TIGER", "MUSIC-AVQA-v2.0", f"trained on balanced, {ON_BALANCED}", None, A, 79.90),
    ("AV-Master, Table V", "AV-Master", "AVQA", "", None, "overall", 91.4),
    ("AV-Master, Table V", "HCRN", "AVQA", "ensemble HAVF", None, "overall", 89.0),
    ("AV-Master, Table VI", "VAST", "MUSIC-AVQA", "trained", "EVACLIP + BEATs", "overall", 80.7),
    ("AV-Master, Table VI", "CAT+", "MUSIC-AVQA", "zero-shot", None, "overall", 50.1),
    ("AV-Master, Table VI", "VALOR", "MUSIC-AVQA", "trained", None, "parameters (M)", 593),
    ("AV-Master, Table VI", "OneLLM", "MUSIC-AVQA", "zero-shot", None, "pretraining samples (M)", 1008.5),
    ("AV-Master, Table VII", "QA-TIGER", "MUSIC-AVQA", None, None, "latency (ms)", 63.28),
    ("AV-Master, Table XII", "CoQo", "MUSIC-AVQA", None, "InternVideo2 + InternVideo2", V, 87.90),
    ("AV-Master, Table XII", "AV-Master", "MUSIC-AVQA", None, "CLIP + CLAP", "overall", 79.34),
    ("AV-Master, Table XII", "AV-Master", "MUSIC-AVQA", None, "ResNet-18 + VGGish", A, 78.21),
    ("AV-Master, Table XII", "AV-Master", "MUSIC-AVQA", "first CLIP group", "CLIP + VGGish", V, 82.25),
    ("AVAF-Net, Table 1", "QAGL", "MUSIC-AVQA-Real", None, None, f"{A}/Counting", 84.75),
    ("AVAF-Net, Table 1", "AVAF-Net", "MUSIC-AVQA-Real", None, None, f"{AV}/Location", 73.97),
    ("AVAF-Net, Table 1", "GRU", "MUSIC-AVQA-Real", None, None, f"{AV}/Existential", 84.25),
    ("AVAF-Net, Table 2", "APL", "MUSIC-AVQA", None, None, f"{V}/Location", 82.29),
    ("AVAF-Net, Table 2", "PSTP-Net", "MUSIC-AVQA", None, None, f"{AV}/Temporal", 67.40),
    ("AVAF-Net, Table 2", "PSAC", "MUSIC-AVQA", None, None, "overall", 66.54),
    ("AVAF-Net, Table 3", "AVAF-Net w/o AVCM", "MUSIC-AVQA", None, None, V, 77.58),
    ("AVAF-Net, Table 3", "AVAF-Net w/o all", "MUSIC-AVQA", None, None, "overall", 26.70),
    ("AVAF-Net, Table 4", "AVAF-Net", "MUSIC-AVQA", "φ = 0.021", None, V, 82.82),
    ("AVAF-Net, Table 5", "AVAF-Net", "MUSIC-AVQA", "β = 0.8", None, AV, 72.29),
    ("MCD, Table II", "MLP fusion", "MUSIC-AVQA", "Q + A", None, "overall", 67.26),
    ("MCD, Table II", "MLP fusion", "MUSIC-AVQA", "V", None, "overall", 61.98),
    ("MCD, Table III", "MCD", "MUSIC-AVQA", None, None, f"{A}/Counting", 82.40),
    ("MCD, Table III", "Pano-AVQA", "MUSIC-AVQA", None, None, "overall", 69.53),
    ("MCD, Table III", "PSTP-Net", "MUSIC-AVQA", None, None, f"{AV}/Location", 71.80),
    ("MCD, Table IV", "LAVISH", "MUSIC-AVQA", None, "Swin-V2-L + VGGish", "overall", 74.61),
    ("MCD, Table IV", "MCD", "MUSIC-AVQA", None, "ResNet-18 + VGGish", V, 79.73),
    ("MCD, Table V", "MCD w/o SA", "AVQA", "", None, "overall", 89.5),
    ("MCD, Table VI", "MCD", "MUSIC-AVQA", "Bi-LSTM, with text objects", None, V, 81.12),
    ("MCD, Table VII", "MCD", "MUSIC-AVQA", "cross-attention, row 1 of 3", None, "overall", 69.12),
    ("MCD, Table VIII", "MCD", "MUSIC-AVQA", "3 association blocks", None, "FLOPs (G)", 2.850),
    ("MCD, Table IX", "MCD", "MUSIC-AVQA", "without global audio embedding", None, "overall", 74.82),
    ("MCD, Table X", "MCD", "AVQA", "without audio distillation", None, "overall", 90.32),
    ("MCD, Table X", "MCD", "MUSIC-AVQA", "without audio-visual contrast", None, A, 76.87),
    ("PSTP-Net, Table 1", "AVST", "MUSIC-AVQA", None, None, f"{A}/Comparative", 67.17),
    ("PSTP-Net, Table 1", "HCAttn", "MUSIC-AVQA", None, None, f"{V}/Counting", 63.49),
    ("PSTP-Net, Table 1", "PSTP-Net", "MUSIC-AVQA", None, None, AV, 72.57),
    ("PSTP-Net, Table 2", "AVST", "MUSIC-AVQA", None, None, "parameters (M)", 18.480),
    ("PSTP-Net, Table 3", "PSTP-Net w/o TSSM", "MUSIC-AVQA", None, None, "FLOPs (G)", 1.945),
    ("PSTP-Net, Table 3", "PSTP-Net w/o all", "MUSIC-AVQA", None, "ResNet-18 + VGGish", "overall", 69.01),
    ("PSTP-Net, Table 4", "PSTP-Net", "AVQA", "", None, "overall", 90.2),
]
# Cells of each table of the papers: methods × columns, without dashes.
SIZES = {
    "AV-Master, Table II": 17 * 13 - 18, "AV-Master, Table III": 13 * 19, "AV-Master, Table IV": 20 * 4,
    "AV-Master, Table V": 11, "AV-Master, Table VI": 11 * 3 - 2, "AV-Master, Table VII": 3 * 4,
    "AV-Master, Table XII": 11 * 4, "AVAF-Net, Table 1": 11 * 13, "AVAF-Net, Table 2": 11 * 13,
    "AVAF-Net, Table 3": 6 * 4, "AVAF-Net, Table 4": 7 * 4, "AVAF-Net, Table 5": 8 * 4, "MCD, Table II": 6,
    "MCD, Table III": 12 * 13, "MCD, Table IV": 6 * 4, "MCD, Table V": 9, "MCD, Table VI": 4 * 3,
    "MCD, Table VII": 10, "MCD, Table VIII": 5 * 3, "MCD, Table IX": 5 * 4, "MCD, Table X": 4 * 5,
    "PSTP-Net, Table 1": 11 * 13, "PSTP-Net, Table 2": 2 * 3, "PSTP-Net, Table 3": 7 * 3, "PSTP-Net, Table 4": 7,
}  # fmt: skip


@pytest.mark.parametrize("line", BY_EYE, ids=lambda line: f"{line[0]}: {line[1]}, {line[5]}")
def test_a_value_read_by_eye(line):
    table = published()
    for name, value in zip(("source", "method", "dataset", "setting", "encoder", "column"), line, strict=False):
        table = table if value is None else table[table[name] == value]
    assert table["value"].tolist() == [line[-1]]


def test_every_cell_of_every_table_is_there_once():
    table = published()
    assert table["source"].value_counts().to_dict() == SIZES
    assert not table.duplicated(["method", "dataset", "setting", "encoder", "column", "source"]).any()


def test_averages_lie_between_what_they_are_averages_of():
    for _, line in wide(published("MUSIC-AVQA"), accuracies=True).dropna(subset=COLUMNS).iterrows():
        for scenario in (A, V, AV):
            types = line[[name for name in COLUMNS if name.startswith(f"{scenario}/")]]
            assert types.min() <= line[scenario] <= types.max(), line["method"]
        assert line[[A, V, AV]].min() <= line["overall"] <= line[[A, V, AV]].max(), line["method"]


def test_the_surveys_methods_and_data_sets():
    table = pd.read_csv(MANIFESTS / "methods.csv", dtype=str).set_index("name")
    assert table["kind"].value_counts().to_dict() == {"method": 42, "data set": 3}
    assert table.loc["PSTP-Net", ["year", "venue", "spatio_temporal"]].tolist() == ["2023", "MM 2023", "yes"]
    assert table.loc["VAST", "spatio_temporal"] == "no" and table.loc["Amuse", "year"] == "2024"
    assert table.loc["LAViT", "title"] == "Pano-AVQA: Grounded Audio-Visual Question Answering on 360◦ Videos"


def lines_of(capsys, *arguments):
    assert main(["results", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_results_are_filtered_and_sorted(capsys):
    header, *lines = lines_of(capsys, "--source", "Table II", "--method", "av", "--sort", "Audio/Comparative")
    assert header.split()[:2] == ["method", "setting"] and "A/Comp" in header
    assert {line.split()[0] for line in lines} >= {"AV-Master", "AVSD", "LAVISH", "AVAF-Net"}
    values = [float(line.split("Table II")[1].split()[1]) for line in lines if "AV-Master, Table II " in line]
    assert len(values) == 6 and values == sorted(values, reverse=True)  # Pano-AVQA and ST-AVQA too
    header, *lines = lines_of(capsys, "--dataset", "avqa", "--source", "AV-Master")
    assert lines[0].split()[0] == "AV-Master" and lines[-1].split()[0] == "LADNet" and len(lines) == 11
    assert lines_of(capsys, "--survey", "--method", "pstp")[1].split()[1:3] == ["2023", "PSTP-Net"]


@pytest.mark.parametrize("wrong", [["--dataset", "nosuch"], ["--sort", "nosuch"], ["--survey", "--method", "nosuch"]])
def test_what_is_not_there_is_named(capsys, wrong):
    assert main(["results", *wrong]) == 1
    assert "nosuch" in capsys.readouterr().err


def test_our_scores_stand_beside_the_papers(tmp_path, capsys):
    entry = {"accuracy": 0.9, "count": 10}
    for seed, accuracy in enumerate((0.8, 0.9)):
        scores = {"overall": {"accuracy": accuracy, "count": 10}, "scenario": {"Audio": entry}, "types": {"Audio": {}}}
        scores |= {"question_type": {}, "parts": {}, "present": dict(scores)}
        scores["encoders"] = {"vggish": {"weights": "torchvggish", "pretrained": True}}
        folder = tmp_path / "music_avqa" / "models" / "pooled" / f"seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps(scores))
    model = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}
    config = {"dataset": "music_avqa", "results": str(tmp_path), "models": {"pooled": model}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config | {"train": {"seeds": [0, 1]}}))
    _, first, *_ = lines_of(capsys, "--config", str(tmp_path / "c.yaml"))
    assert first.split() == ["pooled", "(ours)", "vggish", "mean", "of", "2", "seed(s)", "90.00", "85.00"]


@pytest.mark.parametrize("name", ["Multiple choice", "Multiple choice (head)", "Yes/No"])
def test_types_that_the_papers_do_not_have_keep_their_names(name):
    """Multiple choice is Valor32k-AVQA's where a record names none."""
    assert short_name(f"Audio-Visual/{name}") == f"AV/{name}"


def test_short_names_are_all_different():
    names = [*COLUMNS, "Audio/Counting (head)", "Audio/Counting (tail)", "FLOPs (G)"]
    names += ["Audio-Visual/Multiple choice", "Audio/All"]  # of other data sets
    assert len({short_name(name) for name in names}) == len(names)
