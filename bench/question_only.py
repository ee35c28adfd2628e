"""What the questions alone give away: AV-Master without audio and visual features, on real annotations, no videos.

    python bench/question_only.py --train avqa-train.json [...] --test avqa-test.json

Official MUSIC-AVQA files. A tenth of the training videos' questions chooses the epoch. Words come from CLIP's text
encoder, with seeded random weights unless --weights says otherwise. Prints accuracy overall and by type; results stay
in --out, and an interrupted run resumes there.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.accuracy import format_scores
from pipeline.config import check_config, collection_dir, dataset_dir
from pipeline.data.formats import read_annotations
from pipeline.evaluate import evaluate
from pipeline.index import build_index
from pipeline.manifest import write_parquet
from pipeline.numbering import Numbering, index_answers, number
from pipeline.storage.contract import PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, read_shard_list, write_shard_list
from pipeline.text import encode_texts
from pipeline.train import train

# The model's inputs are the question only, so the videos' features may be as small as possible.
UNREAD = {"clip_vit_b32": "cls", "vggish": "embedding"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--weights", default="random", help="of clip_vit_b32: a hub tag, a file, or random")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("results"))
    args = parser.parse_args()
    model = {
        "architecture": "av_master",
        "audio": "vggish/embedding",
        "visual": "clip_vit_b32/cls",
        "inputs": ["question"],
        "width": args.width,
    }
    config = check_config(
        {
            "dataset": "question_only",
            "results": str(args.out),
            "videos": {"collection": "no_videos", "folder": "none"},
            "annotations": {"train": str(args.train[0]), "val": str(args.train[0]), "test": str(args.test)},
            "encoders": {encoder: {"weights": "random"} for encoder in UNREAD},
            "text": {"encoder": "clip_vit_b32", "weights": args.weights},
            "models": {"question_only": model},
            "train": {"epochs": args.epochs, "learning_rate": 3e-4, "decay_every": 5, "standardize": True},
        }
    )
    folder, collection = dataset_dir(config), collection_dir(config)
    videos, numbering = write_questions(args.train, args.test, folder)
    write_zeros(videos, collection)
    shards = {"00000": digest(read_shard_list(collection / "shards" / "00000.tsv"))}
    manifest = {"videos": len(videos), "shards": shards, **numbering.as_dict()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    encode_texts(folder / "questions.parquet", folder / "text" / "clip_vit_b32.h5", **config["text"])
    features = {f"{encoder}/{output}": [encoder] for encoder, output in UNREAD.items()}
    build_index(folder, collection, features, {"clip_vit_b32": folder / "text" / "clip_vit_b32.h5"}, folder)
    overall = []
    for seed in args.seeds:
        train(config, "question_only", seed, folder / "models" / "question_only" / f"seed-{seed}")
        scores = evaluate(folder / "models" / "question_only" / f"seed-{seed}")
        print(f"seed {seed}\n{format_scores(scores)}", flush=True)
        overall.append(scores["overall"]["accuracy"])
    print(f"overall {100 * np.mean(overall):.2f} % over {len(overall)} seed(s)")
    print("MCD, Table II, question only, trained on the whole training split: 51.24 %")


def write_questions(training: list[Path], test: Path, folder: Path) -> tuple[list[str], Numbering]:
    """Write questions.parquet; returns the ids of its videos, and the numbers of its answers and words."""
    parts = [*(read_annotations(path, "train", "music_avqa") for path in training)]
    table = pd.concat([*parts, read_annotations(test, "test", "music_avqa")], ignore_index=True)
    numbering = number({}, table)
    table["answer_id"] = index_answers(table["answer"], numbering.answers)
    groups = table["video_id"].factorize()[0]
    table.loc[(table["split"] == "train") & (groups % 10 == 0), "split"] = "val"
    folder.mkdir(parents=True, exist_ok=True)
    write_parquet(table, folder / "questions.parquet")
    return list(table["video_id"].unique()), numbering


def write_zeros(videos: list[str], collection: Path) -> None:
    """One shard of all videos, with a single zero as features of each."""
    write_shard_list(collection / "shards" / "00000.tsv", [Video(video, video, 0, 1) for video in videos])
    for encoder, output in UNREAD.items():
        datasets = {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
        datasets[f"{encoder}/{output}"] = DatasetSpec((1, 1), "float16")
        attributes = {"kind": "features", "collection": "no_videos", "shard": "00000", "source": "none", "config": {}}
        attributes |= {"encoder": encoder, "weights": "none", "weights_sha256": "0" * 64, "pretrained": False}
        path = collection / "features" / encoder / "00000.h5"
        with ShardWriter(path, len(videos), datasets, attributes | {"libraries": {}}, {"video_id": videos}) as writer:
            rows = {name: np.zeros((len(videos), *spec.shape), spec.dtype) for name, spec in datasets.items()}
            writer.write(slice(0, len(videos)), rows)


if __name__ == "__main__":
    main()
