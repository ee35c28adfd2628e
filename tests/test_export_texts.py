"""Texts of `avqa export`: whose encoder's, with or without question marks, prompts, and the questions in files."""

import json

import numpy as np
import pandas as pd
import pytest
from made_results import make_index, make_results, text_feature, write_text

from pipeline.errors import AVQAError
from pipeline.export import export


def test_question_marks_that_the_release_drops(tmp_path):
    """PSTP-Net's script drops them; TSPM's, whose protocol AV-Master follows, does not."""
    for layout, encoder, dropped in (("pstp-net", "clip_vit_b32", True), ("av-master", "clip_vit_l14_336", False)):
        outputs = {"vggish": ("embedding",), encoder: ("cls", "patch") if dropped else ("cls",)}
        dataset = make_results(tmp_path / layout, 2, 4, outputs, encoder, seconds=60)
        for config in ({"drop_last_character": True}, {}):
            for path in (dataset / "text").glob("*.h5"):
                path.unlink()
            texts = pd.read_parquet(dataset / "questions.parquet")["question"].unique().tolist()
            write_text(dataset, texts, encoder=encoder, config={"sentence": "eot"} | config)
            make_index(dataset, dataset.parent / "small_videos", list(outputs), encoder)
            out = tmp_path / layout / f"out{len(config)}"
            if bool(config) == dropped:
                export(dataset, layout, out)
                continue
            with pytest.raises(AVQAError, match=f"encoded {'without' if config else 'with'} their question mark"):
                export(dataset, layout, out)
            assert not out.exists()


def test_texts_are_those_of_the_layouts_encoder(tmp_path):
    """A data set of several models has texts of several encoders, of which the first is not PSTP-Net's."""
    outputs = {"vggish": ("embedding",), "clip_vit_b32": ("cls", "patch")}
    dataset = make_results(tmp_path, 2, 4, outputs, "clip_vit_l14_336", seconds=60)
    texts = pd.read_parquet(dataset / "questions.parquet")["question"].unique().tolist()
    write_text(dataset, texts, config={"drop_last_character": True})
    collection = dataset.parent / "small_videos"
    make_index(dataset, collection, list(outputs), "clip_vit_l14_336", "clip_vit_b32")
    export(dataset, "pstp-net", tmp_path / "out")
    found = np.load(tmp_path / "out" / "clip_word" / "1.npy")[0]
    np.testing.assert_array_equal(found, text_feature("words", "Is it loud?"))
    made = json.loads((tmp_path / "out" / "export.json").read_text())
    assert made["folders"]["clip_word"] == ["text/words"] and made["features"]["text"]["encoder"] == "clip_vit_b32"


def test_questions_without_a_prompt_are_named(tmp_path):
    outputs = {"vggish": ("embedding",), "clip_vit_l14_336": ("cls",), "tome_vit_l16_384": ("tokens",)}
    dataset = make_results(tmp_path, 2, 4, outputs, "clip_vit_l14_336", seconds=60)
    with pytest.raises(AVQAError, match="qaPrompt_ViT-L14@336px: 4 questions have no prompt"):
        export(dataset, "tspm", tmp_path / "out")


@pytest.mark.parametrize("text", ["Is it loud?", "Is it loud", "Tell me.", "Is it loud？"])
def test_the_last_character_which_releases_drop_is_no_letter(tmp_path, text):
    dataset = make_results(tmp_path)
    table = pd.read_parquet(dataset / "questions.parquet")
    table.assign(question=text).to_parquet(dataset / "questions.parquet")
    for shared in (dataset / "text").glob("*.h5"):
        shared.unlink()
    write_text(dataset, [text])
    make_index(dataset, dataset.parent / "small_videos", ["clip_vit_b32", "vggish"], "clip_vit_b32")
    export(dataset, "pstp-net", tmp_path / "out", force=True)
    sample = json.loads((tmp_path / "out/dataset/split_que_id/music_avqa_train.json").read_text())[0]
    assert sample["question_content"][:-1] == text.rstrip("?？.")
