"""The report of a small data set, as a browser shows it and as its reader uses it."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_results import make_index
from media.oracle import clip
from reporting.browser import Browser
from test_learning import FEATURES, make_features

from pipeline.cli import main
from pipeline.config import check_config
from pipeline.evaluate import evaluate, evaluate_by_second
from pipeline.explain import explain
from pipeline.keys import decoding
from pipeline.look import look
from pipeline.report import write_report
from pipeline.reporting.answers import CONFUSED, confusion
from pipeline.train import train

ODD = "$1 <script>console.error('answer')</script> $2"  # neither markup nor mathematics


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two trained and examined models; of the test videos, one has a file."""
    folder = tmp_path_factory.mktemp("results")
    make_features(folder / "d", folder / "c")
    make_index(folder / "d", folder / "c", ["clip_vit_b32", "vggish"], "clip_vit_b32")
    table = pd.read_parquet(folder / "d" / "questions.parquet")
    replaced = table["answer"].iloc[-1]
    table["answer"] = table["answer"].replace(replaced, ODD)
    table.to_parquet(folder / "d" / "questions.parquet", index=False)
    manifest = json.loads((folder / "d" / "manifest.json").read_text())
    manifest["answers"] = [ODD if answer == replaced else answer for answer in manifest["answers"]]
    (folder / "d" / "manifest.json").write_text(json.dumps(manifest))
    tone = ("-f", "lavfi", "-i", "sine=500:d=3", "-c:v", "libx264", "-pix_fmt", "yuv420p")
    clip(folder / "c" / "v33.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=3", *tone)
    for name in table.loc[table["split"] == "test", "video_id"]:
        if name != "v32" and name != "v33":
            shutil.copy(folder / "c" / "v33.mp4", folder / "c" / f"{name}.mp4")
    small = FEATURES | {"width": 16}
    config = check_config(
        {
            "dataset": "d",
            "results": str(folder),
            "videos": {"collection": "c", "folder": "unused"},
            "annotations": {"train": "unused", "val": "unused", "test": "unused"},
            "decode": {"segments": 3},
            "encoders": {"clip_vit_b32": {"weights": "random"}, "vggish": {"weights": "random"}},
            "text": {"encoder": "clip_vit_b32", "weights": "random"},
            "models": {"av_master": small | {"focus_width": 8, "heads": 2}, "pooled": small},
            "train": {"epochs": 8, "batch_size": 8, "learning_rate": 0.003, "decay_every": 20, "threads": 1},
        }
    )
    for encoder in (f"decode/frames-{decoding(config).digits}", "clip_vit_b32"):
        (folder / "c" / "benchmarks" / encoder).mkdir(parents=True)
        for shard, cpu in (("00000", "6.0"), ("00001", "4.0")):
            text = f"s\th:m:s\tmax_rss\tcpu_time\n4.0\t0:00:04\t100.5\t{cpu if encoder != 'clip_vit_b32' else 'NA'}\n"
            (folder / "c" / "benchmarks" / encoder / f"{shard}.tsv").write_text(text)
            parts = {"start": 1.0, "reading": 0.5, "encoder": 2.0, "writing": 0.0}
            timing = {"items": 48, "wall": 4.0, "jobs": 1, "parts": parts}
            (folder / "c" / "benchmarks" / encoder / f"{shard}.json").write_text(json.dumps(timing))
    for name in config["models"]:
        run = folder / "d" / "models" / name / "seed-0"
        train(config, name, 0, run)
        evaluate(run)
        explain(run)
    with open(folder / "d" / "failures.tsv", "a") as file:
        file.write("elsewhere\tdecode\tis of another data set\t0.1\n")  # in a shard that both have
    write_report(config)
    return config


@pytest.fixture(scope="module")
def folder(config):
    return Path(config["results"]) / "d"


