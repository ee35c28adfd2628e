"""The benches run, in small. What they measure is not judged here."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def bench(name, *arguments):
    command = [sys.executable, str(ROOT / "bench" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(path):
    """The cells of a Markdown table, without its head."""
    return [line.strip("| ").split(" | ") for line in path.read_text().splitlines() if line.startswith("| ")][1:]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_rows_are_empty(tmp_path):
    """And those of the results that are in the repository, whether measured or not, are the script's rows."""
    bench("gpu.py", "--out", tmp_path / "gpu.md")
    rows = rows_of(tmp_path / "gpu.md")
    assert {row[1] for row in rows} == {"–"}
    goals = "".join(row[2] for row in rows if len(row) > 2)
    for goal in ("3,000", "1,200", "20,000", "430", "20 times", "10 times", "75%", "15%"):
        assert goal in goals
    assert [row[0] for row in rows] == [row[0] for row in rows_of(ROOT / "bench" / "RESULTS_GPU.md")]


@pytest.mark.slow
def test_gpu(tmp_path):
    """Every row that needs no GPU has a figure, and the file is what was printed."""
    printed = bench("gpu.py", "--small", "--out", tmp_path / "gpu.md")
    rows = rows_of(tmp_path / "gpu.md")
    assert len(rows) >= 12 and all(f"{row[0]}: {row[1]}" in printed for row in rows)
    assert not [row for row in rows if "not measured" in row[1]]


@pytest.mark.slow
def test_largest():
    printed = bench("largest.py", "--part", 0.001)
    assert printed.count("\n| evaluate | ") == 2 and "AVQA's size, four options" in printed


@pytest.mark.slow
def test_extract():
    printed = bench("extract.py", "--seconds", 2, "--frames", 2, "--rounds", 1)
    assert printed.count("\n| ") == 3 and "| encoder alone, frames in memory, per processor second | " in printed
