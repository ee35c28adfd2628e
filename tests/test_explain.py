"""What a model's answers depend on."""

import pandas as pd
import pytest
import yaml
from test_learning import config, folder  # noqa: F401

from pipeline.cli import main
from pipeline.explain import explain
from pipeline.train import train


@pytest.mark.parametrize("size", [1, 3])
def test_contributions_do_not_depend_on_the_batch_size(config, folder, size):  # noqa: F811
    """The answer follows from the video's frames. Four of the test videos have two questions, so that some batches of
    three questions have the videos of others, and a batch of one has no other video to take features from."""
    table = pd.read_parquet(folder / "questions.parquet")
    again = table[table["split"] == "test"][:4].assign(question_id=None)
    pd.concat([table, again]).to_parquet(folder / "questions.parquet", index=False)
    train(config, "pooled", 0, folder / "x")
    whole = explain(folder / "x")["contributions"]
    assert whole["visual"]["overall"]["accuracy"] < 0.2 < 0.8 < whole["as trained"]["overall"]["accuracy"]
    described = yaml.safe_load((folder / "x" / "config.yaml").read_text())
    described["config"]["train"]["batch_size"] = size
    (folder / "x" / "config.yaml").write_text(yaml.safe_dump(described))
    assert explain(folder / "x")["contributions"] == whole


def test_another_split_has_a_file_of_its_own(config, folder):  # noqa: F811
    """The report reads explanation.json, and calls its questions test questions."""
    train(config, "pooled", 0, folder / "x")
    explain(folder / "x")
    before = (folder / "x" / "explanation.json").read_bytes()
    assert main(["explain", str(folder / "x"), "--split", "val"]) == 0
    assert (folder / "x" / "explanation.json").read_bytes() == before
    assert '"split": "val"' in (folder / "x" / "explanation-val.json").read_text()
