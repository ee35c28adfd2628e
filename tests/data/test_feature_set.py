"""Features from Python: `pipeline.open_features`, its tables, and the PyTorch Dataset in worker processes."""

import numpy as np
import pandas as pd
import pytest
import torch
from made_results import feature, make_results, text_feature
from torch.utils.data import DataLoader

import pipeline
from pipeline.errors import AVQAError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_results(tmp_path_factory.mktemp("made"))


def test_features_by_name_and_id(dataset):
    with pipeline.open_features(dataset) as features:
        assert len(features) == 12 and list(features)[:2] == ["v000", "v001"] and "v011" in features
        assert features.names["clip_vit_b32/patch"] == (6, 49, 512)
        for video_id in features:
            for name in ("clip_vit_b32/cls", "clip_vit_b32/patch", "vggish/embedding"):
                np.testing.assert_array_equal(features[name, video_id], feature(name, video_id))
        np.testing.assert_array_equal(features["text/words", "Is it loud?"], text_feature("words", "Is it loud?"))
        assert set(features.texts) == set(features.questions["question"])
        assert features.videos.loc[5, "video_id"] == "v005" and features.videos.loc[5, "num_segments"] == 6
        for key in (("clip_vit_b32/cls", "v999"), ("clip_vit_b32/map", "v000"), ("text/words", "What?")):
            with pytest.raises(AVQAError, match=r"features\.h5: has no"):
                features[key]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_torch_dataset_in_workers(dataset, start):
    items = pipeline.open_features(dataset).torch_dataset("clip_vit_b32/cls", "text/sentence", split="train")
    assert isinstance(items, torch.utils.data.Dataset)
    first = items[0]  # opens files in this process; the workers must open their own
    np.testing.assert_array_equal(first["clip_vit_b32/cls"], feature("clip_vit_b32/cls", first["video_id"]))
    seen = []
    for batch in DataLoader(items, batch_size=3, num_workers=2, multiprocessing_context=start):
        for n, (video_id, question) in enumerate(zip(batch["video_id"], batch["question"], strict=True)):
            np.testing.assert_array_equal(batch["clip_vit_b32/cls"][n], feature("clip_vit_b32/cls", video_id))
            np.testing.assert_array_equal(batch["text/sentence"][n], text_feature("sentence", question))
            seen.append((video_id, question))
    assert len(seen) == len(set(seen)) == len(items) == 16


def test_workers_do_not_use_files_of_their_parent(dataset, monkeypatch):
    """Each process opens what it reads: a fork that finds the parent's handles would share their position and locks."""
    items = pipeline.open_features(dataset).torch_dataset("clip_vit_b32/cls")
    items[0]
    before = items._features
    monkeypatch.setattr("pipeline.data.torch_dataset.os.getpid", lambda: -1)  # as in a process forked from here
    items[0]
    assert items._features is not before


def test_what_is_not_there_is_named(dataset):
    features = pipeline.open_features(dataset)
    with pytest.raises(AVQAError, match="has no resnet18/map; it has clip_vit_b32/cls"):
        features.torch_dataset("resnet18/map")
    with pytest.raises(AVQAError, match="has no questions of split dev"):
        features.torch_dataset("clip_vit_b32/cls", split="dev")


@pytest.fixture(scope="module")
def with_failures(tmp_path_factory):
    """v001 and v005 could not be decoded; the only question of split `dev` is about v005."""
    change = {}
    for video_id in ("v001", "v005"):
        change |= {("status", video_id): 1, ("num_segments", video_id): 0, ("has_audio", video_id): False}
        for name in ("clip_vit_b32/cls", "clip_vit_b32/patch", "vggish/embedding"):
            change[name, video_id] = np.zeros_like(feature(name, video_id))
    folder = make_results(tmp_path_factory.mktemp("failed"), change=change)
    table = pd.read_parquet(folder / "questions.parquet")
    table.loc[table["video_id"] == "v005", "split"] = "dev"
    table.to_parquet(folder / "questions.parquet")
    return folder


def test_failed_videos_are_named_and_their_zeros_are_not_given(with_failures):
    with pipeline.open_features(with_failures) as features:
        assert features.failed == ["v001", "v005"] and len(features) == 10
        assert list(features) == [f"v{n:03d}" for n in range(12) if n not in (1, 5)]
        assert "v001" not in features and "v002" in features
        table = features.videos.set_index("video_id")
        assert table.index[table["status"] != 0].tolist() == features.failed and len(table) == 12
        for name in ("clip_vit_b32/cls", "vggish/embedding"):
            with pytest.raises(AVQAError, match=r"features\.h5: video v001 could not be decoded; failures\.tsv"):
                features[name, "v001"]
        for video_id in features:
            assert features["vggish/embedding", video_id].any(axis=1).all()


@pytest.mark.parametrize("split", [None, "train", "val", "test"])
def test_a_torch_dataset_has_no_question_about_a_failed_video(with_failures, split):
    """Oracle: the questions' table without the failed videos, whatever the split."""
    with pipeline.open_features(with_failures) as features:
        items = features.torch_dataset("clip_vit_b32/cls", "text/sentence", split=split)
        table = features.questions
    table = table if split is None else table[table["split"] == split]
    lost = table["video_id"].isin(["v001", "v005"])
    expected = table[~lost]
    assert [(item["video_id"], item["question"]) for item in items] == [
        (row.video_id, row.question) for row in expected.itertuples()
    ]
    assert items.failed == lost.sum() and len(items) == len(expected) > 0
    assert all(item["clip_vit_b32/cls"].abs().sum() > 0 for item in items)


def test_a_split_of_failed_videos_only_is_an_error(with_failures):
    with pytest.raises(AVQAError, match=r"all 2 questions of split dev are about videos that could not be decoded"):
        pipeline.open_features(with_failures).torch_dataset("clip_vit_b32/cls", split="dev")
