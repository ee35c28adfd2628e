"""The published annotation files against the counts on their cards, and the forms that other releases have."""

import json
import re

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cards import card_names, compare, read_card
from pipeline.config import check_config
from pipeline.data.formats import FORMATS, read_annotations
from pipeline.errors import AVQAError
from pipeline.manifest import build_manifest, find_videos, read_questions

RELEASED = [  # card, split, file, and how many counts of the card it has to fit
    ("music_avqa", "test", "music_avqa_test", 11),
    ("music_avqa", "val", "music_avqa_val", 11),
    ("music_avqa_real", "test", "music_avqa_test_real", 11),
    ("music_avqa_v2_balanced", "test", "music_avqa_v2_test_balance", 12),
    ("music_avqa_v2_biased", "test", "music_avqa_v2_test_bias", 11),
]


@pytest.mark.parametrize("name", card_names())
def test_a_card_says_what_a_configuration_needs(name):
    card = read_card(name)
    assert {"title", "paper", "source", "licence", "published"} <= card.keys()
    assert card["format"] in FORMATS and card["seconds"] > 0 and "test" in card["annotations"]


@pytest.mark.parametrize("name", card_names())
def test_every_count_of_a_card_has_a_source(name):
    for counts in read_card(name)["published"].values():
        numbers = {count: value for count, value in counts.items() if count != "source"}
        assert counts["source"].strip() and numbers and all(type(value) is int for value in numbers.values())
        known = re.compile(r"((train|val|test)\.)?(videos|questions)|(train|val|test)\.[\w-]+/\w+")
        assert [count for count in numbers if not known.fullmatch(count)] == []


@pytest.mark.parametrize(("card", "split", "file", "count"), RELEASED, ids=[file for _, _, file, _ in RELEASED])
def test_counts_of_the_release(shared, card, split, file, count):
    questions = read_annotations(shared / "annotations" / f"{file}.json", split)
    lines = [line for line in compare(read_card(card), questions) if not line.startswith("paper: ")]
    assert len(lines) == count and all(line.endswith(": equal") for line in lines), lines
    fewer = compare(read_card(card), questions.iloc[1:])
    assert any("differs by -1" in line for line in fewer)


def test_the_articles_counts_differ_from_the_release(shared):
    lines = compare(read_card("music_avqa"), read_annotations(shared / "annotations" / "music_avqa_test.json", "test"))
    assert "paper: test.questions: published 9185, read 9129: differs by -56" in lines


def test_the_real_videos_only(shared, tmp_path):
    card = {"dataset": "mine", "card": "music_avqa_real", "videos": {"collection": "c", "folder": str(tmp_path)}}
    config = check_config(
        card | {"annotations": {"test": str(shared / "annotations" / "music_avqa_test.json")}}, sections=("dataset",)
    )
    questions = read_questions(config)
    assert len(questions) == 7365 and questions["video_id"].str.fullmatch("[0-9]+").all()


QUESTION = {
    "video_id": "a",
    "type": '["Audio", "Counting"]',
    "question_content": "Could you say how many instruments are heard?",
    "templ_values": '["violin"]',
    "anser": "two",
}


