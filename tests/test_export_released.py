"""Exports as the released code reads them: readers that restate what each release's loader opens, in which order it
numbers answers and words, and what it does with ids, written apart from the pipeline's table of layouts."""

import ast
import json
import shutil
from functools import lru_cache

import made_results
import numpy as np
import pytest
from published_sets import ANSWERS, FAILED, FILTERED, KEPT_IDS, MISSING, PUBLISHED, TEMPLATES, make_sets

from pipeline.cli import main
from pipeline.errors import AVQAError
from pipeline.export import export
from pipeline.text import read_texts

L14, B32 = "clip_vit_l14_336", "clip_vit_b32"
CLS, TOME, VGGISH, MAP = f"{L14}/cls", "tome_vit_l16_384/tokens", "vggish/embedding", "resnet18_music_avqa/map"
NEEDS = {  # encoders and their outputs; the encoder of texts; type of the arrays
    "avst": ({"vggish": ("embedding",), "resnet18_music_avqa": ("map",)}, B32, "float16"),
    "pstp-net": ({"vggish": ("embedding",), B32: ("cls", "patch")}, B32, "float32"),
    "tspm": ({"vggish": ("embedding",), L14: ("cls",), "tome_vit_l16_384": ("tokens",)}, L14, "float32"),
    "qa-tiger": ({"vggish": ("embedding",), L14: ("cls",), "tome_vit_l16_384": ("tokens",)}, L14, "float32"),
    "av-master": ({"vggish": ("embedding",), L14: ("cls",)}, L14, "float32"),
    "cuespace": ({L14: ("cls",), "tome_vit_l16_384": ("tokens",), "ast": ("cls", "pooled")}, L14, "float32"),
}


def words_of(sample):
    """As every release splits a question: the last character dropped, slots filled word by word."""
    words = sample["question_content"].rstrip().split(" ")
    words[-1] = words[-1][:-1]
    values = iter(ast.literal_eval(sample["templ_values"]))
    return [next(values) if "<" in word else word for word in words]


def numbers(samples):
    """As AVST, PSTP-Net, TSPM and AV-Master number answers and words by a training file."""
    words, answers = ["<pad>"], []
    for sample in samples:
        for word in words_of(sample):
            if word not in words:
                words.append(word)
        if sample["anser"] not in answers:
            answers.append(sample["anser"])
    return {word: n for n, word in enumerate(words)}, answers


def read(out, path):
    return json.loads((out / path).read_text(encoding="utf-8"))


def load(out, folder, name):
    """A file's name is made with +, as in the releases, which a number would not survive."""
    return np.load(str(out / folder) + "/" + name + ".npy", allow_pickle=False)


# Each reader gives a sample, the number of its answer, and arrays, each with the feature and seconds that it should be.


def read_avst(out, path):
    words, answers = numbers(read(out, "data/json/avqa-train.json"))
    for sample in read(out, path):
        video = sample["video_id"]
        padded = words_of(sample) + ["<pad>"] * (14 - len(words_of(sample)))
        assert [words[word] for word in padded] and len(padded) == 14
        maps = load(out, "visual_14x14", video)[::6, :]
        arrays = [
            (load(out, "feats/vggish", video)[::6, :], VGGISH, slice(None, None, 6)),
            (maps, MAP, slice(None, None, 6)),
        ]
        yield sample, answers.index(sample["anser"]), arrays


def read_pstp_net(out, path):
    _, answers = numbers(read(out, "dataset/split_que_id/music_avqa_train.json"))
    for sample in read(out, path):
        video, question = sample["video_id"], str(sample["question_id"])
        clip = load(out, "clip_patch-level_vit_b32", video)
        yield (
            sample,
            answers.index(sample["anser"]),
            [
                (load(out, "vggish", video), VGGISH, slice(None)),
                (clip[:60, 0, :], f"{B32}/cls", slice(None)),
                (clip[:60, 1:, :], f"{B32}/patch", slice(None)),
                (load(out, "clip_qst", question), "sentence", "question"),
                (load(out, "clip_word", question), "words", "question"),
            ],
        )


