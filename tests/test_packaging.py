"""What `pip install .` installs is complete: it works from another folder, without the repository."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from media.oracle import clip

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = {"build", "data", "results"}  # made by other commands: building there would leave files behind


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The project without its dependencies, which this Python already has."""
    target, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "copy"

    def skipped(folder: str, names: list[str]) -> set[str]:  # pipeline/data is code
        return {name for name in names if name.startswith(".") or (Path(folder) == ROOT and name in SKIPPED)}

    shutil.copytree(ROOT, source, ignore=skipped)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(source)]
    done = subprocess.run(pip, capture_output=True, text=True, cwd=target)
    assert done.returncode == 0, done.stderr
    return target


def avqa(installed, folder, *arguments):
    script = "import pipeline.cli, sys; print(pipeline.__file__); sys.exit(pipeline.cli.main())"
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(installed))
    return done.stdout


def test_commands_work_from_another_folder(installed, tmp_path):
    clip(tmp_path / "clip.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2")
    assert "decode" in avqa(installed, tmp_path, "--help")
    assert "focus capture" in avqa(installed, tmp_path, "model", "av_master")
    avqa(installed, tmp_path, "decode", "clip.mp4", "--segments", 2, "--out", "segments.h5")
    with h5py.File(tmp_path / "segments.h5") as segments:
        assert segments["frames/224-bicubic"].shape == (1, 2, 224, 224, 3)


def test_schema_and_tables_are_installed(installed):
    tables = [f"manifests/{name}.csv" for name in ("av_master_tables", "published_results", "methods")]
    templates = [str(path.relative_to(ROOT)) for path in (ROOT / "pipeline/reporting/templates").iterdir()]
    for name in ("config/schema.yaml", "config/config.yaml", "config/protocols.yaml", *tables, *templates):
        assert (installed / name).read_bytes() == (ROOT / name).read_bytes()