@pytest.fixture(scope="module")
def pages(config, folder):
    look("v33", config, folder / "look.html")
    return {"report": folder / "report.html", "look": folder / "look.html"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


NAMES = pytest.mark.parametrize("name", ["report", "look"])


@NAMES
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_a_page_opens_without_errors_and_fits(browser, pages, name, width, dark):
    browser.open(pages[name], width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert browser.problems == [] and browser.requests == [pages[name].resolve().as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    text, page = (luminance(browser.evaluate(f"getComputedStyle(document.body).{p}")) for p in COLOURS)
    assert (text > page) is dark
    assert (max(text, page) + 0.05) / (min(text, page) + 0.05) > 7  # WCAG 2.2, contrast, level AAA


COLOURS = ("color", "backgroundColor")


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    values = np.array([int(number) for number in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@NAMES
def test_images_have_texts_and_can_be_shown(browser, pages, name):
    browser.open(pages[name])
    images = browser.evaluate("[...document.images].map(i => [i.alt, i.naturalWidth, i.src.slice(0, 11)])")
    assert images and all(alt.strip() and width > 0 and source == "data:image/" for alt, width, source in images)
    text = re.compile(r"Second 2 of v3\d: its frame at 2\.5 s, waveform and log-mel spectrogram")
    assert any(text.fullmatch(alt) for alt, *_ in images)


def column(browser, caption, number):
    """The cells of a column of the table with this caption."""
    table = f"[...document.querySelectorAll('table')].find(t => t.caption.textContent.startsWith('{caption}'))"
    return browser.evaluate(f"[...{table}.tBodies[0].rows].map(r => r.cells[{number}].textContent.trim())")


def click(browser, caption, selector, number=0):
    find = "[...document.querySelectorAll('figure.table')].find(f => f.querySelector('caption').textContent"
    browser.evaluate(f"{find}.startsWith('{caption}')).querySelectorAll('{selector}')[{number}].click()")


def test_tables_can_be_sorted(browser, pages):
    """Rising, then falling; cells that are empty stay at the end."""
    browser.open(pages["report"])
    caption = "Accuracy in %: ours"
    headings = browser.evaluate("[...document.querySelectorAll('table.whole th')].map(h => h.textContent)")
    for name in ("overall", "A/Count"):
        number = headings.index(name)
        before = column(browser, caption, number)
        for falling in (False, True):
            click(browser, caption, "th button", number)
            cells = column(browser, caption, number)
            filled = [float(cell) for cell in cells if cell]
            assert filled == sorted(map(float, filter(None, before)), reverse=falling) and filled[0] != filled[-1]
            assert cells[len(filled) :] == [""] * (len(before) - len(filled)) and "" in cells
    assert browser.problems == []


@pytest.mark.parametrize("allowed", [True, False], ids=["clipboard", "no clipboard"])
def test_tables_can_be_copied(browser, pages, config, allowed):
    browser.open(pages["report"])
    works = "async text => { window.copied = text }" if allowed else "async () => { throw Error('refused') }"
    browser.evaluate(f"Object.defineProperty(navigator, 'clipboard', {{value: {{writeText: {works}}}}}); 0")
    browser.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString() })")
    click(browser, "Questions by type", ".copy")
    browser.evaluate("new Promise(done => setTimeout(done, 200))")
    lines = [line.split("\t") for line in browser.evaluate("window.copied").strip().splitlines()]
    table = pd.DataFrame(lines[-len(column(browser, "Questions by type", 0)) :])
    assert table[0].tolist() == column(browser, "Questions by type", 0)
    assert table.iloc[-1, 1:].tolist() == ["24", "8", "8", "40"]
    assert browser.evaluate("[...document.querySelectorAll('.copy')].some(b => b.textContent == 'Copied')")


def test_answers_are_text_and_not_markup(browser, pages):
    browser.open(pages["report"])
    assert ODD in column(browser, "Questions by answer", 0)
    assert browser.problems == []


def test_the_warning_of_random_weights_is_at_the_top(browser, pages, config, folder):
    browser.open(pages["report"])
    top = "document.querySelector('[role=alert]').getBoundingClientRect().top"
    assert browser.evaluate(top) == 0 and "seeded random numbers" in browser.evaluate("document.body.innerText")
    originals = {path: path.read_text() for path in folder.glob("models/*/seed-0/scores.json")}
    for path, text in originals.items():
        path.write_text(text.replace("false", "true"))
    write_report(config)
    assert 'role="alert"' not in (folder / "report.html").read_text()
    for path, text in originals.items():
        path.write_text(text)
    write_report(config)


def test_a_model_that_does_not_offer_a_part_says_so(pages):
    page = pages["report"].read_text()
    for part in ("accuracy by second", "attention on words", "preference features"):
        assert page.count(f"pooled: Pooled does not offer {part}.") == 1
    assert "AVMaster does not offer" not in page


def test_failures_are_those_of_the_data_set(folder, pages):
    assert "1 videos failed" in (folder / "summary.txt").read_text()
    page = pages["report"].read_text()
    assert "Videos that could not be decoded: 1<" in page and "elsewhere" not in page


def test_equal_results_give_equal_pages(config, folder):
    before = (folder / "report.html").read_bytes()
    write_report(config)
    assert (folder / "report.html").read_bytes() == before


def test_a_report_without_videos_explanations_and_benchmarks(config, folder, tmp_path):
    """As from features that others have extracted."""
    shutil.copytree(folder.parent, tmp_path / "copy")
    for path in [*(tmp_path / "copy").rglob("explanation.json"), *(tmp_path / "copy").rglob("predictions.parquet")]:
        path.unlink()
    shutil.rmtree(tmp_path / "copy" / "c" / "benchmarks")
    write_report(config | {"results": str(tmp_path / "copy")})
    page = (tmp_path / "copy" / "d" / "report.html").read_text()
    for command in ("avqa evaluate", "avqa explain", "There are no benchmark files"):
        assert command in page


def test_run_time_is_the_benchmark_files(pages):
    """Two of three shards, 16 videos of 3 s each, 4 s of wall time and 5 s of CPU time each."""
    lines = re.findall(r"<tr>(.*?)</tr>", pages["report"].read_text(), re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines]
    found = {row[0]: row[1:] for row in rows if len(row) > 6 and row[0] in ("decode", "extract: clip_vit_b32")}
    assert found["decode"][:7] == ["2", "96 s of video", "8.0", "10.0", "1.2", "100.5", "12.0"]
    assert found["extract: clip_vit_b32"][:7] == ["2", "96 s of video", "8.0", "–", "–", "100.5", "12.0"]


def test_the_parts_of_jobs_are_added_up_and_the_busiest_is_named(pages):
    """Two shards, each 48 s of video in 4 s, of which the encoder is busy for 2 s: 24 seconds of video per second."""
    lines = re.findall(r"<tr>(.*?)</tr>", pages["report"].read_text(), re.DOTALL)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in lines]
    assert [row[1:] for row in rows if row[:1] == ["extract: clip_vit_b32"] and len(row) == 6] == [
        ["start", "2.0", "25%", "–", ""],
        ["reading", "1.0", "12%", "96.0", ""],
        ["encoder", "4.0", "50%", "24.0", "for this part"],
        ["writing", "0.0", "0%", "–", ""],
    ]


def test_confusion_counts_answers():
    answers = [f"a{n:02}" for n in range(CONFUSED + 2) for _ in range(40 - n)]
    given = ["a01" if answer in ("a00", "a17") else answer for answer in answers]
    names, rows = confusion(pd.DataFrame({"answer": answers, "prediction": given}))
    assert names == [f"a{n:02}" for n in range(CONFUSED)]
    assert rows[0][1] == (40, 1.0) and rows[0][0] == (0, 0.0) and rows[2][2] == (38, 1.0)


def test_an_answer_may_be_called_other():
    answers = ["other"] * 3 + ["a"] * 2
    names, rows = confusion(pd.DataFrame({"answer": answers, "prediction": ["other", "b", "a", "other", "b"]}))
    assert names == ["other", "a"]
    assert [[count for count, _ in row] for row in rows] == [[1, 1, 1], [1, 0, 1]]


def test_an_explanation_agrees_with_the_scores(folder):
    for name in ("av_master", "pooled"):
        run = folder / "models" / name / "seed-0"
        scores, found = (json.loads((run / f"{n}.json").read_text()) for n in ("scores", "explanation"))
        changed = found["contributions"]
        assert changed["as trained"]["overall"] == scores["overall"]
        # Neighbouring videos have opposite answers, which only the visual features hold.
        assert changed["visual"]["overall"]["accuracy"] < changed["as trained"]["overall"]["accuracy"] - 0.5
        assert abs(changed["audio"]["overall"]["accuracy"] - scores["overall"]["accuracy"]) <= 0.25
    found = json.loads((folder / "models" / "av_master" / "seed-0" / "explanation.json").read_text())
    steps = evaluate_by_second(folder / "models" / "av_master" / "seed-0")
    np.testing.assert_allclose(found["by_second"], steps["accuracy"], atol=1e-4)
    for example in found["word_attention"]:
        assert example["tokens"] == ["(start)", *re.findall(r"\w+|\?", example["question"].lower()), "(end)"]
        for shares in example["attention"].values():
            assert len(shares) == len(example["tokens"]) and 0 < sum(shares) <= 1
    assert len(found["preference_features"]["audio"]) == len(found["preference_features"]["answers"]) == 8


def test_look_at_a_video_of_a_data_set(config, folder, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    out = tmp_path / "page.html"
    assert main(["look", "v33", "--config", str(tmp_path / "c.yaml"), "--out", str(out)]) == 0
    assert "num_segments: 3 of 3" in capsys.readouterr().out
    page = out.read_text()
    assert "Is it playing?" in page or "Is it loud?" in page
    assert page.count("<figcaption>") == 3 and "av_master" in page
    assert main(["look", "v32", "--config", str(tmp_path / "c.yaml"), "--out", str(out)]) == 0
    assert "cannot be read" in out.read_text()
    assert main(["look", "v20", "--config", str(tmp_path / "c.yaml"), "--out", str(out)]) == 0, "a training video"
    page = out.read_text()
    assert ("Is it playing?" in page or "Is it loud?" in page) and "✓" not in page and "✗" not in page
    assert main(["look", "nosuch", "--config", str(tmp_path / "c.yaml")]) == 1
    assert "nosuch" in capsys.readouterr().err
