"""Annotation files as rows of questions."""

import json
import os
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.formats import music_avqa, read_annotations
from pipeline.data.formats.base import Record
from pipeline.data.formats.music_avqa import fill_slots
from pipeline.errors import AVQAError


def record(video_id="00000001", answer="yes", **changes):
    return {
        "video_id": video_id,
        "question_id": 7,
        "type": '["Audio-Visual", "Existential"]',
        "question_content": "Is the <Object> in the video always playing?",
        "templ_values": '["violin"]',
        "question_deleted": 0,
        "anser": answer,
        **changes,
    }


@pytest.mark.parametrize("video_id", ["../v0", "/etc/passwd", "a/b", "..", ".hidden", "", "a\\b", "a\nb", "a\x00"])
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, video_id):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record(), record(video_id)]))
    with pytest.raises(AVQAError, match=r"train\.json: record 1: video_id"):
        read_annotations(path, "train")


@pytest.mark.parametrize(("video_id", "said"), [(93, "93"), (None, "null"), (["1"], r'\["1"\]')])
def test_an_id_that_is_no_text_is_refused_in_these_words(tmp_path, video_id, said):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([record(video_id)]))
    with pytest.raises(AVQAError, match=rf"record 0: video_id must be a text, in quotes, not {said}"):
        read_annotations(path, "train")


@given(st.text(min_size=1, max_size=12))
def test_no_id_leads_out_of_the_folder(tmp_path_factory, video_id):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps([record(video_id)]))
    try:
        read_annotations(path, "train")
    except AVQAError:
        return
    inside = os.path.normpath(os.path.join("folder", video_id + ".mp4"))
    assert os.path.dirname(inside) == "folder" and "\t" not in video_id


def test_csv_with_the_same_columns_reads_the_same(tmp_path):
    records = [record("00000093"), record("00000094", "no", templ_values='["piano"]')]
    (tmp_path / "a.json").write_text(json.dumps(records))
    pd.DataFrame(records).to_csv(tmp_path / "a.csv", index=False)
    pd.testing.assert_frame_equal(
        read_annotations(tmp_path / "a.json", "train"), read_annotations(tmp_path / "a.csv", "train")
    )


PLAIN_CSV = "video_id,question,answer\n"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (PLAIN_CSV + "v0,Who plays, and where?,yes\nv1,Who sings, and where?,no\n", "record 0 has 1 fields more"),
        (PLAIN_CSV + "v0,Who?,yes\nv1,Who sings, and where?,no\n", "record 1 has 1 fields more"),
        (PLAIN_CSV + "v0,Who?,yes,\nv1,Who?,no,\n", "record 0 has 1 fields more"),
        ("video_id,question,answer,answer\nv0,Who?,yes,no\n", "has several columns of one name"),
        (PLAIN_CSV + 'v0,"Who?,yes\nv1,Who?,no\n', "not JSON, CSV or Parquet"),
        (PLAIN_CSV + "v0,Who?\n", "record 0: field answer must be"),
    ],
)
def test_csv_whose_fields_are_not_those_of_its_header_is_refused(tmp_path, text, named):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(AVQAError, match=r"a\.csv: " + named):
        read_annotations(tmp_path / "a.csv", "train", "plain")


def test_a_record_of_another_split_than_its_file_is_named(tmp_path):
    """As where one file that names its splits is given for each of them: the test would be trained on."""
    (tmp_path / "a.csv").write_text("video_id,question,answer,split\nv0,Who?,yes,train\nv1,Who?,no,test\n")
    assert read_annotations(tmp_path / "a.csv", None, "plain")["split"].tolist() == ["train", "test"]
    with pytest.raises(AVQAError, match=r"a\.csv: record 1: field split is test, and .* annotations\.train"):
        read_annotations(tmp_path / "a.csv", "train", "plain")


