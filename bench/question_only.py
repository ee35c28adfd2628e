"""What the questions alone give away: AV-Master blind and deaf, on real annotations, without a single video.

    python bench/question_only.py --train avqa-train.json [...] --test avqa-test.json

Official MUSIC-AVQA files. A tenth of the training videos' questions chooses the epoch. Words are read by CLIP's text
tower, from seeded random weights unless --weights says otherwise. Prints accuracy overall and by type; what is
computed stays in --out, and a stopped run goes on there.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.config import check_config, results_dir
from pipeline.evaluate import evaluate, format_scores
from pipeline.index import build_index
from pipeline.manifest import index_answers, read_annotations, write_parquet
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, write_shard_list
from pipeline.text import encode_texts
from pipeline.train import train

# The model's inputs are the question, so the videos' features may be as small as they can be.
UNSEEN = {"clip_vit_b32": "cls", "vggish": "embedding"}


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
    model = {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls", "inputs": ["question"], "width": args.width}
    config = check_config(
        {
            "dataset": "question_only",
            "results": str(args.out),
            "videos": {"folder": "none"},
            "annotations": {"train": str(args.train[0]), "test": str(args.test)},
            "encoders": {encoder: {"weights": "random"} for encoder in UNSEEN},
            "text": {"encoder": "clip_vit_b32", "weights": args.weights},
            "models": {"question_only": model},
            "train": {"epochs": args.epochs, "learning_rate": 3e-4, "decay_every": 5, "standardize": True},
        }
    )
    folder = results_dir(config)
    questions(args.train, args.test, folder)
    encode_texts(folder / "questions.parquet", folder / "clip_vit_b32" / "text.h5", **config["text"])
    build_index(folder, list(UNSEEN), "clip_vit_b32", 0)
    overall = []
    for seed in args.seeds:
        train(config, "question_only", seed, folder / f"seed-{seed}")
        scores = evaluate(folder / f"seed-{seed}")
        print(f"seed {seed}\n{format_scores(scores)}", flush=True)
        overall.append(scores["overall"]["accuracy"])
    print(f"overall {100 * np.mean(overall):.2f} % over {len(overall)} seed(s)")
    print("MCD, Table II, question only, trained on the whole training split: 51.24 %")


def questions(training: list[Path], test: Path, folder: Path) -> None:
    """questions.parquet, and one shard of all videos with features of a single zero."""
    table = pd.concat([*(read_annotations(path, "train") for path in training), read_annotations(test, "test")])
    table = table.reset_index(drop=True)
    videos = pd.Series(table["video_id"].unique())
    table["video_row"] = table["video_id"].map({video: row for row, video in videos.items()})
    table["answer_id"] = index_answers(table)
    table.loc[(table["split"] == "train") & (table["video_row"] % 10 == 0), "split"] = "val"
    write_parquet(table, folder / "questions.parquet")
    write_shard_list(folder / "shards" / "00000.tsv", [Video(video, video, 0, 0) for video in videos])
    for encoder, output in UNSEEN.items():
        zeros = np.zeros(len(videos))
        facts = {"num_segments": zeros + 1, "has_audio": zeros, "status": zeros}
        rows = facts | {f"{encoder}/{output}": np.zeros((len(videos), 1, 1))}
        kinds = {"num_segments": "int32", "has_audio": "bool", "status": "int32"}
        datasets = {name: DatasetSpec(values.shape[1:], kinds.get(name, "float16")) for name, values in rows.items()}
        attributes = {"kind": "features", "dataset": "question_only", "shard": "00000", "source": "none", "config": {}}
        attributes |= {"encoder": encoder, "weights": "none", "weights_sha256": "0" * 64, "pretrained": False}
        path = folder / encoder / "00000.h5"
        with ShardWriter(path, len(videos), datasets, attributes, {"video_id": list(videos)}) as writer:
            writer.write(slice(0, len(videos)), rows)


if __name__ == "__main__":
    main()