def read_tspm(out, path):
    _, answers = numbers(read(out, "dataset/split_que_id/music_avqa_train.json"))
    for sample in read(out, path):
        video, question = sample["video_id"], str(sample["question_id"])
        assert load(out, "ToMe_feat/audio_tome14", video).ndim  # read, and not used
        yield (
            sample,
            answers.index(sample["anser"]),
            [
                (load(out, "vggish", video), VGGISH, slice(None)),
                (load(out, "clip_feats/frame_1fps_ViT-L14@336px", video), CLS, slice(None)),
                (load(out, "ToMe_feat/tome14", video), TOME, slice(None)),
                (load(out, "clip_feats/qst_ViT-L14@336px", question), "sentence", "question"),
                (load(out, "clip_feats/qaPrompt_ViT-L14@336px", question), "sentence", "prompt"),
            ],
        )


def read_qa_tiger(out, path):
    answers = read(out, "annots/music_avqa/answer2idx.json")["ans2ix"]
    assert read(out, "annots/music_avqa/music_avqa_val.json")  # its test script makes a loader of it
    for sample in read(out, path):
        video = sample["video_id"]
        yield (
            sample,
            answers[sample["anser"]],
            [
                (load(out, "feats/vggish", video)[::1], VGGISH, slice(None)),
                (load(out, "feats/frame_ViT-L14@336px", video)[::1], CLS, slice(None)),
                (load(out, "feats/visual_tome14", video)[::1], TOME, slice(None)),
            ],
        )


def read_av_master(out, path):
    _, answers = numbers(read(out, "dataset/musci_avqa/music_avqa_train.json"))
    for sample in read(out, path):
        video, question = sample["video_id"], str(sample["question_id"])
        yield (
            sample,
            answers.index(sample["anser"]),
            [
                (load(out, "vggish_audio", video), VGGISH, slice(None)),
                (load(out, "clip_vit_l14_336px", video)[:60, :], CLS, slice(None)),
                (load(out, "clip_sentence_l14_336px", question), "sentence", "question"),
                (load(out, "clip_word_l14_336px", question), "words", "question"),
            ],
        )


def read_cuespace(out, path):
    answers = read(out, "data/annots/music_avqa/answer2idx.json")["ans2ix"]
    for sample in read(out, path):
        video, feats = sample["video_id"], "data/feats/final"
        assert int(sample["question_id"]) < 2**63
        label = sample["multi_choice"][sample["answer"]] if "multi_choice" in sample else sample["anser"]
        yield (
            sample,
            answers.get(label),
            [
                (load(out, f"{feats}/frame_ViT-L14@336px", video), CLS, slice(None)),
                (load(out, f"{feats}/visual_tome14", video), TOME, slice(None)),
                (load(out, f"{feats}/ast/audio_ast_cls", video), "ast/cls", slice(None)),
                (load(out, f"{feats}/ast/audio_ast_patch_last_pooled", video), "ast/pooled", slice(None)),
            ],
        )


READERS = {
    "avst": (read_avst, "data/json/avqa-{}.json"),
    "pstp-net": (read_pstp_net, "dataset/split_que_id/music_avqa_{}.json"),
    "tspm": (read_tspm, "dataset/split_que_id/music_avqa_{}.json"),
    "qa-tiger": (read_qa_tiger, "annots/music_avqa/music_avqa_{}.json"),
    "av-master": (read_av_master, "dataset/split_que_id/music_avqa_{}.json"),
    "cuespace": (read_cuespace, "data/annots/music_avqa/music_avqa_{}.json"),
}
PROMPTS = {template: prompt for template, _, prompt in TEMPLATES}
feature, text_feature = lru_cache(64)(made_results.feature), lru_cache(made_results.text_feature)


