"""Answers that differ in their form only: named, and one class where the configuration says so. The oracle knows which
answers are one because it made them: words in other cases, with other white space, in another Unicode form."""

import json
import shutil
import unicodedata
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learning import config, folder  # noqa: F401

from pipeline.config import check_configs
from pipeline.data.answers import plain
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate, evaluate_by_second
from pipeline.manifest import build_manifest, read_questions
from pipeline.reporting.overview import answer_counts
from pipeline.train import train

WORDS = ("yes", "more than ten", "café noir", "straße", "Ωmega", "x²", "x2")
ways = st.tuples(
    st.sampled_from([str, str.upper, str.title]),
    st.sampled_from([" ", "  ", "\u00a0", "\u2003 "]),
    st.sampled_from(["NFC", "NFD"]),
)
written = st.tuples(st.sampled_from(range(len(WORDS))), ways)
answers_of_a_split = st.lists(written, min_size=1, max_size=12)


def text_of(answer):
    word, (case, space, form) = answer
    return unicodedata.normalize(form, case(WORDS[word]).replace(" ", space))


def write(tmp_path, name, splits, choices=None, **more):
    """A data set of one video with these answers; the configuration as one of several would be passed on."""
    (tmp_path / "videos").mkdir(exist_ok=True)
    (tmp_path / "videos" / "v.mp4").write_bytes(b"x")
    files = {}
    for split, answers in splits.items():
        rows = [{"video_id": "v", "question": "Which?", "answer": text_of(answer)} for answer in answers]
        for row in rows if choices else ():
            row["choices"] = [row["answer"], *map(text_of, choices)]
        files[split] = str(tmp_path / f"{name}-{split}.json")
        (tmp_path / f"{name}-{split}.json").write_text(json.dumps(rows))
    videos = {"collection": "c", "folder": str(tmp_path / "videos"), "pattern": "{video_id}.mp4", "follow_links": False}
    common = {"results": str(tmp_path / "results"), "format": "plain", "allow_missing": False, "shard_size": 3}
    return common | {"dataset": name, "videos": videos, "annotations": files, "trained_on": ["d"]} | more


def made(config):  # noqa: F811
    build_manifest(config)
    place = config["results"] + "/" + config["dataset"]
    with open(f"{place}/manifest.json") as file:
        return pd.read_parquet(f"{place}/questions.parquet"), json.load(file)


def most_frequent(answers):
    """The ways in which most of the answers write each word."""
    counts = {word: Counter(text_of(answer) for answer in answers if answer[0] == word) for word, _ in answers}
    return {word: {text for text, n in count.items() if n == max(count.values())} for word, count in counts.items()}


@given(written, written)
def test_two_answers_are_one_where_they_differ_in_form_only(one, other):
    assert (plain(text_of(one)) == plain(text_of(other))) == (one[0] == other[0])


@settings(max_examples=40, deadline=None)
@given(answers_of_a_split, answers_of_a_split, answers_of_a_split, st.booleans())
def test_merged_answers_are_one_class_in_all_splits_and_data_sets(tmp_path_factory, train, test, others, listed):
    folder = tmp_path_factory.mktemp("merged")  # noqa: F811
    own = write(folder, "d", {"train": train, "val": test, "test": test}, merge_answers=True)
    if listed:  # each word once, written in a way of its own, and one that nobody has
        own["answers"] = ["nobody", *(f" {word.upper()}" for word in WORDS)]
    other = write(folder, "r", {"test": others}, merge_answers=True)
    other["numbered_as"] = {name: own[name] for name in ("annotations", "format", "answers") if name in own}
    (table, manifest), (scored, numbers) = made(own), made(other)
    shown = most_frequent(train)
    assert len(manifest["answers"]) == (len(WORDS) + 1 if listed else len(shown))
    for (word, _), row in zip([*train, *test, *test], table.itertuples(), strict=True):
        assert row.answer in shown.get(word, {row.answer})
        assert row.answer_id == (word + 1 if listed else list(dict.fromkeys(w for w, _ in train)).index(word)
                                 if word in shown else -1)  # fmt: skip
    known = dict(zip((w for w, _ in [*train, *test, *test]), table["answer"], strict=True))
    for (word, _), row in zip(others, scored.itertuples(), strict=True):
        if word in shown:
            assert row.answer == known[word]
        assert (row.answer_id >= 0) == (listed or word in shown)
    assert table.groupby(table["answer"].map(plain))["answer"].nunique().eq(1).all()
    assert numbers["longest"] == manifest["longest"]
    (_, number), (_, unknown) = answer_counts(other, scored)
    assert int(number) == len(manifest["answers"]) and int(unknown) == sum(word not in shown for word, _ in others)
    pd.testing.assert_frame_equal(read_questions(own), table.drop(columns="answer_id"))  # what an import compares


