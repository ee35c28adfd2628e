"""The numbers of answers and words, against a plain recomputation from the annotation files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.cards import card_names, read_card
from pipeline.config import check_configs
from pipeline.errors import AVQAError
from pipeline.manifest import build_manifest

ANSWERS = ("yes", "no", "two", "zebra")
RECORDS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(ANSWERS), st.sampled_from(("Is it loud?", "How many are there?"))),
    min_size=1,
    max_size=12,
)


def record(video, answer, question):
    return {"video_id": f"v{video}", "question": question, "answer": answer, "scenario": "Audio", "type": "Counting"}


def write(folder, splits):
    """A data set in the form `plain`, with the files of all six videos, and its configuration."""
    (folder / "videos").mkdir()
    for n in range(6):
        (folder / "videos" / f"v{n}.mp4").write_bytes(b"x")
    for split, rows in splits.items():
        (folder / f"{split}.json").write_text(json.dumps([record(*row) for row in rows]))
    return {
        "dataset": "mine",
        "results": str(folder / "results"),
        "format": "plain",
        "allow_missing": True,
        "videos": {"collection": "clips", "folder": str(folder / "videos")},
        "annotations": {split: str(folder / f"{split}.json") for split in splits},
    }


def make(config, name="mine"):
    """The manifest, the table of questions and that of those left out."""
    checked = check_configs(json.loads(json.dumps(config)), sections=("videos",))[name]
    build_manifest(checked)
    folder = Path(checked["results"], name)
    tables = [pd.read_parquet(folder / f"{table}.parquet") for table in ("questions", "left_out")]
    return json.loads((folder / "manifest.json").read_text()), *tables


def in_order(values):
    """Each different value once, as they first occur."""
    found = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


@settings(max_examples=30, deadline=None)
@given(RECORDS, RECORDS, st.sets(st.integers(0, 5), max_size=5), st.sets(st.integers(0, 5), min_size=1))
def test_numbers_are_those_of_the_published_training_questions(tmp_path_factory, train, test, missing, allowed):
    """Whichever videos are missing and whichever `video_ids` leaves out; and both tables are the published files."""
    config = write(tmp_path_factory.mktemp("n"), {"train": train, "test": test})
    for n in missing:
        Path(config["videos"]["folder"], f"v{n}.mp4").unlink()
    config["video_ids"] = f"v[{''.join(map(str, sorted(allowed)))}]"
    if not {video for video, *_ in train + test} & allowed - missing:
        return  # an error, which other tests are about
    manifest, questions, left_out = make(config)
    assert manifest["answers"] == in_order(answer for _, answer, _ in train)
    words = in_order(word for *_, text in train for word in text.rstrip("?").split(" "))
    assert manifest["words"]["tokens"] == words and manifest["words"]["type"] == ["Audio", "Counting"]
    assert manifest["longest"]["tokens"] == max(text.count(" ") + 1 for *_, text in train)
    both = pd.concat([questions.assign(reason="kept"), left_out]).sort_values("record")
    assert both["record"].tolist() == list(range(len(train) + len(test)))
    columns = both[["split", "video_id", "answer", "question", "reason", "answer_id"]].itertuples(
        index=False, name=None
    )
    for (split, row), found in zip([("train", r) for r in train] + [("test", r) for r in test], columns, strict=True):
        reason = "filtered" if row[0] not in allowed else "missing" if row[0] in missing else "kept"
        number = manifest["answers"].index(row[1]) if row[1] in manifest["answers"] else -1
        assert found == (split, f"v{row[0]}", row[1], row[2], reason, number)
    assert [name for name in left_out if name != "reason"] == list(questions)


TRAIN = [(0, "two", "How many are there?"), (1, "yes", "Is it loud?"), (2, "no", "Is it loud?")]
TEST = [(3, "no", "Is it loud?"), (4, "zebra", "How many zebras are there?"), (5, "two", "How many are there?")]


@pytest.mark.parametrize(
    "given",
    [
        ["no", "zebra", "two", "yes"],
        {"yes": 3, "no": 0, "two": 2, "zebra": 1},
        {"ans2ix": {"yes": 3, "no": 0, "two": 2, "zebra": 1}, "max_que_len": 14},
    ],
)
@pytest.mark.parametrize("place", ["configuration", "file"])
def test_a_list_of_answers_comes_first(tmp_path, given, place):
    config = write(tmp_path, {"train": TRAIN, "test": TEST})
    (tmp_path / "list.json").write_text(json.dumps(given))
    if place == "configuration" and isinstance(given, dict):
        with pytest.raises(AVQAError, match="answers"):
            make(config | {"answers": given})
        return
    manifest, questions, _ = make(
        config | {"answers": given if place == "configuration" else str(tmp_path / "list.json")}
    )
    assert manifest["answers"] == ["no", "zebra", "two", "yes"]
    assert questions["answer_id"].tolist() == [2, 3, 0, 0, 1, 2]


@pytest.mark.parametrize(
    "wrong", [{"yes": 0, "no": 0}, {"yes": 1, "no": 2}, {"yes": 0, "no": True}, {"yes": 0, "no": "1"}, {}, [], "yes", 3]
)
def test_numbers_of_answers_that_are_none(tmp_path, wrong):
    config = write(tmp_path, {"train": TRAIN, "test": TEST})
    (tmp_path / "list.json").write_text(json.dumps(wrong))
    with pytest.raises(AVQAError, match=r"list\.json: must "):
        make(config | {"answers": str(tmp_path / "list.json")})


def scored(config, folder, **changes):
    """The same annotations as a data set that is trained, and one that is only scored, with the test questions."""
    own = {name: config.pop(name) for name in ("dataset", "annotations")}
    test = {"annotations": {"test": own["annotations"]["test"]}, "trained_on": ["mine"], **changes}
    return config | {"datasets": {"other": test, "mine": {"annotations": own["annotations"]}}}


def test_a_data_set_that_is_only_scored_has_the_numbers_of_what_it_is_trained_on(tmp_path):
    config = scored(write(tmp_path, {"train": TRAIN, "test": TEST}), tmp_path)
    for video in ("v0", "v3"):
        (tmp_path / "videos" / f"{video}.mp4").unlink()
    manifest, questions, left_out = make(config, "other")
    assert manifest["answers"] == ["two", "yes", "no"] and manifest["words"]["tokens"][:2] == ["How", "many"]
    assert questions["answer_id"].tolist() == [-1, 0] and left_out["answer_id"].tolist() == [2]
    config["datasets"]["mine"]["answers"] = ["zebra", "no", "yes", "two"]
    manifest, questions, _ = make(config, "other")
    assert manifest["answers"] == ["zebra", "no", "yes", "two"] and questions["answer_id"].tolist() == [0, 3]
    config["datasets"]["other"]["answers"] = ["two", "zebra"]
    manifest, questions, _ = make(config, "other")
    assert manifest["answers"] == ["two", "zebra"] and questions["answer_id"].tolist() == [1, 0]


def test_digests_change_with_the_numbers_that_decide(tmp_path):
    config = write(tmp_path, {"train": TRAIN, "test": TEST})
    manifest, questions, _ = make(config)
    assert list(questions)[-2:] == ["record", "answer_id"]
    again, _, _ = make(config)
    assert (again["training"], again["test"]) == (manifest["training"], manifest["test"])
    (tmp_path / "videos" / "v2.mp4").unlink()  # the last answer of training: no number moves
    fewer, questions, _ = make(config)
    assert fewer["answers"] == manifest["answers"]
    assert fewer["training"] != manifest["training"] and fewer["test"] == manifest["test"]
    first = make(config | {"answers": written(tmp_path, manifest["answers"][::-1])})[0]
    assert first["training"] != fewer["training"] and first["test"] != fewer["test"]


def written(folder, answers):
    """A file with a list of answers."""
    (folder / "answers.json").write_text(json.dumps(answers))
    return str(folder / "answers.json")


OFFICIAL = {  # file of the release: its split, and the card
    "music_avqa_test.json": ("test", "music_avqa"),
    "music_avqa_val.json": ("val", "music_avqa"),
    "music_avqa_train_union.json": ("train", "music_avqa"),
    "music_avqa_test_real.json": ("test", "music_avqa_real"),
    "music_avqa_v2_test_balance.json": ("test", "music_avqa_v2_balanced"),
    "music_avqa_v2_valid_balance.json": ("val", "music_avqa_v2_balanced"),
    "music_avqa_v2_test_bias.json": ("test", "music_avqa_v2_biased"),
    "music_avqa_v2_valid_bias.json": ("val", "music_avqa_v2_biased"),
}


@pytest.mark.parametrize("file", OFFICIAL)
def test_official_files_alone_are_numbered_as_the_release(shared, tmp_path, file):
    """The test and validation files of MUSIC-AVQA have 41 of its 42 answers."""
    split, card = OFFICIAL[file]
    path = shared / "annotations" / file
    records = json.loads(path.read_text(encoding="utf-8"))
    (tmp_path / "videos").mkdir()
    for name in {record["video_id"] for record in records[::7]}:
        (tmp_path / "videos" / f"{name}.mp4").write_bytes(b"x")
    config = {"dataset": "mine", "card": card, "allow_missing": True, "results": str(tmp_path / "results")}
    config |= {"videos": {"collection": "c", "folder": str(tmp_path / "videos")}, "annotations": {split: str(path)}}
    manifest, questions, left_out = make(config)
    published = json.loads(
        (shared / "annotations" / f"answers_music_avqa{'_v2' if 'v2' in card else ''}.json").read_text()
    )
    expected = published["ans2ix"]
    assert manifest["answers"] == sorted(expected, key=expected.get) and len(expected) == 42
    both = pd.concat([questions, left_out]).sort_values("record")
    assert both["answer_id"].tolist() == [expected[record["anser"].strip()] for record in records]
    np.testing.assert_array_equal(both["record"], np.arange(len(records)))


@pytest.mark.parametrize("name", card_names())
def test_a_card_numbers_answers_itself_or_names_a_card_that_does(name):
    card = read_card(name)
    listed = read_card(card["answers_of"])["answers"] if "answers_of" in card else card.get("answers", ["one"])
    assert not {"answers", "answers_of"} <= card.keys()
    assert all(type(answer) is str and answer.strip() == answer for answer in listed)
    assert len(set(listed)) == len(listed)


def test_a_training_answer_that_the_cards_list_lacks(tmp_path):
    config = write(tmp_path, {"train": TRAIN, "test": TEST}) | {"card": "music_avqa"}
    make(config)
    (tmp_path / "train.json").write_text(json.dumps([record(*TEST[1])]))
    with pytest.raises(
        AVQAError, match=r"manifests/music_avqa\.yaml: its list .* 'zebra'; give the list|answers: in the"
    ):
        make(config)
    assert make(config | {"answers": ["zebra"]})[0]["answers"] == ["zebra"]