def test_csv_with_an_index_quotes_and_rows_without_their_last_fields(tmp_path):
    (tmp_path / "a.csv").write_text(
        ',video_id,question,answer,type\n0,0012,"Who, ""A""?",nan\n\n1,1e5,Who?,null,Which\n'
    )
    table = read_annotations(tmp_path / "a.csv", "train", "plain")
    assert table[["video_id", "question", "answer", "type"]].to_numpy().tolist() == [
        ["0012", 'Who, "A"?', "nan", "All"],
        ["1e5", "Who?", "null", "Which"],
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"type": "Audio"}, "type"),
        ({"type": '["Audio"]'}, "type"),
        ({"templ_values": "[]"}, "1 slots, templ_values 0"),
        ({"templ_values": '["a", "b"]'}, "1 slots, templ_values 2"),
        ({"templ_values": "[1]"}, "templ_values"),
        ({"anser": None}, "anser"),
        ({"anser": " "}, "anser"),
        ({"question_content": ""}, "question_content"),
        ({"question_content": None}, "question_content"),
        ({"video_id": None}, "video_id"),
        ({"video_id": "a\nb"}, r"video_id 'a\\nb' has a line break"),
        ({"video_id": "a\x7f"}, "video_id .* control character"),
        ({"video_id": "a\ud800"}, "video_id 'a.ud800' has NUL or half of a surrogate pair"),
        ({"question_content": "Is the <Object> \ud83c?"}, "question 'Is the .*half of a surrogate pair"),
        ({"question_content": "Is the <Object>\0?"}, "question 'Is the .*has NUL"),
        ({"anser": "\udfff"}, "answer '.udfff'"),
        ({"templ_values": '["\\ud800"]'}, "question .*half of a surrogate pair"),
        ({"anser": float("nan")}, "anser must be a text that is not empty, not NaN"),
        ({"question_id": float("nan")}, "question_id must be a text"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, named):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([record(), record(**changes)]))
    with pytest.raises(AVQAError, match=rf"bad\.json: record 1: .*{named}"):
        read_annotations(path, "train")


@pytest.mark.parametrize("value", [b"violin", Decimal("1.5")])
def test_values_that_only_parquet_has_are_named(tmp_path, value):
    columns = {"video_id": ["a"], "question": ["Which?"], "answer": [value]}
    pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
    with pytest.raises(AVQAError, match=r"bad\.parquet: record 0: field answer must be a text"):
        read_annotations(tmp_path / "bad.parquet", "train", "plain")


def test_whole_characters_of_any_kind_are_kept(tmp_path):
    texts = ["\U0001f3bb?", "\u200f\u0643\u0645\u061f", "e\u0301\u2028\x7f\u202e?", "...?!", "word " * 2000 + "end"]
    rows = [{"video_id": "a", "question": text, "answer": text} for text in texts]
    (tmp_path / "a.json").write_text(json.dumps(rows))  # a pair of surrogates is one character
    table = read_annotations(tmp_path / "a.json", "train", "plain")
    assert table["question"].tolist() == table["answer"].tolist() == texts


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "[1]", '[{"video_id": "a"}]', "\x00\xff", pytest.param("[" * 100_000, id="deep")]
)
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(AVQAError, match=r"odd\.json"):
        read_annotations(tmp_path / "odd.json", "train")


@given(st.lists(st.tuples(st.text("abc ", max_size=5), st.text("xyz<>", min_size=1, max_size=5)), max_size=4))
def test_slots_are_filled_in_order(pieces):
    template = "Q " + "".join(f"{before}<Slot>" for before, _ in pieces) + "?"
    expected = "Q " + "".join(before + value for before, value in pieces) + "?"
    record = Record({"question_content": template, "templ_values": [value for _, value in pieces]}, "here")
    assert fill_slots(record) == expected


@pytest.mark.parametrize(
    ("name", "records", "videos", "texts"),
    [
        ("music_avqa_test", 9129, 6399, 1298),
        ("music_avqa_val", 4568, 3815, 893),
        ("music_avqa_train_fake", 6233, 1861, 1092),
        ("music_avqa_test_real", 7402, 5126, 1023),
        ("music_avqa_v2_test_balance", 10819, 7138, 1416),
        ("music_avqa_v2_test_bias", 9119, 6456, 1307),
    ],
)
def test_official_annotations(shared, name, records, videos, texts):
    table = read_annotations(shared / "annotations" / f"{name}.json", "test")
    assert (len(table), table["video_id"].nunique(), table["question"].nunique()) == (records, videos, texts)
    assert not table["question"].str.contains("[<>？]").any()