@settings(max_examples=20, deadline=None)
@given(answers_of_a_split, answers_of_a_split)
def test_options_are_written_as_answers_are(tmp_path_factory, answers, options):
    config = write(  # noqa: F811
        tmp_path_factory.mktemp("options"),
        "d",
        dict.fromkeys(("train", "val", "test"), answers),
        options,
        merge_answers=True,
    )
    table, manifest = made(config)
    assert len(manifest["answers"]) == len({word for word, _ in answers})
    texts = {}
    for (word, _), row in zip(answers * 3, table.itertuples(), strict=True):
        assert row.choices[0] == row.answer
        for (of_option, _), option in zip([(word, None), *options], row.choices, strict=True):
            assert texts.setdefault(of_option, option) == option


def test_answers_of_several_forms_are_named_and_kept(tmp_path, caplog):
    yes, loud = (0, (str, " ", "NFC")), (0, (str.upper, " ", "NFC"))
    cafe, other = (2, (str, " ", "NFC")), (2, (str, " ", "NFD"))
    splits = {"train": [yes, yes, loud, cafe], "val": [yes], "test": [other, (1, (str, " ", "NFC"))]}
    config = write(tmp_path, "d", splits)  # noqa: F811
    table, manifest = made(config)
    assert manifest["answers"] == ["yes", "YES", "café noir"] and table["answer"].nunique() == 5
    (warning,) = [record.message for record in caplog.records if "merge_answers" in record.message]
    assert "2 answers" in warning and "'yes' (3), 'YES' (1)" in warning
    caplog.clear()
    scored = write(tmp_path, "r", {"test": [(0, (str.title, " ", "NFC"))]})
    scored["numbered_as"] = {name: config[name] for name in ("annotations", "format")}
    table, _ = made(scored)
    assert table["answer_id"].tolist() == [-1] and "'Yes' (1), 'yes' (0), 'YES' (0)" in caplog.text
    caplog.clear()
    before = manifest
    _, manifest = made(config | {"merge_answers": True})
    assert "merge_answers" not in caplog.text and manifest["answers"] == ["yes", "café noir"]
    assert before["training"] != manifest["training"] and before["test"] != manifest["test"]


def test_a_model_is_scored_on_answers_in_other_forms(config, folder, tmp_path):  # noqa: F811
    """Of a data set whose own numbers are in other forms as well, as where models of several are scored on it."""
    config["train"]["epochs"] = 3
    train(config, "av_master", 0, tmp_path / "run")
    expected = evaluate(tmp_path / "run", out=tmp_path / "own")
    steps = evaluate_by_second(tmp_path / "run", out=tmp_path / "own")
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    table = pd.read_parquet(other / "questions.parquet")
    assert set(table["answer"]) == {"yes", "no"}
    table["answer"] = [
        ("YES", " Yes ", "No")[n % 2 if answer == "yes" else 2] for n, answer in enumerate(table["answer"])
    ]
    table.to_parquet(other / "questions.parquet", index=False)
    manifest = json.loads((other / "manifest.json").read_text())
    for merged in (False, True):
        manifest |= {"answers": ["YES", "No"], "merge_answers": merged}
        (other / "manifest.json").write_text(json.dumps(manifest))
        scores = evaluate(tmp_path / "run", questions_of=other, out=tmp_path / "scored")
        assert scores["overall"]["accuracy"] == (expected["overall"]["accuracy"] if merged else 0)
    again = evaluate_by_second(tmp_path / "run", questions_of=other, out=tmp_path / "scored")
    np.testing.assert_array_equal(again["accuracy"], steps["accuracy"])


def test_a_model_with_two_forms_of_one_answer_is_not_scored_on_merged_ones(config, folder, tmp_path):  # noqa: F811
    """It would give either, and only one of them could be right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"answers": ["no", "yes", "YES"]}))
    config["train"]["epochs"] = 1
    train(config, "pooled", 0, tmp_path / "run")
    evaluate(tmp_path / "run")
    merged = manifest | {"answers": ["no", "yes"], "merge_answers": True}
    (folder / "manifest.json").write_text(json.dumps(merged))
    with pytest.raises(AVQAError, match=r"manifest\.json: merge_answers makes one answer of 'yes', 'YES', which"):
        evaluate(tmp_path / "run")


def test_data_sets_that_are_scored_with_each_others_models_merge_alike():
    own = {
        "videos": {"collection": "c", "folder": "v"},
        "encoders": {"clip_vit_b32": {"weights": "random"}, "vggish": {"weights": "random"}},
        "text": {"encoder": "clip_vit_b32", "weights": "random"},
        "models": {"pooled": {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}},
        "annotations": {"train": "a", "val": "b", "test": "c"},
    }
    datasets = {"d": {}, "r": {"trained_on": ["d"]}}
    configs = check_configs(own | {"datasets": datasets, "merge_answers": True})
    assert (
        configs["r"]["merge_answers"] is True and check_configs(own | {"dataset": "d"})["d"]["merge_answers"] is False
    )
    datasets["r"]["merge_answers"] = True
    with pytest.raises(AVQAError, match=r"r\.trained_on: merge_answers must be as in d"):
        check_configs(own | {"datasets": datasets})
