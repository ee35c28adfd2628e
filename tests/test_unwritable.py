"""Every command that writes, where it may not: the folder and the remedy are named, before the work begins."""

import json
import os
import subprocess

import pytest
import yaml
from test_learning import config, folder  # noqa: F401
from test_manifest import record

import pipeline.evaluate
from pipeline.cli import main
from pipeline.train import train

WEIGHTS = ("--encoder", "clip_vit_b32", "--weights", "random")


def make_read_only(path):
    """Also for root, whom permissions do not bind; returns what undoes it. Skips where neither way works."""
    if os.geteuid():
        path.chmod(0o555)
        return lambda: path.chmod(0o755)
    if subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and this file system has no immutable folders")
    return lambda: subprocess.run(["chattr", "-i", path], check=True)


@pytest.fixture(params=["a file in its place", "read only"])
def blocked(request, tmp_path):
    """A folder that nothing can be written to."""
    path = tmp_path / "blocked"
    if request.param == "a file in its place":
        path.write_text("content")
        yield path
        assert path.read_text() == "content"
        return
    path.mkdir()
    undo = make_read_only(path)
    yield path
    undo()
    assert not list(path.iterdir())


def refused(capsys, named, *arguments):
    """The command ends in one sentence that names the folder and says what to do."""
    assert main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"avqa {arguments[0]}: ") and "\n" not in error
    assert str(named) in error and ("name another" in error or "name a file" in error)


@pytest.mark.parametrize(
    "arguments",
    [
        ("synthesize", "--clips", "16", "--seconds", "4", "--out", "{}/clips"),
        ("decode", "questions.txt", "--out", "{}/segments.h5"),
        ("decode", "questions.txt", "--out", "segments.h5", "--failures", "{}/failures.tsv"),
        ("decode", "questions.txt", "--out", "segments.h5", "--timing", "{}/timing.json"),
        ("extract", "segments.h5", *WEIGHTS, "--out", "{}/features.h5"),
        ("extract", "segments.h5", *WEIGHTS, "--out", "features.h5", "--timing", "{}/timing.json"),
        ("text", "questions.txt", *WEIGHTS, "--out", "{}/text.h5"),
        ("train", "--config", "c.yaml", "--out", "{}/seed-0"),
        ("evaluate", "seed-0", "--out", "{}/scores"),
        ("convert-checkpoint", "seed-0", "--out", "{}/checkpoint"),
        ("export", "results", "--layout", "tspm", "--out", "{}/export"),
        ("verify", "results", "--json", "{}/findings.json"),
        ("compare", "a.h5", "b.h5", "--plot", "{}/plot.png"),
        ("look", "clip.mp4", "--out", "{}/page.html"),
        ("reproduction", "--out", "{}/reproduction.md"),
    ],
    ids=lambda arguments: " ".join(word for word in arguments if not word.endswith((".h5", ".txt", "random"))),
)
def test_no_command_begins_what_it_cannot_write(tmp_path, monkeypatch, capsys, blocked, arguments):
    """The inputs are not there at all: the output is looked at first."""
    monkeypatch.chdir(tmp_path)
    refused(capsys, blocked, *(word.format(blocked) for word in arguments))


def test_a_folder_in_place_of_a_file_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").mkdir()
    refused(capsys, "page.html: is a folder", "look", "clip.mp4", "--out", "page.html")


def test_a_run_that_may_not_be_written_is_named_before_questions_are_answered(
    config,  # noqa: F811
    folder,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    config["train"]["epochs"] = 1
    run = tmp_path / "run"
    train(config, "pooled", 0, run)
    assert main(["evaluate", str(run)]) == 0 and main(["explain", str(run)]) == 0
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    undo = make_read_only(run)
    monkeypatch.setattr(pipeline.evaluate, "load_trained", None)
    capsys.readouterr()
    try:
        refused(capsys, run, "evaluate", run)
        refused(capsys, run, "evaluate", run, "--steps", "--split", "val")
        refused(capsys, run, "explain", run)
    finally:
        undo()
    assert before == {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("command", "of"), [("manifest", "d"), ("manifest", "c"), ("index", "d"), ("failures", "d"), ("report", "d")]
)
def test_results_that_may_not_be_written_are_named(config, folder, tmp_path, capsys, command, of):  # noqa: F811
    """What these commands read is there, but for videos and scores, which are made up."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v1.mp4").write_bytes(b"x")
    (tmp_path / "all.json").write_text(json.dumps([record("v1")]))
    config["annotations"] = {split: str(tmp_path / "all.json") for split in ("train", "val", "test")}
    config["videos"]["folder"] = str(tmp_path / "videos")
    config["max_failed_fraction"] = 1
    del config["models"]["question_only"], config["models"]["av_master"]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    data, collection = str(tmp_path / "d"), str(tmp_path / "c")
    arguments = {
        "index": ["--manifest", data, "--features", '{"vggish/embedding": ["vggish"]}', "--texts", "{}", "--out", data],
        "failures": [data, "--tables", collection, "--max-failed-fraction", "1"],
    }
    if command == "report":
        train(config | {"train": config["train"] | {"epochs": 1}}, "pooled", 0, folder / "models" / "pooled" / "seed-0")
        assert main(["evaluate", str(folder / "models" / "pooled" / "seed-0")]) == 0
    capsys.readouterr()
    place = tmp_path / of / ("shards" if of == "c" else "")
    undo = make_read_only(place)
    try:
        if command in arguments:
            refused(capsys, place, command, "--collection", collection, *arguments[command])
        else:
            refused(capsys, place, command, "--config", tmp_path / "c.yaml")
    finally:
        undo()
