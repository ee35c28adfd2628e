"""Data sets as releases publish them, with what goes wrong in one, and their features: what tests of exports need.

`base` is in MUSIC-AVQA's form; videos of it are missing, failed and filtered, ids are texts, repeated and missing.
`parts` is only scored, with models of `base`, and has two parts as MUSIC-AVQA-R. `options` is multiple choice.
"""

import json
from pathlib import Path

from made_results import make_index, write_shard, write_text

from pipeline.config import check_configs
from pipeline.data.formats.base import TYPES
from pipeline.manifest import build_manifest
from pipeline.storage.shard_list import read_shard_list
from pipeline.text import read_texts

SECONDS = 60
TEMPLATES = (  # what fills them; the statement that is their prompt
    ("Is the <Object> in the video always playing?", ["cello"], "The cello plays in the whole video"),
    ("How many instruments are sounding in the video?", [], "Instruments make sounds in the video"),
    ("How many sounding <Object> in the video？", ["tuba"], "The tuba makes a sound in the video"),
    ("Is the <Object> louder than the <Object>?", ["flute", "violin"], "The flute is louder than the violin"),
    ("Are there <Object> and <Object> sound? ", ["pipa", "cello"], "The sound of the pipa and of the cello"),
)
FIRST_ONLY = 2  # of TEMPLATES: one question of training has it, and its video is filtered
VIDEOS = {
    "train": ("v000", "v001", "fake_1", "v002", "v003"),
    "val": ("v004", "v005"),
    "test": ("v006", "v007", "fake_2"),
}
MISSING, FAILED, FILTERED = {"v001", "v007"}, {"v000", "v005"}, {"fake_1", "fake_2"}
ANSWERS = ("rare", "rarer", "made up", "no", "two", "yes")  # as they first occur in training
KEPT_IDS = {m for m in range(18) if m not in (3, 4, 5, 6, 7)}  # of a split's questions: numbers that no other has


def base() -> dict[str, list[dict]]:
    """Two questions of each kind in each split. The first three of training, from which answers and words are numbered,
    are about a failed, a missing and a filtered video."""
    splits = {}
    for n, (split, videos) in enumerate(VIDEOS.items()):
        rows = []
        for m, kind in enumerate((*TYPES, *TYPES)):
            others = [template for k, template in enumerate(TEMPLATES) if k != FIRST_ONLY]
            template, values, _ = TEMPLATES[FIRST_ONLY] if (n, m) == (0, 2) else others[(m + n) % len(others)]
            row = {"video_id": videos[(m + m // 9) % len(videos)], "question_id": 100 * n + m, "type": json.dumps(kind)}
            row |= {"question_content": template, "templ_values": json.dumps(values)}
            rows.append(row | {"anser": ANSWERS[(m + n) % len(ANSWERS)]})
        rows[4]["question_id"], rows[5]["question_id"] = f"{split}-4", rows[3]["question_id"]
        rows[6]["question_id"], rows[7]["question_id"] = None, "007"
        splits[split] = rows
    return splits


def parts() -> dict[str, list[dict]]:
    """Two parts of a test: rephrased questions, some of them in words of training, whose ids are also those of other
    questions in `base`. The last one's answer is none of training."""
    found: dict[str, list[dict]] = {}
    for m, kind in enumerate((*TYPES, *TYPES)):
        row = {"video_id": ("v006", "v008", "v007")[m % 3], "question_id": m, "type": json.dumps(kind)}
        text = "Is the cello louder in the video?" if m % 2 else "Would the cello be playing?"
        row |= {"question_content": text, "templ_values": "[]"}
        found.setdefault("tail" if m % 3 else "head", []).append(row | {"anser": ANSWERS[m % len(ANSWERS)]})
    found["tail"][-1]["anser"] = "unheard"
    return found


def options() -> dict[str, list[dict]]:
    """Questions with four options each; the last one's answer is none of training."""
    found = {}
    for n, (split, videos) in enumerate(
        {"train": ("v002", "v001"), "val": ("v004",), "test": ("v006", "v000")}.items()
    ):
        found[split] = [
            {
                "video_id": videos[m % len(videos)],
                "question_id": f"{split}{m}",
                "question": f"What makes sound {m % 2}?",
            }
            | {"answer": ANSWERS[(m + n) % 4], "choices": list(ANSWERS[:4]), "scenario": kind[0], "type": kind[1]}
            for m, kind in enumerate((*TYPES, *TYPES))
        ]
    found["test"][-1] |= {"answer": "unheard", "choices": ["unheard", *ANSWERS[:3]]}
    return found


PUBLISHED = {
    "base": base(),
    "parts": {"test": [row for rows in parts().values() for row in rows]},
    "options": options(),
}


def configurations(folder: Path, **changes) -> dict[str, dict]:
    """The annotation files of all data sets, empty video files, and the checked configurations."""
    (folder / "videos").mkdir(parents=True)
    for n in range(9):
        if f"v{n:03d}" not in MISSING:
            (folder / "videos" / f"v{n:03d}.mp4").write_bytes(b"x" * (n + 1))
    files = {"base": base(), "parts": parts(), "options": options()}
    paths: dict[str, dict[str, str]] = {}
    for name, splits in files.items():
        for split, rows in splits.items():
            path = folder / f"{name}-{split}.json"
            path.write_text(json.dumps(rows))
            paths.setdefault(name, {})[split] = str(path)
    common = {"results": str(folder / "results"), "allow_missing": True, "decode": {"segments": SECONDS}}
    common["videos"] = {"collection": "clips", "folder": str(folder / "videos")}
    datasets = {
        "base": {"annotations": paths["base"], "video_ids": "v.*"} | changes,
        "parts": {"annotations": {"test": paths["parts"]}, "trained_on": ["base"]},
        "options": {"annotations": paths["options"], "format": "plain"},
    }
    return check_configs(common | {"datasets": datasets}, sections=("videos",))


def make_sets(
    folder: Path, outputs: dict[str, tuple[str, ...]], text: str, *names: str, prompts: bool = True, **changes
) -> Path:
    """results/{base, parts, options, clips} with the features of `outputs`; returns results. PSTP-Net's texts are said
    to be encoded without question marks."""
    configs = configurations(folder, **changes)
    for name in names or configs:
        build_manifest(configs[name])
    collection = folder / "results" / "clips"
    failed = {("status", video_id): 1 for video_id in FAILED}  # whose features are no zeros here
    for path in sorted((collection / "shards").glob("*.tsv")):
        for encoder, outputs_ in outputs.items():
            videos = read_shard_list(path)
            write_shard(collection, encoder, path.stem, videos, failed, outputs=outputs_, seconds=SECONDS)
    for name in names or configs:
        dataset = folder / "results" / name
        config = {"sentence": "eot", **({"drop_last_character": True} if text == "clip_vit_b32" else {})}
        write_text(dataset, read_texts(dataset / "questions.parquet", prompts), encoder=text, config=config)
        make_index(dataset, collection, list(outputs), text)
    return folder / "results"