def test_r_as_csv_with_a_byte_order_mark_and_repeated_ids(tmp_path):
    """R's questions are rephrased: no slots are left, and a question_id stands for all phrasings."""
    records = [QUESTION | {"question_id": 12, "question_content": f"Phrase {n}?"} for n in range(3)]
    pd.DataFrame(records).to_csv(tmp_path / "head.csv", index=False, encoding="utf-8-sig")
    assert (tmp_path / "head.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    table = read_annotations(tmp_path / "head.csv", "test", part="head")
    assert table["video_id"].tolist() == ["a"] * 3 and table["question"].tolist() == [
        r["question_content"] for r in records
    ]
    assert table["question_id"].tolist() == ["12"] * 3 and set(table["part"]) == {"head"}


def test_fortis_names_the_part_of_each_question_and_has_no_slots(tmp_path):
    """As the README of its repository shows its records."""
    records = [QUESTION | {"question_id": 2945, "split": part, "x": 0.79} for part in ("tail", "head", "tail")]
    for record in records:
        del record["templ_values"]
    (tmp_path / "a.json").write_text(json.dumps(records))
    table = read_annotations(tmp_path / "a.json", "test")
    assert table["part"].tolist() == ["tail", "head", "tail"] and set(table["split"]) == {"test"}
    assert table["keywords"].isna().all()


def test_lists_as_python_writes_them(tmp_path):
    record = QUESTION | {"type": "['Audio', 'Counting']", "question_content": "A <x>?", "templ_values": "['drum']"}
    pd.DataFrame([record]).to_csv(tmp_path / "a.csv", index=False)
    table = read_annotations(tmp_path / "a.csv", "test")
    assert table.loc[0, ["scenario", "type", "question"]].tolist() == ["Audio", "Counting", "A drum?"]


def test_v2_rows_without_question_id_and_with_a_full_width_mark(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([QUESTION | {"question_content": "How many？", "templ_values": "[]"}]))
    table = read_annotations(tmp_path / "a.json", "test")
    assert table["question"].tolist() == ["How many?"] and table["question_id"].isna().all()


def test_valor(tmp_path):
    record = {"video_id": "v", "question": "What?", "options": ["a dog", "a cat"], "correct_answer_idx": 1}
    (tmp_path / "a.json").write_text(json.dumps([record, record | {"modality": "audio", "category": "sound"}]))
    table = read_annotations(tmp_path / "a.json", "test", "valor_avqa")
    assert table["answer"].tolist() == ["a cat"] * 2 and table["choices"].tolist() == [["a dog", "a cat"]] * 2
    assert table["scenario"].tolist() == ["Audio-Visual", "audio"]
    (tmp_path / "a.json").write_text(json.dumps([record | {"correct_answer_idx": 2}]))
    with pytest.raises(AVQAError, match=r"a\.json: record 0: field correct_answer_idx must be the index of one of"):
        read_annotations(tmp_path / "a.json", "test", "valor_avqa")


PLAIN = [
    {"video_id": "a", "question": "Q1?", "answer": "yes", "split": "train", "question_id": "7"},
    {"video_id": "b", "question": "Q2?", "answer": "x", "split": "test", "question_id": "8"},
]


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_plain_files_of_every_kind_read_the_same(tmp_path, kind):
    path, frame = tmp_path / f"a.{kind}", pd.DataFrame(PLAIN).assign(choices=["yes|no", "x|y|z"])
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.assign(choices=frame["choices"].str.split("|")).to_parquet(path)
    else:
        path.write_text(json.dumps(frame.to_dict("records")))
    table = read_annotations(path, None, "plain")
    assert table["split"].tolist() == ["train", "test"] and table["answer"].tolist() == ["yes", "x"]
    assert table["choices"].tolist() == [["yes", "no"], ["x", "y", "z"]] and table["question_id"].tolist() == ["7", "8"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"split": ""}, "split"), ({"split": "dev"}, "split"), ({"answer": ""}, "answer"), ({"choices": "a|b"}, "answer")],
)
def test_plain_mistakes_are_named(tmp_path, change, named):
    pd.DataFrame([PLAIN[0], PLAIN[1] | change]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(AVQAError, match=rf"a\.csv: record 1: field {named}"):
        read_annotations(tmp_path / "a.csv", None, "plain")


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.sampled_from(["flip", "part_v0_flip", "v1_flip/videos"]))
def test_a_mirrored_video_comes_from_its_original_where_its_own_file_is_absent(tmp_path_factory, present, name):
    """Also where the id of a mirrored one stands elsewhere in the path of its original."""
    folder = tmp_path_factory.mktemp("mirrored") / name
    folder.mkdir(parents=True)
    for n, own in enumerate(present):
        (folder / f"v{n}.mp4").write_bytes(b"x")
        if own:
            (folder / f"v{n}_flip.mp4").write_bytes(b"xy")
    videos = {"folder": str(folder), "pattern": "{video_id}.mp4", "follow_links": False}
    found, missing = find_videos([f"v{n}_flip" for n in range(len(present))] + ["w_flip"], videos)
    assert missing == ["w_flip"] and [video.mirrored for video in found] == [not own for own in present]


def test_a_published_list_of_answers_gives_the_numbers(tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"x")
    pd.DataFrame([PLAIN[0], PLAIN[0] | {"answer": "no"}]).drop(columns="split").to_csv(tmp_path / "a.csv", index=False)
    (tmp_path / "answers.json").write_text(json.dumps(["no", "yes", "two"]))
    config = {
        "dataset": "mine",
        "results": str(tmp_path / "results"),
        "videos": {"collection": "c", "folder": str(tmp_path / "v")},
        "annotations": {"train": str(tmp_path / "a.csv")},
        "format": "plain",
    }
    for answers, numbers in ((None, [0, 1]), ("answers.json", [1, 0])):
        own = dict(config, **({"answers": str(tmp_path / answers)} if answers else {}))
        build_manifest(check_config(own, sections=("dataset",)))
        table = pd.read_parquet(tmp_path / "results" / "mine" / "questions.parquet")
        assert table["answer_id"].tolist() == numbers
    described = json.loads((tmp_path / "results" / "mine" / "manifest.json").read_text())
    assert described["answers"] == ["no", "yes", "two"]
    (tmp_path / "answers.json").write_text(json.dumps(["no", "yes", "three"]))  # training has neither two nor three
    build_manifest(check_config(own, sections=("dataset",)))
    again = json.loads((tmp_path / "results" / "mine" / "manifest.json").read_text())
    assert again["training"] != described["training"] and again["test"] == described["test"]
    (tmp_path / "answers.json").write_text(json.dumps(["yes", "two"]))
    with pytest.raises(AVQAError, match=r"answers\.json: lacks 1 answers of training questions, as 'no'"):
        build_manifest(check_config(own, sections=("dataset",)))
    (tmp_path / "answers.json").write_text(json.dumps(["no", "yes", "\ud83c"]))
    with pytest.raises(AVQAError, match=r"answers\.json: '.ud83c' has NUL or half of a surrogate pair"):
        build_manifest(config | {"answers": str(tmp_path / "answers.json")})
    (tmp_path / "answers.txt").write_text("no \nyes\n")
    build_manifest(check_config(own | {"answers": str(tmp_path / "answers.txt")}, sections=("dataset",)))
    table = pd.read_parquet(tmp_path / "results" / "mine" / "questions.parquet")
    assert table["answer_id"].tolist() == [1, 0]
