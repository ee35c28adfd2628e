"""Tables of scores, against accuracies counted from the predictions."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest

from pipeline.accuracy import entry_of, format_scores, read_scores, score_all
from pipeline.config import check_config, scores_dir
from pipeline.data.formats.base import TYPES
from pipeline.reporting.scores import beside_published, cross_table, paper_layout, score_table
from pipeline.results import published

RELATIONS = [(relation, kind) for relation in ("Audio", "Visual", "Both") for kind in ("Which", "Where", "When")]


def predictions(kinds, seed=0, parts=(None,), size=400):
    """Random answers, right or wrong; one video in ten failed."""
    rng = np.random.default_rng(seed)
    rows = [(*kinds[n % len(kinds)], parts[rng.integers(len(parts))]) for n in range(size)]
    table = pd.DataFrame(rows, columns=["scenario", "type", "part"])
    return table.assign(correct=rng.random(size) < 0.6, failed=rng.random(size) < 0.1)


def percent(rows):
    return round(100 * rows["correct"].mean(), 2)


def configuration(tmp_path, name, trained_on=None, **more):
    sets = {"results": str(tmp_path), "videos": {"collection": "c", "folder": "v"}, "train": {"seeds": [0, 1]}}
    models = {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled"}}
    own = {"dataset": name, "trained_on": trained_on or [name], "models": models} | more
    return check_config(sets | own, sections=("dataset",))


def write_scores(config, trained_on, tables):
    """One scores.json per seed."""
    for seed, table in enumerate(tables):
        folder = scores_dir(config, trained_on, "pooled", seed)
        folder.mkdir(parents=True)
        encoders = {"vggish": {"weights": "torchvggish", "pretrained": True}}
        (folder / "scores.json").write_text(json.dumps(score_all(table) | {"encoders": encoders}))


def test_accuracy_by_question_type_and_by_relation():
    table = predictions(RELATIONS)
    scores = score_all(table)
    assert {kind: entry["count"] for kind, entry in scores["question_type"].items()} == dict(
        table["type"].value_counts()
    )
    shown = score_table({"pooled": [scores]})["pooled"]
    for kind, rows in table.groupby("type"):
        assert shown[f"{kind}, all scenarios"] == f"{percent(rows):.2f}"
    for relation, rows in table.groupby("scenario"):
        assert shown[f"{relation} average"] == f"{percent(rows):.2f}"
    for kind, rows in table.groupby(["scenario", "type"]):
        assert shown["/".join(kind)] == f"{percent(rows):.2f}"
    assert "Which, all scenarios" in format_scores(scores | {"encoders": {}})


def test_no_type_is_left_out_although_names_have_slashes():
    kinds = [("Audio", "Who/What"), ("Audio", "When"), ("Audio/Visual", "When"), ("Audio/Visual", "Who/What")]
    table = predictions(kinds)
    scores = score_all(table)
    shown, text = score_table({"pooled": [scores]})["pooled"], format_scores(scores | {"encoders": {}})
    layout = paper_layout({"pooled": [scores]}).loc["pooled"]
    for kind, rows in table.groupby(["scenario", "type"]):
        assert shown["/".join(kind)] == f"{percent(rows):.2f}" and layout["/".join(kind)] == percent(rows)
        assert f"{'/'.join(kind)} " in text
    for kind, rows in table.groupby("type"):
        assert shown[f"{kind}, all scenarios"] == f"{percent(rows):.2f}"


def test_scores_without_failed_videos_are_there_for_those_who_lack_others():
    table = predictions(list(TYPES))
    scores = score_all(table)
    there = table[~table["failed"]]
    assert 0 < len(there) < len(table) == scores["overall"]["count"]
    assert scores["present"]["overall"] == {"accuracy": there["correct"].mean(), "count": len(there)}
    for kind, rows in there.groupby(["scenario", "type"]):
        entry = scores["present"]["types"][kind[0]][kind[1]]
        assert entry == {"accuracy": rows["correct"].mean(), "count": len(rows)}
    shown = score_table({"pooled": [scores]})
    assert shown.loc["overall, without failed videos"].tolist() == [len(there), f"{percent(there):.2f}"]
    whole = score_table({"pooled": [score_all(table.assign(failed=False))]})
    assert "overall, without failed videos" not in whole.index


def test_types_of_one_scenario_are_not_listed_twice():
    shown = score_table({"pooled": [score_all(predictions(list(TYPES)))]})
    assert [name for name in shown.index if name.endswith("all scenarios")] == [
        f"{name}, all scenarios" for name in ("Counting", "Comparative", "Location")
    ]


def test_head_and_tail_in_the_columns_of_table_iii(tmp_path):
    config = configuration(tmp_path, "music_avqa_r", ["music_avqa"])
    tables = [predictions(list(TYPES), seed, ("head", "tail")) for seed in (1, 2)]
    write_scores(config, "music_avqa", tables)
    table, same = beside_published(config)
    assert same
    papers = published("MUSIC-AVQA-R", "QA-TIGER")
    order = [f"{scenario}/{kind} ({part})" for scenario, kind in TYPES for part in ("head", "tail")]
    assert papers["column"].tolist() == [*order, "overall"], "the paper's own order"
    short = table.columns[4:]
    assert len(short) == 19 and short[0] == "A/Count (head)" and short[-1] == "overall"
    ours = table.iloc[0]
    assert ours["method"] == "pooled (ours)" and ours["setting"] == "trained on music_avqa"
    for name, (*kind, part) in zip(short, [(*k, part) for k in TYPES for part in ("head", "tail")], strict=False):
        means = [percent(t[(t[["scenario", "type", "part"]] == [*kind, part]).all(axis=1)]) for t in tables]
        assert float(ours[name]) == pytest.approx(np.mean(means), abs=0.01), name
    assert float(ours["overall"]) == pytest.approx(np.mean([percent(t) for t in tables]), abs=0.01)
    tiger = table[table["method"] == "QA-TIGER"].iloc[0]
    assert [float(value) for value in tiger[short]] == papers["value"].tolist()
    layout = paper_layout({"pooled": [score_all(t) for t in tables]})
    expected = np.mean([percent(t[t["part"] == "tail"]) for t in tables])
    assert layout.loc["pooled", "overall tail"] == pytest.approx(expected, abs=0.01)


def test_trained_on_one_split_and_tested_on_both_as_in_table_iv(tmp_path):
    names = ["music_avqa_v2_balanced", "music_avqa_v2_biased"]
    configs = {name: configuration(tmp_path, name, [name, *(n for n in names if n != name)]) for name in names}
    tables = {}
    for n, (tested_on, trained_on) in enumerate(itertools.product(names, names)):
        tables[trained_on, tested_on] = [predictions(list(TYPES), 10 * n + seed) for seed in (0, 1)]
        write_scores(configs[tested_on], trained_on, tables[trained_on, tested_on])
    for config in configs.values():
        crossed = cross_table(config).set_index("trained on")
        assert sorted(crossed.index) == names and set(crossed["model"]) == {"pooled"}
        for (trained_on, tested_on), runs in tables.items():
            for short, scenario in {"A-QA": "Audio", "V-QA": "Visual", "AV-QA": "Audio-Visual", "all": ""}.items():
                means = [percent(t[t["scenario"] == scenario] if scenario else t) for t in runs]
                shown = float(crossed.loc[trained_on, f"{tested_on}: {short}"])
                assert shown == pytest.approx(np.mean(means), abs=0.01)
    table, same = beside_published(configs["music_avqa_v2_biased"])
    assert same and list(table.columns[4:]) == ["A-QA", "V-QA", "AV-QA", "overall"]
    papers = table[~table["method"].str.contains("ours")]
    assert len(papers) == 10 and papers["setting"].str.endswith("tested on biased").all()
    assert set(table["setting"][:2]) == {f"trained on {name}" for name in names}


def test_no_table_of_pairs_where_one_data_set_is_trained_on(tmp_path):
    config = configuration(tmp_path, "music_avqa")
    write_scores(config, "music_avqa", [predictions(list(TYPES), seed) for seed in (0, 1)])
    assert cross_table(config).empty
    others = configuration(tmp_path, "other", ["music_avqa", "more"])
    assert cross_table(others).empty


@pytest.mark.parametrize("scenario", ["Audio", "Audio/Visual"])
def test_names_with_a_slash_have_their_rows(scenario):
    """Yes/No is the usual name of a type of visual question answering."""
    table = predictions([("Audio", "Counting"), (scenario, "Yes/No"), ("Visual", "Yes/No")])
    scores = score_all(table) | {"encoders": {}}
    shown = score_table({"pooled": [scores]})["pooled"]
    for (where, kind), rows in table.groupby(["scenario", "type"]):
        assert shown[f"{where}/{kind}"] == f"{percent(rows):.2f}"
        line = next(line for line in format_scores(scores).splitlines() if line.startswith(f"{where}/{kind} "))
        assert line.split()[-1] == str(len(rows))
        assert paper_layout({"pooled": [scores]}).loc["pooled", f"{where}/{kind}"] == pytest.approx(percent(rows))
    assert shown["Yes/No, all scenarios"] == f"{percent(table[table['type'] == 'Yes/No']):.2f}"
    assert len(format_scores(scores).splitlines()) == 1 + 3 + table["scenario"].nunique() + 1 + 1


def test_scores_of_failed_videos_alone_have_no_others_and_say_so(tmp_path):
    """JSON has no NaN: a mean over no question is absent."""
    table = predictions(list(TYPES))
    scores = score_all(table.assign(failed=True))
    assert scores["present"] is None and scores["overall"]["count"] == len(table)
    (tmp_path / "scores.json").write_text(json.dumps(scores, allow_nan=False))
    assert read_scores(tmp_path / "scores.json") == scores
    assert np.isnan(entry_of(scores, ("present", "overall"))["accuracy"])
    assert "videos of all these questions could not be decoded" in format_scores(scores | {"encoders": {}})
    assert "overall, without failed videos" not in score_table({"pooled": [scores]}).index
    some = score_all(table.assign(failed=[True] * (len(table) - 1) + [False]))
    assert some["present"]["overall"]["count"] == 1 and "could not be" not in format_scores(some | {"encoders": {}})