@pytest.fixture(scope="module", params=READERS)
def exports(request, tmp_path_factory):
    """A layout, the folder of results, and the exports of its three data sets."""
    folder, layout = tmp_path_factory.mktemp(request.param), request.param
    outputs, text, dtype = NEEDS[layout]
    results = make_sets(folder, outputs, text)
    for name in PUBLISHED:
        export(results / name, layout, folder / name, dtype=dtype, force=layout == "tspm" and name != "base")
    yield layout, results, folder
    shutil.rmtree(folder)  # AVST's maps are large


def filled(row):
    """The text of a published question, and its prompt."""
    if "question" in row:
        return row["question"], row["question"]
    text = " ".join(words_of(row)) + "?"
    return text, PROMPTS.get(row["question_content"], text)


def check(layout, results, out, path, rows):
    """What the release's reader gives for one of its annotation files, against the published questions."""
    reader, _ = READERS[layout]
    _, encoder, dtype = NEEDS[layout]
    encoded = set(read_texts(results / "questions.parquet", prompts=True))
    samples = list(reader(out, path))
    assert len(samples) == len(rows)
    for row, (sample, label, arrays) in zip(rows, samples, strict=True):
        texts = dict(zip(("question", "prompt"), filled(row), strict=True))
        assert (sample["video_id"], " ".join(words_of(sample)) + "?") == (row["video_id"], texts["question"])
        answer = row.get("anser", row.get("answer"))
        assert label == (ANSWERS.index(answer) if answer in ANSWERS else None)
        assert ast.literal_eval(sample["type"]) == (
            json.loads(row["type"]) if "anser" in row else [row["scenario"], row["type"]]
        )
        assert type(sample["question_id"]) is int
        for array, name, part in arrays:
            if name in ("sentence", "words"):
                expected, there = text_feature(name, texts[part], encoder)[None], texts[part] in encoded
            else:
                there = row["video_id"] not in MISSING | FAILED | FILTERED
                known = row["video_id"] if there else "v000"  # of which only the shape is taken
                expected = feature(name, known, 60)[part]
            assert array.dtype == dtype and array.shape == expected.shape
            np.testing.assert_array_equal(array, expected.astype(dtype) if there else np.zeros_like(expected, dtype))
    return [sample["question_id"] for sample, _, _ in samples]


def test_a_release_reads_what_was_published(exports):
    """Training as published, since numbers follow from it; of the other splits what the configuration allows."""
    layout, results, folder = exports
    ids = []
    for split, rows in PUBLISHED["base"].items():
        wanted = [n for n, row in enumerate(rows) if split == "train" or row["video_id"] not in FILTERED]
        path = READERS[layout][1].format(split)
        found = check(layout, results / "base", folder / "base", path, [rows[n] for n in wanted])
        assert all(found[m] == rows[n]["question_id"] for m, n in enumerate(wanted) if n in KEPT_IDS)
        ids += found
    assert len(set(ids)) == len(ids)


def test_words_have_the_numbers_of_the_published_training_file(exports):
    layout, _, folder = exports
    written = read(folder / "base", READERS[layout][1].format("train"))
    assert numbers(written) == numbers(PUBLISHED["base"]["train"])
    usable = numbers(read(folder / "base", READERS[layout][1].format("train_usable")))
    assert usable[1] != list(ANSWERS)  # what the release would have, were the rest left out


def test_training_without_what_failed(exports):
    layout, results, folder = exports
    for name, splits in PUBLISHED.items():
        for split in {"train", "val"} & splits.keys():
            rows = [row for row in splits[split] if row["video_id"] not in MISSING | FAILED | FILTERED]
            path = READERS[layout][1].format(f"{split}_usable")
            assert (folder / name / path).exists() == (len(rows) < len(splits[split]))
            if len(rows) < len(splits[split]):
                check(layout, results / name, folder / name, path, rows)


