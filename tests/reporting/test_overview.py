"""What missing videos cost, from the manifest to the report."""

import json
from collections import Counter

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st
from test_manifest import record

from pipeline.index import gather_failures
from pipeline.manifest import build_manifest
from pipeline.reporting.overview import missing

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
    (collection / "failures").mkdir()
    for tsv in (collection / "shards").glob("*.tsv"):
        listed = [line.split("\t")[0] for line in tsv.read_text().splitlines()[1:]]
        rows = [f"{name}\tdecode\tis empty\t0.1\n" for name in listed if int(name[1:]) in failed]
        (collection / "failures" / tsv.name).write_text("video_id\tstage\treason\tseconds\n" + "".join(rows))
    gather_failures(dataset, collection, 1.0)
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


def test_without_a_ledger_nothing_is_listed(tmp_path):
    assert missing(tmp_path).empty
