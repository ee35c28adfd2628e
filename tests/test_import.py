"""`avqa import` of a layout: folders as others publish them, and our own exports."""

import json

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from made_results import make_results, shard_file
from published_folders import (
    FAILED,
    FOLDERS,
    L14,
    MISSING,
    QUESTIONS,
    RECORDS,
    SECONDS,
    SPLITS,
    TEXTS,
    VIDEOS,
    annotate,
    encode_texts_here,
    publish,
    record,
    run,
    text_arrays,
    video_array,
)

import pipeline
from pipeline.data.dataset import QuestionData
from pipeline.data.layouts import LAYOUTS
from pipeline.errors import AVQAError
from pipeline.export import export
from pipeline.storage.hdf5 import ShardWriter
from pipeline.verify import verify


@pytest.mark.parametrize("splits", [SPLITS, {"test": RECORDS}], ids=["splits", "test only"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_array_and_text_of_published_folders_comes_back(tmp_path, layout, splits):
    folder = publish(tmp_path / "published", layout, splits)
    assert run(tmp_path, folder, str(folder), "--layout", layout) == 0
    if layout not in TEXTS:
        assert not (tmp_path / "results" / "back" / "features.h5").exists()
        encode_texts_here(tmp_path)
        assert run(tmp_path, folder, str(folder), "--layout", layout) == 0
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        asked_about = sorted({r["video_id"] for records in splits.values() for r in records} - {MISSING})
        assert sorted([*features, FAILED]) == asked_about and features.failed == [FAILED]
        for parts in FOLDERS[layout].values():
            for name, shape in parts.items():
                for video_id in features:
                    np.testing.assert_array_equal(features[name, video_id], video_array(name, video_id, shape))
                assert not features.index.read(name, np.flatnonzero(features.index.video_id == FAILED)).any()
        lengths = dict(zip(features.texts, features.index.text_lengths, strict=True))
        for output, kind, size in TEXTS.get(layout, {}).values():
            ids = ("0", "q-one", "2", "3") if kind == "question" else ("0", "q-one")
            for text in (QUESTIONS[n][kind == "prompt"] for n in ids):
                expected = text_arrays(text, size)
                np.testing.assert_array_equal(features[f"text/{output}", text], expected[output])
                if layout != "tspm":  # which has no words
                    assert lengths[text] == expected["length"]
    assert [f for f in verify(tmp_path / "results" / "back").findings if f.check != "norm"] == []


def exported_annotations(out):
    """The files of the splits, wherever a layout has them, under one name."""
    for split in SPLITS:
        names = (f"music_avqa_{split}.json", f"avqa-{split}.json")
        found = [path for path in sorted(out.rglob("*.json")) if path.name in names]
        annotate(out / "annotations", {split: json.loads(found[0].read_text())})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_our_own_export_comes_back(tmp_path, layout):
    """One video could not be decoded; ids repeat and are missing (made_results.questions)."""
    outputs: dict[str, tuple[str, ...]] = {}
    for encoder, output in (name.split("/") for parts in FOLDERS[layout].values() for name in parts):
        outputs[encoder] = (*outputs.get(encoder, ()), output)
    text = "clip_vit_b32" if layout in ("avst", "pstp-net") else L14
    dataset = make_results(
        tmp_path / "made",
        6,
        4,
        outputs,
        text,
        seconds=SECONDS,
        change={("status", "v002"): 1, ("num_segments", "v002"): 0},
    )
    out = tmp_path / "out"
    export(dataset, layout, out, force=True)
    exported_annotations(out)
    assert run(tmp_path, out, str(out), "--layout", layout) == 0
    if layout not in TEXTS:
        encode_texts_here(tmp_path, text)
        assert run(tmp_path, out, str(out), "--layout", layout) == 0
    with pipeline.open_features(tmp_path / "results" / "back") as back, pipeline.open_features(dataset) as features:
        status = back.videos.set_index("video_id")["status"]
        assert sorted(v for v in back if not status[v]) == [f"v{n:03d}" for n in range(6) if n != 2]
        columns = ["video_id", "num_segments", "has_audio"]
        mine, theirs = (
            f.videos.loc[f.videos["status"] == 0, columns].sort_values("video_id") for f in (back, features)
        )
        pd.testing.assert_frame_equal(mine.reset_index(drop=True), theirs.reset_index(drop=True))
        for name in (name for name in features.names if not name.startswith("text")):
            for video_id in mine["video_id"]:
                np.testing.assert_array_equal(back[name, video_id], features[name, video_id])
        for name in {"text/sentence", "text/words"} & set(back.names):
            for question in back.questions.loc[back.questions["video_id"].isin(mine["video_id"]), "question"]:
                np.testing.assert_array_equal(back[name, question], features[name, question])


def test_a_model_reads_imported_prompts(tmp_path):
    folder = publish(tmp_path / "published", "tspm")
    assert run(tmp_path, folder, str(folder), "--layout", "tspm") == 0
    dataset, texts = tmp_path / "results" / "back", {"sentence": (768,), "prompt": (768,)}
    data = QuestionData(dataset, {"audio": "vggish/embedding"}, texts, False, torch.device("cpu"))
    (batch,) = data.batches("train", 8)
    found = {text: n for n, text in enumerate(data.questions.loc[batch.row, "question"])}
    for question, prompt in (QUESTIONS[n] for n in ("0", "q-one", "2")):
        row = batch.texts["prompt"][found[question]].numpy()
        np.testing.assert_array_equal(row, text_arrays(prompt or question, 768)["sentence"])


def test_zeros_of_an_export_are_no_features(tmp_path):
    """Where a video was missing, as if it were not there; where it had failed, as if it failed here."""
    folder = publish(tmp_path / "published", "av-master")
    for name, shape in (("vggish_audio", (SECONDS, 128)), ("clip_vit_l14_336px", (SECONDS, 768))):
        for video_id in (FAILED, MISSING):
            np.save(folder / name / f"{video_id}.npy", np.zeros(shape, "float32"))
    for name, shape in (("clip_sentence_l14_336px", (1, 768)), ("clip_word_l14_336px", (1, 77, 768))):
        np.save(folder / name / "5.npy", np.zeros(shape, "float32"))
    rows = [
        f"{v},0,False,missing" if v == MISSING else f"{v},0,False,failed" if v == FAILED else f"{v},3,False,"
        for v in VIDEOS
    ]
    (folder / "videos.csv").write_text("\n".join(["video_id,num_segments,has_audio,left_out", *rows, ""]))
    assert run(tmp_path, folder, str(folder), "--layout", "av-master") == 0
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        videos = features.videos.set_index("video_id")
        assert MISSING not in features and "Is it only asked of a video that is missing?" not in features.texts
        assert videos["status"].to_dict() == {v: int(v == FAILED) for v in VIDEOS if v != MISSING}
        assert videos.loc["v000", ["num_segments", "has_audio"]].tolist() == [3, False]


def test_multiple_choice_is_imported_without_its_options(tmp_path, capsys):
    folder = publish(tmp_path / "published", "av-master")
    records = [
        {"id": n, "video_name": video_id, "question_text": text, "multi_choice": ["a dog", "a cat", "yes"], "answer": 1}
        | {"question_relation": "Both", "question_type": "Which"}
        for n, video_id, text in ((2, "v000", "Is it loud?"), (0, "v001", QUESTIONS["0"][0]))
    ]
    annotate(folder / "annotations", {split: records for split in SPLITS})
    assert run(tmp_path, folder, str(folder), "--layout", "av-master", format="avqa") == 0
    assert "3 options have no arrays" in capsys.readouterr().out
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        assert features.texts == ["Is it loud?", QUESTIONS["0"][0]]
        np.testing.assert_array_equal(features["text/words", "Is it loud?"], text_arrays("Is it loud?", 768)["words"])
    with pytest.raises(AVQAError, match="has no text features of 3 options, as 'a cat'"):
        QuestionData(tmp_path / "results/back", {"a": "vggish/embedding"}, {}, False, torch.device("cpu"))


def test_prompts_that_no_folder_has_are_left_out(tmp_path, capsys):
    folder = publish(tmp_path / "published", "av-master")
    assert run(tmp_path, folder, str(folder), "--layout", "av-master") == 0
    assert "2 prompts have no arrays" in capsys.readouterr().out
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        assert set(features.texts) == {QUESTIONS[n][0] for n in ("0", "q-one", "2", "3")}


def test_prompts_that_are_encoded_questions_are_not_taken_for_prompts(tmp_path, capsys):
    folder = publish(tmp_path / "published", "tspm")
    questions, prompts = folder / "clip_feats/qst_ViT-L14@336px", folder / "clip_feats/qaPrompt_ViT-L14@336px"
    for path in questions.iterdir():
        (prompts / path.name).write_bytes(path.read_bytes())
    assert run(tmp_path, folder, str(folder), "--layout", "tspm") == 0
    assert "the arrays of prompts are those of their questions" in capsys.readouterr().out
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        assert QUESTIONS["0"][1] not in features.texts


def spoil(folder, how):
    """Damage a published av-master folder; returns the path that an error must name, and what it must say."""
    path = folder / "clip_vit_l14_336px" / "v004.npy"
    array = np.load(path)
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif how == "pickle":
        np.save(path, np.array([{}]), allow_pickle=True)
    elif how == "no question":
        (folder / "clip_word_l14_336px" / "q-one.npy").unlink()
        return folder / "clip_sentence_l14_336px", "has no array for 1 questions, as 'Is the flute in the video always"
    elif how == "ambiguous":
        annotate(
            folder / "annotations", SPLITS | {"test": [*SPLITS["test"], record("v000", 4, "Which of the two is it?")]}
        )
        return folder / "clip_sentence_l14_336px", "which no other question has"
    elif how == "words":
        path = folder / "clip_word_l14_336px" / "2.npy"
        np.save(path, np.load(path)[:, :, :512])
    elif how == "none":
        for video_id in VIDEOS:
            (folder / "vggish_audio" / f"{video_id}.npy").unlink(missing_ok=True)
        return folder / "vggish_audio", "has arrays of none of the videos"
    else:
        changed = {
            "batch axis": array[None],
            "map": np.zeros((1, SECONDS, 768, 2, 2), "float32"),
            "width": array[:, :512],
            "vector": array[0],
            "empty": array[:0],
            "integers": array.astype("int32"),
            "precision": array.astype("float16"),
            "frames": np.zeros((1500, 768), "float32"),
        }
        np.save(path, changed[how])
    return path, {"frames": "has 1500 rows", "cut": "cannot be read", "pickle": "cannot be read"}.get(how, "")


@pytest.mark.parametrize(
    "how",
    [
        *("cut", "pickle", "no question", "ambiguous", "words", "none", "batch axis", "map"),
        *("width", "vector", "empty", "integers", "precision", "frames"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, capsys, how):
    folder = publish(tmp_path / "published", "av-master")
    path, words = spoil(folder, how)
    assert run(tmp_path, folder, str(folder), "--layout", "av-master") == 1
    message = capsys.readouterr().err
    assert str(path) in message and words in message
    assert not (tmp_path / "results").exists()


def test_ten_sampled_frames_are_at_their_seconds(tmp_path, capsys):
    """TSPM's script: frames at linspace(0, n - 2, 10) of n; here 31 s, of which 30 are read."""
    folder = publish(tmp_path / "published", "qa-tiger")
    for name in FOLDERS["qa-tiger"]:
        shape = next(iter(FOLDERS["qa-tiger"][name].values()))
        for video_id in VIDEOS[:3]:
            rows = 10 if name == "feats/visual_tome14" else 31
            np.save(folder / name / f"{video_id}.npy", video_array(name, video_id, shape, rows))
    np.save(folder / "feats/visual_tome14" / "v002.npy", video_array("whole", "v002", (14, 1024), 31))
    arguments = (tmp_path, folder, str(folder), "--layout", "qa-tiger")
    assert run(*arguments, decode={"segments": 30}) == 0
    encode_texts_here(tmp_path)
    assert "arrays of 10 rows are taken for as many frames" in capsys.readouterr().out
    assert run(*arguments, decode={"segments": 30}) == 0
    sampled = video_array("feats/visual_tome14", "v000", (14, 1024), 10)
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        found = features["tome_vit_l16_384/tokens", "v000"]
        for n, second in enumerate([0, 3, 6, 9, 12, 16, 19, 22, 25, 29]):
            np.testing.assert_array_equal(found[second], sampled[n])
        np.testing.assert_array_equal(found[[1, 2, 27, 28]], sampled[[0, 1, 8, 9]])
        expected = video_array("whole", "v002", (14, 1024), 31)[:30]
        np.testing.assert_array_equal(features["tome_vit_l16_384/tokens", "v002"], expected)
        assert set(features.videos["num_segments"][:3]) == {30}


def test_ten_seconds_of_tokens_are_ten_seconds(tmp_path):
    folder = publish(tmp_path / "published", "qa-tiger")
    for name in FOLDERS["qa-tiger"]:
        shape = next(iter(FOLDERS["qa-tiger"][name].values()))
        for video_id in VIDEOS:
            np.save(folder / name / f"{video_id}.npy", video_array(name, video_id, shape, 10))
    assert run(tmp_path, folder, str(folder), "--layout", "qa-tiger", decode={"segments": 12}) == 0
    with h5py.File(shard_file(tmp_path / "results/videos/features/tome_vit_l16_384")) as file:
        assert list(file["num_segments"][:]) == [10] * 3
        expected = video_array("feats/visual_tome14", "v000", (14, 1024), 10)
        np.testing.assert_array_equal(file["tome_vit_l16_384/tokens"][0, :10], expected)


def test_arrays_of_different_lengths_are_named_and_have_one_number_of_seconds(tmp_path, capsys):
    folder = publish(tmp_path / "published", "av-master")
    short = folder / "vggish_audio" / "v004.npy"
    np.save(short, np.load(short)[:3])
    long = folder / "clip_vit_l14_336px" / "v004.npy"
    assert run(tmp_path, folder, str(folder), "--layout", "av-master") == 0
    assert (
        f"1 videos have arrays of different lengths, as {short} (3 rows) beside {long} (4 rows)"
        in capsys.readouterr().out
    )
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        assert features.videos.set_index("video_id")["num_segments"].to_dict() == {
            **dict.fromkeys(["v000", "v001", "v002", "v006"], 4),
            "v003": 0,
            "v004": 3,
        }
        vggish = features["vggish/embedding", "v004"]
        np.testing.assert_array_equal(vggish, np.load(short)[[0, 1, 2, 2]])
        np.testing.assert_array_equal(features[f"{L14}/cls", "v004"], np.load(long))
    assert [f for f in verify(tmp_path / "results" / "back").findings if f.check == "seconds"] == []


def test_an_interrupted_import_resumes(tmp_path, monkeypatch):
    folder = publish(tmp_path / "published", "av-master")
    arguments = (tmp_path, folder, str(folder), "--layout", "av-master")
    write, written = ShardWriter.write, []

    def stop(self, n, row):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append((self.path, n))
        write(self, n, row)

    monkeypatch.setattr(ShardWriter, "write", stop)
    assert run(*arguments) == 130
    assert not (tmp_path / "results/back/features.h5").exists()
    monkeypatch.setattr(
        ShardWriter, "write", lambda self, n, row: (written.append((self.path, n)), write(self, n, row))
    )
    assert run(*arguments) == 0
    assert len(written) == len(set(written)) == 2 * 6 + 4
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        for video_id in ("v000", "v001", "v006"):
            np.testing.assert_array_equal(features[f"{L14}/cls", video_id], video_array(f"{L14}/cls", video_id, (768,)))


def test_an_array_that_was_replaced_is_imported_again(tmp_path):
    folder = publish(tmp_path / "published", "av-master")
    arguments = (tmp_path, folder, str(folder), "--layout", "av-master")
    assert run(*arguments) == 0
    for path, shape in (("clip_vit_l14_336px/v001.npy", (SECONDS, 768)), ("clip_word_l14_336px/2.npy", (1, 77, 768))):
        np.save(folder / path, np.ones(shape, "float32"))
    (folder / "clip_word_l14_336px/6.npy").unlink()
    assert run(*arguments) == 0
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        assert (features[f"{L14}/cls", "v001"] == 1).all() and (features["text/words", "Is it loud?"] == 1).all()


@pytest.mark.parametrize("padding", ["zeros", "repeated", "other rows"])
def test_texts_have_the_length_of_their_words(tmp_path, padding):
    """With a sentence that is none of the rows: from the rows that are padding, or else by the encoder's tokenizer."""
    folder = publish(tmp_path / "published", "av-master")
    words = text_arrays("Is it loud?", 768)["words"]
    if padding != "other rows":
        words[5:] = 0 if padding == "zeros" else words[5]
    np.save(folder / "clip_word_l14_336px" / "2.npy", words[None])
    np.save(folder / "clip_sentence_l14_336px" / "2.npy", np.full((1, 768), 9, "float32"))
    assert run(tmp_path, folder, str(folder), "--layout", "av-master") == 0
    with pipeline.open_features(tmp_path / "results" / "back") as features:
        lengths = dict(zip(features.texts, features.index.text_lengths, strict=True))
    expected = {"zeros": 5, "repeated": 5, "other rows": 6}  # start, is, it, loud, ?, end
    assert lengths["Is it loud?"] == expected[padding]