def readable(layout, row):
    """Releases stop at an answer, and AVST at a word, that training lacks; of options CueSpace reads the text."""
    if "choices" in row:
        return row["answer"] in ANSWERS or layout == "cuespace"
    return row["anser"] in ANSWERS and not (layout == "avst" and "Would" in row["question_content"])


def test_a_data_set_that_is_only_scored_has_the_numbers_of_its_models(exports):
    layout, results, folder = exports
    rows = [row for row in PUBLISHED["parts"]["test"] if readable(layout, row)]
    check(layout, results / "parts", folder / "parts", READERS[layout][1].format("test"), rows)
    train, val = (read(folder / "parts", READERS[layout][1].format(split)) for split in ("train", "val"))
    assert numbers(train) == numbers(PUBLISHED["base"]["train"])
    assert [sample["anser"] for sample in val] == [row["anser"] for row in PUBLISHED["base"]["val"]]
    arrays = {path.stem for path in (folder / "parts").rglob("*.npy")}
    assert not arrays & {str(sample["question_id"]) for sample in train + val}  # nor another question's arrays


def test_options(exports):
    layout, results, folder = exports
    for split, rows in PUBLISHED["options"].items():
        path = READERS[layout][1].format(split)
        wanted = [row for row in rows if readable(layout, row)]
        check(layout, results / "options", folder / "options", path, wanted)
        for sample, row in zip(read(folder / "options", path), wanted, strict=True):
            assert sample["multi_choice"] == row["choices"] and row["choices"][sample["answer"]] == row["answer"]


def test_tables_say_what_is_left_out(exports):
    layout, _, folder = exports
    reasons = dict.fromkeys(MISSING, "missing") | dict.fromkeys(FAILED, "failed") | dict.fromkeys(FILTERED, "filtered")
    for name, splits in PUBLISHED.items():
        table = [line.split(",") for line in (folder / name / "question_ids.csv").read_text().splitlines()]
        assert [name for name in (*table[0][:3], table[0][-1])] == ["export_id", "split", "question_id", "left_out"]
        rows = [row for rows in splits.values() for row in rows]
        for row, line in zip(rows, table[1:], strict=True):
            assert line[-1] == (reasons.get(row["video_id"], "") if readable(layout, row) else "unnumbered")
        videos = dict(line.split(",")[::3] for line in (folder / name / "videos.csv").read_text().splitlines()[1:])
        assert videos == {row["video_id"]: reasons.get(row["video_id"], "") for row in rows}


KINDS = {
    **{
        "av_avg": ("Audio-Visual", None),
        "av_temp": ("Audio-Visual", "Temporal"),
        "av_comp": ("Audio-Visual", "Comparative"),
    },
    **{"av_local": ("Audio-Visual", "Location"), "av_count": ("Audio-Visual", "Counting")},
    **{"av_exist": ("Audio-Visual", "Existential"), "a_avg": ("Audio", None), "a_comp": ("Audio", "Comparative")},
    **{"a_count": ("Audio", "Counting"), "v_avg": ("Visual", None), "v_local": ("Visual", "Location")},
    "v_count": ("Visual", "Counting"),
}


