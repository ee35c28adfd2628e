"""manifests/reproduction.md: it is current, and says of the released models what their reference pages say."""

import json

import pandas as pd
import pytest

from pipeline.ablations import MANIFESTS
from pipeline.cli import main
from pipeline.models import MODELS
from pipeline.reproduction import PUBLISHED, counted


@pytest.mark.slow
def test_the_page_is_current(tmp_path, capsys):
    assert main(["reproduction", "--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == (MANIFESTS / "reproduction.md").read_text(), "run `avqa reproduction`"
    assert "| pstp_net | Table 2 | PSTP-Net | GMACs | 1.223 | 1.223 | yes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "row", "expected"),
    [("Table 3", "w/o all", [1.4029, 0.1442]), ("Table 3", "w/o TSSM", [3.2456, 1.9449]),
     ("Table 3", "w/o AVAM", [3.7704, 1.2122]), ("Table 2", "PSTP-Net", [4.2967, 1.2228])],
)  # fmt: skip
def test_counts_of_pstp_net(where, row, expected):
    """Oracle: the released code, counted with thop."""
    lines = pd.read_csv(PUBLISHED).query("model == 'pstp_net' and where == @where and row == @row").to_dict("records")
    assert [round(counted(line), 4) for line in lines] == expected


def test_every_line_is_of_a_model_and_says_why_it_is_not_reproduced():
    page = (MANIFESTS / "reproduction.md").read_text()
    for line in pd.read_csv(PUBLISHED, dtype={"published": str}).fillna({"reason": ""}).to_dict("records"):
        assert line["model"] in MODELS and json.loads(line["settings"]) is not None
        begins = f"| {line['model']} | {line['where']} | {line['row']} | {line['quantity']} |"
        (shown,) = [text for text in page.splitlines() if text.startswith(begins)]
        assert line["reason"] or "| yes |" in shown
