"""Features as others publish them: every layout's folders, written without the layout tables."""

import json

import numpy as np
import pandas as pd
from made_results import write_text

from pipeline.cli import main

SECONDS = 4
VIDEOS = [f"v{n:03d}" for n in range(7)]
MISSING, FAILED = "v005", "v003"  # no array at all; none in one of the folders
L14 = "clip_vit_l14_336"
FOLDERS = {  # layout -> folder -> feature and shape of a second, of each part that is joined
    "avst": {"feats/vggish": {"vggish/embedding": (128,)}, "visual_14x14": {"resnet18_music_avqa/map": (512, 14, 14)}},
    "pstp-net": {
        "vggish": {"vggish/embedding": (128,)},
        "clip_patch-level_vit_b32": {"clip_vit_b32/cls": (512,), "clip_vit_b32/patch": (49, 512)},
    },
    "tspm": {
        "vggish": {"vggish/embedding": (128,)},
        "clip_feats/frame_1fps_ViT-L14@336px": {f"{L14}/cls": (768,)},
        "ToMe_feat/tome14": {"tome_vit_l16_384/tokens": (14, 1024)},
    },
    "qa-tiger": {
        "feats/vggish": {"vggish/embedding": (128,)},
        "feats/frame_ViT-L14@336px": {f"{L14}/cls": (768,)},
        "feats/visual_tome14": {"tome_vit_l16_384/tokens": (14, 1024)},
    },
    "av-master": {"vggish_audio": {"vggish/embedding": (128,)}, "clip_vit_l14_336px": {f"{L14}/cls": (768,)}},
    "cuespace": {
        "frame_ViT-L14@336px": {f"{L14}/cls": (768,)},
        "visual_tome14": {"tome_vit_l16_384/tokens": (14, 1024)},
        "ast/audio_ast_cls": {"ast/cls": (768,)},
        "ast/audio_ast_patch_last_pooled": {"ast/pooled": (12, 768)},
    },
}
TEXTS = {  # layout -> folder -> what of which text, and its size
    "pstp-net": {"clip_qst": ("sentence", "question", 512), "clip_word": ("words", "question", 512)},
    "tspm": {
        "clip_feats/qst_ViT-L14@336px": ("sentence", "question", 768),
        "clip_feats/qaPrompt_ViT-L14@336px": ("sentence", "prompt", 768),
    },
    "av-master": {
        "clip_sentence_l14_336px": ("sentence", "question", 768),
        "clip_word_l14_336px": ("words", "question", 768),
    },
}


def record(video_id, question_id, template, values=(), answer="yes"):
    return {
        "video_id": video_id,
        "question_id": question_id,
        "type": '["Audio", "Counting"]',
        "question_content": template,
        "templ_values": json.dumps(list(values)),
        "anser": answer,
    }


PLAYING = "Is the <Object> in the video always playing?"
RECORDS = [  # ids that are texts, and one that two questions have; each of these asks what another id has an array for
    record("v000", 0, PLAYING, ["violin"]),
    record("v001", "q-one", PLAYING, ["flute"], "no"),
    record("v002", 2, "Is it loud?"),
    record(FAILED, 3, "Is it only asked of a video that failed?", answer="no"),
    record("v004", 4, PLAYING, ["violin"], "no"),
    record("v004", 4, PLAYING, ["flute"]),
    record(MISSING, 5, "Is it only asked of a video that is missing?"),
    record("v006", 6, "Is it loud?", answer="no"),
]
SPLITS = {"train": RECORDS[:5], "val": RECORDS[5:7], "test": RECORDS[7:]}
QUESTIONS = {  # by id, as they were when their arrays were made
    "0": ("Is the violin in the video always playing?", "The violin plays in the whole video"),
    "q-one": ("Is the flute in the video always playing?", "The flute plays in the whole video"),
    "2": ("Is it loud?", None),
    "3": ("Is it only asked of a video that failed?", None),
    "4": ("Which of the two is it?", None),
    "6": ("Is it loud?", None),
}


def video_array(name, video_id, shape, rows=SECONDS):
    return np.random.default_rng([*name.encode(), *video_id.encode()]).normal(size=(rows, *shape)).astype("float32")


def text_arrays(text, size):
    """sentence D, words 77, D of which the one at the end of the text is the sentence, and the number of tokens."""
    rng = np.random.default_rng([size, *text.encode()])
    words, length = rng.normal(size=(77, size)).astype("float32"), 3 + len(text.split())
    return {"sentence": words[length - 1], "words": words, "length": length}


def annotate(folder, splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, records in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(records))


def publish(folder, layout, splits=SPLITS):
    """The folders of a layout, and annotations of MUSIC-AVQA's form."""
    annotate(folder / "annotations", splits)
    for n, (name, parts) in enumerate(FOLDERS[layout].items()):
        (folder / name).mkdir(parents=True)
        for video_id in VIDEOS:
            if video_id == MISSING or (video_id == FAILED and n):
                continue
            arrays = [video_array(feature, video_id, shape) for feature, shape in parts.items()]
            if len(arrays) > 1:
                arrays = [np.concatenate([a if a.ndim == 3 else a[:, None] for a in arrays], 1)]
            np.save(folder / name / f"{video_id}.npy", arrays[0])
    for name, (output, kind, size) in TEXTS.get(layout, {}).items():
        (folder / name).mkdir(parents=True)
        for question_id, (question, prompt) in QUESTIONS.items():
            text = question if kind == "question" else prompt or question
            np.save(folder / name / f"{question_id}.npy", text_arrays(text, size)[output][None])
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "feats").mkdir(exist_ok=True)
    (folder / "data" / "feats" / "final").symlink_to(folder)
    return folder


def configure(tmp_path, annotations, splits=("train", "val", "test"), **changes):
    values = {"dataset": "back", "results": str(tmp_path / "results"), "allow_missing": True, "shard_size": 3}
    values |= {"annotations": {split: str(annotations / f"{split}.json") for split in splits}}
    values |= {"decode": {"segments": SECONDS}, "videos": {"collection": "videos", "folder": "none"}}
    (tmp_path / "import.yaml").write_text(json.dumps(values | changes))
    return str(tmp_path / "import.yaml")


def run(tmp_path, folder, *arguments, **changes):
    """The command's status, with a configuration whose annotations are in the folder."""
    splits = [split for split in SPLITS if (folder / "annotations" / f"{split}.json").exists()]
    config = configure(tmp_path, folder / "annotations", splits, **changes)
    return main(["import", *arguments, "--config", config])


def encode_texts_here(tmp_path, encoder="clip_vit_b32"):
    """What `avqa text` would write."""
    dataset = tmp_path / "results" / "back"
    texts = pd.read_parquet(dataset / "questions.parquet")["question"].unique().tolist()
    write_text(dataset, texts, encoder=encoder)
