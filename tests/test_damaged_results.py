"""Results that were damaged, by a copy that was cut short for example: the file and the command that makes it again are
named, in every command that reads it."""

import json
import shutil

import pandas as pd
import pytest
import yaml
from made_results import make_index
from test_learning import config as config_of
from test_learning import make_features

from pipeline.cli import main
from pipeline.train import train

RUN = "d/models/pooled/seed-0"
READERS = {  # file -> the commands that read it
    "d/manifest.json": ("evaluate", "explain", "train", "report", "index", "failures", "export", "plan"),
    "d/questions.parquet": ("evaluate", "train", "report", "index", "export"),
    "d/features.h5": ("evaluate", "train", "report", "export"),
    "d/missing.tsv": ("report",),
    f"{RUN}/config.yaml": ("evaluate", "explain", "convert-checkpoint"),
    f"{RUN}/checkpoint.safetensors": ("evaluate", "explain", "convert-checkpoint"),
    f"{RUN}/scores.json": ("report", "results"),
    f"{RUN}/predictions.parquet": ("report", "look"),
    f"{RUN}/explanation.json": ("report",),
    f"{RUN}/history.csv": ("report",),
    "c/features/vggish/00000.h5": ("evaluate", "train", "provenance"),
    "c/shards/00000.tsv": ("index", "failures"),
}
MAY_LACK = ("missing.tsv", "predictions.parquet", "explanation.json", "scores.json")  # the report is written without
DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other": lambda data: b"\xff\xfe\0" * 9,
}
DAMAGES["gone"] = None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A data set with a trained model, its scores and its explanation."""
    folder = tmp_path_factory.mktemp("results")
    config = config_of.__wrapped__(folder)
    config["results"], config["models"] = ".", {"pooled": config["models"]["pooled"]}
    config["train"] |= {"epochs": 1, "seeds": [0]}
    make_features(folder / "d", folder / "c")
    make_index(folder / "d", folder / "c", ["clip_vit_b32", "vggish"], "clip_vit_b32")
    table = pd.read_parquet(folder / "d" / "questions.parquet").assign(file="a", record=range(40), choices=None)
    table.assign(prompt=None).to_parquet(folder / "d" / "questions.parquet", index=False)
    table[:0].assign(reason="").to_parquet(folder / "d" / "left_out.parquet", index=False)
    header = "video_id\treason\tfile\tsplit\tpart\tscenario\ttype\tquestions\n"
    (folder / "d" / "missing.tsv").write_text(header + "v1\tmissing\ta\ttest\t\tVisual\tLocation\t2\n")
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(config, "pooled", 0, RUN)
        assert main(["evaluate", RUN]) == 0 and main(["explain", RUN]) == 0
    return folder


def command(name):
    given = {
        "convert-checkpoint": (RUN, "--out", "released"),
        "train": ("--config", "c.yaml", "--out", "new"),
        "export": ("d", "--layout", "safetensors", "--out", "export"),
        "plan": ("--config", "c.yaml", "--no-calibrate"),
        "look": ("v1", "--config", "c.yaml", "--out", "page.html"),
        "provenance": ("c/features/vggish/00000.h5",),
    }
    names = {"clip_vit_b32/cls": ["clip_vit_b32"], "vggish/embedding": ["vggish"]}
    text = {"clip_vit_b32": "d/text/clip_vit_b32.h5"}
    parts = ("--features", json.dumps(names), "--texts", json.dumps(text), "--out", "d")
    given["index"] = ("--manifest", "d", "--collection", "c", *parts)
    given["failures"] = ("d", "--collection", "c", "--tables", "c/failures", "--max-failed-fraction", "1")
    of_a_run = (RUN,) if name in ("evaluate", "explain") else ("--config", "c.yaml")
    return [name, *given.get(name, of_a_run)]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_is_named_with_what_makes_it_again(results, tmp_path, monkeypatch, capsys, file, damage):
    folder = tmp_path / "copy"
    shutil.copytree(results, folder)
    monkeypatch.chdir(folder)
    whole = (folder / file).read_bytes()
    if damage != "gone":
        (folder / file).write_bytes(DAMAGES[damage](whole))
    elif file.endswith(MAY_LACK):
        return
    else:
        (folder / file).unlink()
    for name in READERS[file]:
        capsys.readouterr()
        assert main(command(name)) == 1, name
        error = capsys.readouterr().err.strip()
        named = [line for line in error.splitlines() if line.startswith(f"avqa {name}: ")]
        assert len(named) == 1 and file in error and "Traceback" not in error, (name, error)
