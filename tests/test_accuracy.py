"""scores.json and what is read from it, against plain counts of the predictions: scenarios and types are any texts."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.accuracy import entry_of, format_scores, keys_of, read_scores, score_all
from pipeline.config import check_config, scores_dir
from pipeline.errors import AVQAError
from pipeline.reporting.answers import contribution_table
from pipeline.reporting.scores import cross_table, paper_layout, score_table
from pipeline.results import COLUMNS, format_results, own_results, wide

AWKWARD = [
    "",
    "A",
    "B",
    "B/C",
    "A/B",
    "C",
    "/",
    "overall",
    "overall average",
    "all",
    "all scenarios",
    "Audio",
    "Counting",
]
AWKWARD += [
    "Audio/Counting",
    "method",
    "source",
    "model",
    "features",
    "questions",
    "accuracy",
    "count",
    "types",
    "é",
    "e\u0301",
]
texts = st.sampled_from(AWKWARD) | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
answered = st.tuples(texts, texts, st.sampled_from(["head", "tail", None]), st.booleans(), st.booleans())
tables = st.lists(answered, min_size=1, max_size=40).map(
    lambda rows: pd.DataFrame(rows, columns=["scenario", "type", "part", "correct", "failed"])
)
COLLIDING = pd.DataFrame(
    [("A", "B/C", None, True, False)] * 3 + [("A/B", "C", None, False, False)] * 2,
    columns=["scenario", "type", "part", "correct", "failed"],
)


def config_of(folder, name="d", trained_on=None):
    model = {"audio": "vggish/embedding", "visual": "resnet18/pooled"}
    config = {"dataset": name, "results": str(folder), "models": {"pooled": model}, "train": {"seeds": [0]}}
    return check_config(config | {"trained_on": trained_on or [name]}, sections=("dataset",))


def write(config, scores, trained_on="d"):
    folder = scores_dir(config, trained_on, "pooled", 0)
    folder.mkdir(parents=True, exist_ok=True)
    encoders = {"vggish": {"weights": "torchvggish", "pretrained": True}}
    (folder / "scores.json").write_text(json.dumps(scores | {"encoders": encoders}))
    return folder / "scores.json"


def percent(rows):
    return 100 * rows["correct"].mean()


@settings(max_examples=50, deadline=None)
@example(COLLIDING)
@given(tables)
def test_every_question_stands_in_one_row(table):
    scores = json.loads(json.dumps(score_all(table)))
    for part in (scores, *scores["parts"].values()):
        counts = [entry["count"] for kinds in part["types"].values() for entry in kinds.values()]
        assert sum(counts) == part["overall"]["count"]
    assert scores["overall"]["count"] == len(table)
    for (scenario, kind), rows in table.groupby(["scenario", "type"]):
        assert scores["types"][scenario][kind] == {"accuracy": rows["correct"].mean(), "count": len(rows)}
        assert entry_of(scores, ("types", scenario, kind)) == scores["types"][scenario][kind]
        for part, of_part in rows.groupby("part"):
            entry = scores["parts"][part]["types"][scenario][kind]
            assert entry == {"accuracy": of_part["correct"].mean(), "count": len(of_part)}
    for column, name in (("scenario", "scenario"), ("type", "question_type")):
        for value, rows in table.groupby(column):
            assert scores[name][value] == {"accuracy": rows["correct"].mean(), "count": len(rows)}


@settings(max_examples=50, deadline=None)
@example(COLLIDING)
@given(tables)
def test_every_question_is_counted_once_in_the_tables(table):
    scores = json.loads(json.dumps(score_all(table)))
    keys, shown = keys_of([scores]), score_table({"pooled": [scores]})
    assert shown.index.is_unique
    rows = [n for n, key in enumerate(keys) if key[0] == "types"]
    assert shown["questions"].iloc[rows].sum() == len(table)
    kinds = table.groupby(["scenario", "type"])
    assert sorted(shown["pooled"].iloc[rows]) == sorted(f"{percent(part):.2f}" for _, part in kinds)
    assert shown.loc["overall"].tolist() == [len(table), f"{percent(table):.2f}"]
    layout = paper_layout({"pooled": [scores]})
    parts = table["part"].dropna().unique()
    assert layout.columns.is_unique and layout.loc["pooled", "overall"] == round(percent(table), 2)
    columns = (kinds.ngroups + table["scenario"].nunique()) * max(len(parts), 1) + len(parts) + 1
    assert layout.shape == (1, columns)
    assert f"{table['correct'].mean():>9.2%}{len(table):>11}" in format_scores(scores)


@settings(max_examples=30, deadline=None)
@example(COLLIDING)
@given(tables)
def test_every_accuracy_has_a_column_beside_the_papers(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("results")
    config = config_of(folder)
    write(config, score_all(table))
    rows = own_results(config)
    assert rows["column"].is_unique and not set(rows["column"]) & {"method", "setting", "encoder", "source"}
    expected = [percent(table), *(percent(part) for _, part in table.groupby(["scenario", "type"]))]
    expected += [percent(part) for _, part in table.groupby("scenario")]
    expected += [percent(part) for _, part in table.dropna(subset="part").groupby(["scenario", "type", "part"])]
    assert sorted(rows["value"]) == pytest.approx(sorted(expected), abs=0.0051)
    values = rows.set_index("column")["value"]
    assert values["overall"] == pytest.approx(percent(table), abs=0.0051)
    for name in COLUMNS[:-1]:  # those of the papers' tables are not taken by a text that looks like one of them
        scenario, _, kind = name.partition("/")
        same = table[(table["scenario"] == scenario) & ((table["type"] == kind) if kind else True)]
        if len(same):
            assert values[name] == pytest.approx(percent(same), abs=0.0051)
    assert len(wide(rows)) == 1 and "pooled (ours)" in format_results("MUSIC-AVQA", None, None, "overall", config)


@settings(max_examples=30, deadline=None)
@example(COLLIDING)
@given(tables)
def test_scenarios_of_any_name_have_a_column(tmp_path_factory, table):
    folder = tmp_path_factory.mktemp("results")
    names = ["d", "e"]
    scores = score_all(table)
    for tested_on in names:
        config = config_of(folder, tested_on, names)
        for trained_on in names:
            write(config, scores, trained_on)
    crossed = cross_table(config_of(folder, "d", names))
    scenarios = table["scenario"].nunique()
    assert crossed.columns.is_unique and crossed.shape == (2, 2 + 2 * (scenarios + 1))
    assert crossed["d: all"].tolist() == [f"{percent(table):.2f}"] * 2
    changed = contribution_table({"pooled": {"contributions": {"as trained": scores, "audio": scores}}})
    assert changed.columns.is_unique and changed.shape == (2, 2 + scenarios + 1)
    assert changed["model"].tolist() == ["pooled", "pooled"]
    assert changed["overall"].tolist() == [f"{percent(table):.1f}", "+0.0"]


def as_before(scores):
    """The form of an earlier version, which named a pair scenario/type."""
    kinds = {f"{s}/{t}": entry for s, types in scores["types"].items() for t, entry in types.items()}
    earlier = {name: part for name, part in scores.items() if name not in ("types", "parts", "present")}
    earlier["type"] = kinds
    for name in ("parts", "present"):
        if name in scores:
            own = scores[name]
            earlier[name] = as_before(own) if name == "present" else {k: as_before(part) for k, part in own.items()}
    return earlier


@settings(max_examples=50, deadline=None)
@example(COLLIDING)
@given(tables.filter(lambda table: not table["failed"].all()))
def test_scores_of_an_earlier_version_are_read_or_refused(tmp_path_factory, table):
    """Never read as something else."""
    scores = json.loads(json.dumps(score_all(table)))
    path = write(config_of(tmp_path_factory.mktemp("results")), as_before(scores))
    try:
        found = read_scores(path)
    except AVQAError as error:
        assert str(path) in str(error) and "avqa evaluate" in str(error)
        assert table[["scenario", "type"]].stack().str.contains("/").any(), "other names have only one meaning"
    else:
        for name in ("types", "parts", "present"):
            kept = found[name]["types"] if name == "present" else found[name]
            expected = scores[name]["types"] if name == "present" else scores[name]
            if name == "parts":
                kept, expected = ({k: part["types"] for k, part in parts.items()} for parts in (kept, expected))
            assert kept == expected


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"parts": {}, "present": {}}', "null"])
def test_damaged_scores_are_named_with_the_remedy(tmp_path, text):
    path = tmp_path / "models" / "seed-0" / "scores.json"
    with pytest.raises(AVQAError, match="no such file"):
        read_scores(path)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(AVQAError, match="avqa evaluate") as error:
        read_scores(path)
    assert str(path) in str(error.value)


def test_a_run_without_a_kind_of_questions_leaves_a_gap():
    """Such as one that was scored before the annotations had these questions."""
    whole, before = score_all(COLLIDING), score_all(COLLIDING[:3])
    shown = score_table({"pooled": [whole], "other": [before]})
    assert shown["other"].tolist() == ["100.00", "100.00", "nan", "nan", "100.00"]
    assert shown["questions"].tolist() == [3, 3, 2, 2, 5]
    assert math.isnan(paper_layout({"pooled": [before], "other": [whole]}).loc["pooled", "A/B"])
    assert np.isfinite(paper_layout({"pooled": [whole]}).to_numpy()).all()
