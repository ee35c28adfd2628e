"""Damaged files, a part of what bench/fuzz_media.py does in full."""

import subprocess
import sys
from pathlib import Path


def test_damaged_files_are_decoded_or_recorded():
    bench = Path(__file__).resolve().parent.parent.parent / "bench" / "fuzz_media.py"
    run = subprocess.run(
        [sys.executable, bench, "--files", "90", "--seed", "1"], capture_output=True, text=True, timeout=400
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "90 files in" in run.stdout and "neither decoded nor recorded: 0." in run.stdout
    kinds = [line.split("|")[1].strip() for line in run.stdout.splitlines() if line.startswith("| ")]
    assert len(kinds) == 12  # a heading, ten kinds of damage, and all