def avqa_record(**changes):
    return {
        "id": 183,
        "video_name": "-HG3Omg_89c_000030",
        "video_id": 341,
        "question_text": "What happened in the video?",
        "multi_choice": ["motorboat", "Yacht consignment", " Sailboat set sail ", None],
        "answer": 2,
        "question_relation": "Both",
        "question_type": "Happening",
        **changes,
    }


def test_avqa_answers_are_chosen_among_the_questions_own(tmp_path):
    path = tmp_path / "val_qa.json"
    path.write_text(json.dumps([avqa_record(), avqa_record(id=184, answer=0)]))
    table = read_annotations(path, "val", "avqa")
    assert table["answer"].tolist() == ["Sailboat set sail", "motorboat"]
    assert table["choices"].tolist() == [["motorboat", "Yacht consignment", "Sailboat set sail"]] * 2
    first = table.iloc[0]
    assert (first["video_id"], first["question_id"]) == ("-HG3Omg_89c_000030", "183")
    assert (first["scenario"], first["type"], first["split"]) == ("Both", "Happening", "val")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"answer": 3}, "answer"),  # null
        ({"answer": 4}, "answer"),
        ({"answer": -1}, "answer"),
        ({"answer": None}, "answer"),
        ({"multi_choice": "abcd"}, "multi_choice"),
        ({"multi_choice": [1, 2]}, "multi_choice"),
        ({"question_text": ""}, "question_text"),
        ({"video_name": "../x"}, "video_name"),
    ],
)
def test_bad_avqa_records_are_named(tmp_path, changes, named):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([avqa_record(), avqa_record(**changes)]))
    with pytest.raises(AVQAError, match=rf"bad\.json: record 1: .*{named}"):
        read_annotations(path, "val", "avqa")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(AVQAError, match=r"annotations\.train must name one file"):
        read_annotations(tmp_path, "train")


def test_the_prompt_of_a_question(tmp_path):
    contents = [
        ("Is the <Object> louder than the <Object>?", '["violin", "flute"]'),
        ("How many sounding <Object> in the video？", '["violin"]'),  # as the release writes it
        ("Which violin is it?", "[]"),  # rephrased: without a template
    ]
    records = [record(question_content=content, templ_values=values) for content, values in contents]
    (tmp_path / "a.json").write_text(json.dumps(records))
    prompts = read_annotations(tmp_path / "a.json", "train")["prompt"]
    assert "violin" in prompts[0] and "flute" in prompts[0] and prompts[0].index("violin") < prompts[0].index("flute")
    assert "violin" in prompts[1] and pd.isna(prompts[2])


@pytest.mark.parametrize("name", ["test", "val"])
def test_every_question_of_music_avqa_has_a_prompt(shared, name):
    table = read_annotations(shared / "annotations" / f"music_avqa_{name}.json", "test")
    assert table["prompt"].notna().all()
    for prompt, keywords in zip(table["prompt"], table["keywords"], strict=True):
        assert all(value in prompt for value in keywords), (prompt, keywords)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "template,prompt\nIs the <Object> loud?,The {1} is loud\n",
            r"is 'The \{1\} is loud'; it may have \{0\}",
        ),
        ("template,prompt\nIs the <Object> loud?,The {0 is loud\n", "prompt of 'Is the <Object> loud"),
        ("template;prompt\nIs the <Object> loud?;loud\n", "columns template and prompt"),
        ("template,prompt\nIs the <Object> loud?\n", "columns template and prompt"),
        ("", "columns template and prompt"),
    ],
)
def test_a_mistake_in_the_prompts_is_named(tmp_path, monkeypatch, text, named):
    (tmp_path / "prompts.csv").write_text(text)
    (tmp_path / "a.json").write_text(json.dumps([record(question_content="Is the <Object> loud?")]))
    monkeypatch.setattr(music_avqa, "PROMPTS", tmp_path / "prompts.csv")
    music_avqa.prompts.cache_clear()
    try:
        with pytest.raises(AVQAError, match=r"prompts\.csv: .*" + named):
            read_annotations(tmp_path / "a.json", "train")
    finally:
        music_avqa.prompts.cache_clear()
