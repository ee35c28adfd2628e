"""What missing videos cost, from the manifest to the report."""

import json
from collections import Counter

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from made_results import write_statuses
from test_manifest import record

from pipeline.index import gather_failures
from pipeline.manifest import build_manifest
from pipeline.reporting.overview import answer_counts, missing

KINDS = (["Audio", "Counting"], ["Audio-Visual", "Existential"])
VIDEOS = st.lists(st.tuples(st.integers(0, 7), st.sampled_from(range(2))), min_size=1, max_size=12)


@settings(max_examples=20, deadline=None)
@given(st.fixed_dictionaries({"train": VIDEOS, "val": VIDEOS}), st.sets(st.integers(0, 7)), st.sets(st.integers(0, 7)))
def test_the_ledger_counts_the_questions_of_every_missing_and_failed_video(tmp_path_factory, asked, absent, failed):
    """The test split repeats the file of val, as AVQA's does; video 8 is there and can be decoded."""
    folder = tmp_path_factory.mktemp("ledger")
    (folder / "videos").mkdir()
    for n in set(range(9)) - absent:
        (folder / "videos" / f"v{n}.mp4").write_bytes(b"x")
    for split, pairs in asked.items():
        records = [record(f"v{n}", type=json.dumps(KINDS[kind])) for n, kind in [*pairs, (8, 0)]]
        (folder / f"{split}.json").write_text(json.dumps(records))
    files = {"train": "train", "val": "val", "test": "val"}
    config = {
        "dataset": "tiny",
        "results": str(folder / "results"),
        "format": "music_avqa",
        "videos": {
            "collection": "c",
            "folder": str(folder / "videos"),
            "pattern": "{video_id}.mp4",
            "follow_links": False,
        },
        "annotations": {split: str(folder / f"{name}.json") for split, name in files.items()},
        "allow_missing": True,
        "shard_size": 3,
    }
    build_manifest(config)
    dataset, collection = folder / "results" / "tiny", folder / "results" / "c"
    tables = collection / "failures" / "key"
    tables.mkdir(parents=True)
    statuses: dict[str, int] = {}
    for tsv in (collection / "shards").glob("*.tsv"):
        listed = [line.split("\t")[0] for line in tsv.read_text().splitlines()[1:]]
        rows = [f"{name}\tdecode\tis empty\t0.1\n" for name in listed if int(name[1:]) in failed]
        (tables / tsv.name).write_text("video_id\tstage\treason\tseconds\n" + "".join(rows))
        statuses |= {name: int(int(name[1:]) in failed) for name in listed}
        without = [f"{name}\taudio\tan odd codec\t0.1\n" for name in listed if name == "v8"]
        if without:  # no failure, and no question is lost
            table = (tables / tsv.name).with_suffix(".unheard.tsv")
            table.write_text("video_id\tstage\treason\tseconds\n" + "".join(without))
    write_statuses(dataset, statuses)
    gather_failures(dataset, collection, tables, 1.0)
    stages = pd.read_csv(dataset / "failures.tsv", sep="\t", dtype=str).groupby("stage")["video_id"].agg(set)
    assert stages["audio"] == {"v8"} and "v8" not in stages.get("decode", set())
    expected = Counter()
    for split, name in files.items():
        for n, kind in asked[name]:
            if n in absent | failed:
                reason = "missing" if n in absent else "failed"
                expected[(f"v{n}", reason, str(folder / f"{name}.json"), split, *KINDS[kind])] += 1
    ledger = pd.read_csv(dataset / "missing.tsv", sep="\t", keep_default_na=False)
    columns = ["video_id", "reason", "file", "split", "scenario", "type"]
    assert {tuple(row[:-1]): row[-1] for row in ledger[[*columns, "questions"]].itertuples(index=False)} == expected
    page = missing(dataset)
    assert page["questions"].sum() == expected.total()
    for row in page.itertuples(index=False):
        fits = [key for key in expected if key[1:] == (row.reason, row.file, row.split, row.scenario, row.type)]
        assert row.videos == len(fits) and row.questions == sum(expected[key] for key in fits)


ANSWERS = st.lists(st.sampled_from(["yes", "no", "two", "three"]), min_size=1, max_size=6)


@settings(max_examples=25, deadline=None)
@given(ANSWERS, ANSWERS, ANSWERS, st.booleans())
def test_answers_are_those_of_the_data_set_that_models_are_trained_on(tmp_path_factory, train, test, others, listed):
    """A data set that is only scored has no answers of its own to choose from."""
    folder = tmp_path_factory.mktemp("answers")
    (folder / "videos").mkdir()
    (folder / "videos" / "v0.mp4").write_bytes(b"x")
    (folder / "answers.json").write_text(json.dumps(["never", "yes", "no", "two", "three"]))
    base = {"results": str(folder / "results"), "format": "music_avqa", "allow_missing": False, "shard_size": 3}
    base["videos"] = {"collection": "c", "folder": str(folder / "videos"), "pattern": "{video_id}.mp4"}
    base["videos"]["follow_links"] = False
    splits = {"d": {"train": train, "val": train, "test": test}, "r": {"test": others}}
    configs = {}
    for name, answers in splits.items():
        files = {split: folder / f"{name}-{split}.json" for split in answers}
        for split, path in files.items():
            path.write_text(json.dumps([record("v0", answer) for answer in answers[split]]))
        configs[name] = base | {"dataset": name, "annotations": {s: str(path) for s, path in files.items()}}
        configs[name] |= {"trained_on": ["d"]} | ({"answers": str(folder / "answers.json")} if listed else {})
        build_manifest(configs[name])
    for name, asked in (("d", [*train, *train, *test]), ("r", others)):
        questions = pd.read_parquet(folder / "results" / name / "questions.parquet")
        (_, number), (label, unknown) = answer_counts(configs[name], questions)
        assert int(number) == (5 if listed else len(set(train)))
        assert int(unknown) == sum(answer not in train for answer in asked)
        assert label.endswith("models trained on d") == (name == "r")


def test_without_a_ledger_nothing_is_listed(tmp_path):
    assert missing(tmp_path).empty
