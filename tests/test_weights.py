"""`avqa weights` and the rule that calls it: a record appears only when all files are there, and lists them."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.cli import main

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "dataset": "mine",
    "videos": {"collection": "c", "folder": "v"},
    "annotations": {split: f"{split}.json" for split in ("train", "val", "test")},
    "encoders": {"clip_vit_b32": {"weights": "openai"}},
    "text": {"encoder": "clip_vit_b32", "weights": "openai"},
    "models": {"pooled": {"audio": "clip_vit_b32/cls", "visual": "clip_vit_b32/cls"}},
}
NO_NETWORK = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}


def cache(folder, content=b"weights"):
    """A repository of the hub in its cache, as a download leaves it."""
    repository = folder / "models--timm--vit_base_patch32_clip_224.openai"
    for name in ("refs", "blobs", "snapshots/123"):
        (repository / name).mkdir(parents=True)
    (repository / "refs/main").write_text("123")
    (repository / "blobs/abc").write_bytes(content)
    link = repository / "snapshots/123/open_clip_model.safetensors"
    link.symlink_to("../../blobs/abc")
    return link


def test_a_download_that_fails_leaves_nothing_that_counts_as_done(tmp_path):
    """The workflow, started twice: without a network, then with the files in the cache. An empty file at the record's
    earlier place, as a failed download left it, is not taken for one."""
    record = tmp_path / "results/weights/clip_vit_b32/openai.json"
    record.parent.mkdir(parents=True)
    record.with_suffix("").write_text("")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "v").mkdir()

    def run():
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "1"]
        environment = os.environ | NO_NETWORK | {"HF_HUB_CACHE": str(tmp_path / "hub")}
        return subprocess.run(
            [*command, "results/weights/clip_vit_b32/openai.json", "--configfile", "c.yaml"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    failed = run()
    assert failed.returncode and not record.exists(), failed.stderr
    assert "cannot be downloaded" in (tmp_path / "results/weights/logs/clip_vit_b32-openai.log").read_text()
    file = cache(tmp_path / "hub")
    made = run()
    assert made.returncode == 0, made.stderr
    assert json.loads(record.read_text()) == {
        "encoder": "clip_vit_b32",
        "weights": "openai",
        "files": [{"path": str(file), "bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}],
    }


@pytest.mark.parametrize("weights", ["random", "mine.pt", "no_such_tag"])
def test_what_is_no_hub_tag_is_refused_and_recorded_nowhere(tmp_path, monkeypatch, capsys, weights):
    monkeypatch.chdir(tmp_path)
    assert main(["weights", "--encoder", "vggish", "--weights", weights, "--out", "record.json"]) == 1
    assert "weights" in capsys.readouterr().err and not Path("record.json").exists()