@pytest.mark.parametrize("exports", ["av-master"], indirect=True)
def test_av_masters_files_by_kind(exports):
    """Its trainer opens twelve files of val; its test script eleven of test, and the twelfth beside those of val."""
    _, _, folder = exports
    for name in ("base", "parts"):
        opened = {f"sub_val/music_avqa_val_{kind}": ("val", kind) for kind in KINDS}
        opened |= {f"sub_test/music_avqa_test_{kind}": ("test", kind) for kind in KINDS if kind != "av_avg"}
        opened["sub_val/music_avqa_test_av_avg"] = ("test", "av_avg")
        root = folder / name / "dataset" / "music_avqa"
        assert {str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.json")} == opened.keys()
        for path, (split, kind) in opened.items():
            scenario, kind = KINDS[kind]
            wanted = read(folder / name, f"dataset/split_que_id/music_avqa_{split}.json")
            types = [ast.literal_eval(sample["type"]) for sample in wanted]
            chosen = [s for s, t in zip(wanted, types, strict=True) if t[0] == scenario and kind in (None, t[1])]
            assert read(root, f"{path}.json") == chosen and (chosen or name == "parts")


@pytest.mark.parametrize("exports", ["cuespace", "qa-tiger"], indirect=True)
def test_the_files_of_a_test_in_two_parts(exports):
    layout, _, folder = exports
    root = "data/annots" if layout == "cuespace" else "annots"
    whole = read(folder / "parts", f"{root}/music_avqa/music_avqa_test.json")
    head, tail, both = (
        read(folder / "parts", f"{root}/music_avqa_r/avqa-test-{n}.json") for n in ("head", "tail", "headtail")
    )
    assert len(head) == 6 and head + tail == both == whole
    assert not (folder / "base" / root / "music_avqa_r").exists()


SMALL = {"vggish": ("embedding",), L14: ("cls",)}


def test_a_list_of_answers_in_another_order_than_training(tmp_path):
    """Released code takes the numbers from the training file, so that its questions are put in that order."""
    order = ["yes", "rarer", "no", "rare", "two", "made up"]
    results = make_sets(tmp_path, SMALL, L14, "base", answers=order)
    export(results / "base", "av-master", tmp_path / "out")
    for path in ("split_que_id", "musci_avqa"):
        written = read(tmp_path / "out", f"dataset/{path}/music_avqa_train.json")
        assert numbers(written)[1] == order
        rows = [(row["video_id"], " ".join(words_of(row)), row["anser"]) for row in PUBLISHED["base"]["train"]]
        assert sorted((s["video_id"], " ".join(words_of(s)), s["anser"]) for s in written) == sorted(rows)


def test_a_number_that_the_training_file_cannot_give_is_refused(tmp_path):
    results = make_sets(tmp_path, SMALL, L14, "base", answers=["unheard", *ANSWERS])
    with pytest.raises(AVQAError, match=r"no training question has the answer 'unheard' \(number 0 of 7\)"):
        export(results / "base", "av-master", tmp_path / "out")
    export(results / "base", "av-master", tmp_path / "out", force=True)
    results = make_sets(tmp_path / "last", SMALL, L14, "base", answers=[*ANSWERS, "unheard"])
    export(results / "base", "av-master", tmp_path / "other")


def test_words_that_are_numbered_otherwise_are_refused(tmp_path, monkeypatch):
    from pipeline.data import layouts

    row = layouts.LAYOUTS["avst"]
    monkeypatch.setitem(
        layouts.LAYOUTS, "avst", layouts.Layout(row.release, row.folders[:1], row.annotations, words=True)
    )
    results = make_sets(tmp_path, SMALL, L14, "base", answers=["yes", *ANSWERS[:-1]])
    with pytest.raises(AVQAError, match="numbers words otherwise"):
        export(results / "base", "avst", tmp_path / "out")


def test_the_training_questions_of_what_a_data_set_is_scored_with_must_be_there(tmp_path, capsys):
    results = make_sets(tmp_path, SMALL, L14, "parts")
    command = ["export", str(results / "parts"), "--layout", "av-master", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert str(results / "base" / "manifest.json") in message and "avqa manifest" in message
    assert not (tmp_path / "out").exists()


def test_prompts_that_were_not_encoded(tmp_path):
    outputs, text, _ = NEEDS["tspm"]
    results = make_sets(tmp_path, outputs, text, "base", prompts=False)
    with pytest.raises(AVQAError, match=r"has no prompt 'The .*qaPrompt_ViT-L14@336px.*avqa text --prompts"):
        export(results / "base", "tspm", tmp_path / "out", force=True)
    assert not (tmp_path / "out").exists()
