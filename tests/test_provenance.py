"""`avqa provenance`: what a file says of itself, and the command that makes it again."""

import re
import shlex
import shutil
import tempfile

import h5py
import numpy as np
import pytest
from made_results import make_results

from pipeline.cli import main
from pipeline.export import export
from pipeline.storage.shard_list import Video, write_shard_list
from pipeline.synthesize import synthesize


def printed(path, capsys):
    capsys.readouterr()
    assert main(["provenance", str(path)]) == 0
    return capsys.readouterr().out


def test_the_command_that_is_printed_makes_the_file_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    synthesize(tmp_path / "made", clips=16, seconds=4, seed=0)
    files = sorted((tmp_path / "made" / "videos").glob("*.mp4"))[:2]
    videos = [Video(path.stem, str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    tsv = tmp_path / "c" / "shards" / "00000.tsv"
    write_shard_list(tsv, videos)
    command = ["decode", str(tsv), "--encoder", "resnet18", "--segments", "2", "--frame-at", "0.25", "--pad", "zero"]
    assert main([*command, "--collection", "c", "--out", "segments.h5"]) == 0
    out = tmp_path / "c" / "features" / "resnet18" / "00000.h5"
    weights = ["--weights", "random", "--seed", "5", "--dtype", "float32", "--outputs", "pooled"]
    assert main(["extract", "segments.h5", "--encoder", "resnet18", *weights, "--out", str(out)]) == 0
    text = printed(out, capsys)
    assert f"{files[0]} {videos[0].size} bytes" in text and "WARNING: the weights are random numbers" in text
    assert "torch" in text and "weights_sha256: " in text
    with h5py.File(out) as file:
        before, attributes = file["resnet18/pooled"][:], dict(file.attrs)
    out.unlink()
    (tmp_path / "segments.h5").unlink()
    commands = [line.split("avqa ", 1)[1] for line in text.splitlines() if line.startswith("  avqa ")]
    assert [shlex.split(line)[0] for line in commands] == ["decode", "extract"]
    for line in commands:
        assert main(shlex.split(line)) == 0
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["resnet18/pooled"][:], before)
        assert dict(file.attrs) == attributes


def test_texts_index_exports_and_files_of_others(tmp_path, capsys):
    dataset = make_results(tmp_path)
    text = printed(dataset / "text" / "clip_vit_b32.h5", capsys)
    assert re.search(r"avqa text \S+questions.parquet --dataset small --sentence eot --encoder clip_vit_b32", text)
    text = printed(dataset / "features.h5", capsys)
    assert "vggish:" in text and "weights: openai" in text and "avqa index" in text
    export(dataset, "pstp-net", tmp_path / "out", force=True)
    text = printed(tmp_path / "out", capsys)
    assert "layout: pstp-net" in text and "avqa export results/small --layout pstp-net" in text
    (tmp_path / "x.txt").write_text("x")
    with h5py.File(tmp_path / "x.h5", "w"):
        pass
    for name in ("x.txt", "x.h5", "none.h5"):
        assert main(["provenance", str(tmp_path / name)]) == 1


@pytest.mark.parametrize("change", ["size", "none"])
def test_changed_source_files_are_named(tmp_path, capsys, change):
    dataset = make_results(tmp_path)
    tsv = dataset.parent / "small_videos" / "shards" / "00000.tsv"
    if change == "size":
        tsv.write_text(tsv.read_text().replace("\t1001\t", "\t1\t"))
    text = printed(dataset.parent / "small_videos" / "features" / "vggish" / "00000.h5", capsys)
    assert ("changed since this file was made" in text) == (change == "size")


def test_a_copy_in_the_top_folder_and_foreign_attributes(tmp_path, capsys):
    features = make_results(tmp_path).parent / "small_videos" / "features" / "vggish" / "00000.h5"
    for change in ({"config": "[1]"}, {"config": "{"}, {"encoder": 3}, {"libraries": h5py.Empty("f")}):
        path = tmp_path / "foreign.h5"
        shutil.copy(features, path)
        with h5py.File(path, "a") as file:
            file.attrs.update(change)
        assert main(["provenance", str(path)]) == 1
        assert "foreign.h5: its attributes are not those" in capsys.readouterr().err
    with tempfile.NamedTemporaryFile(dir="/tmp", suffix=".h5") as top:
        shutil.copy(features, top.name)
        assert "to make it again:" in printed(top.name, capsys)
