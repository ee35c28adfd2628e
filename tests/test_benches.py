"""The benches run, in small. What they measure is not judged here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def bench(name, *arguments):
    command = [sys.executable, str(ROOT / "bench" / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_gpu(tmp_path):
    """Every row that needs no GPU has a figure, and the file is what was printed."""
    printed = bench("gpu.py", "--small", "--out", tmp_path / "gpu.md")
    rows = [line.split(" | ") for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 12 and all(f"{row[0].removeprefix('| ')}: {row[1]}" in printed for row in rows)
    assert not [row for row in rows if "not measured" in row[1]]


@pytest.mark.slow
def test_extract():
    printed = bench("extract.py", "--seconds", 2, "--frames", 2, "--rounds", 1)
    assert printed.count("\n| ") == 3 and "| encoder alone, frames in memory, per processor second | " in printed
