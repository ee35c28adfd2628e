"""How long Snakemake needs to plan, and with how much memory: all published data sets, and a million videos.

    python bench/dag.py                        # the published data sets, nothing done yet after the manifest
    python bench/dag.py --videos 1000000 --shard-size 512
    python bench/dag.py --finished             # all features there: what a run costs when nothing changed

Videos are empty files' names in the shard lists, features are empty files; the manifests are written here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from pipeline.config import load_configs
from pipeline.paths import Paths, paths_of
from pipeline.storage.contract import MANIFEST
from pipeline.storage.shard_list import Video, write_shard_list

ROOT = Path(__file__).resolve().parent.parent
V2 = ["music_avqa_v2_balanced", "music_avqa_v2_biased"]
PUBLISHED = {  # data set: its collection, how many videos of it, trained on
    "music_avqa": ("music", 9288, ["music_avqa"]),
    "music_avqa_real": ("music", 7422, ["music_avqa_real"]),
    "music_avqa_r": ("music", 9288, ["music_avqa"]),
    "fortis_avqa": ("music", 9288, ["music_avqa"]),
    "music_avqa_v2_balanced": ("music", 10492, V2),
    "music_avqa_v2_biased": ("music", 10492, V2),
    "avqa": ("vggsound", 57015, ["avqa"]),
    "valor32k_avqa": ("valor", 28863, ["valor32k_avqa"]),
}


def write_data_set(files: Paths, videos: int, shard_size: int, finished: bool) -> None:
    """The manifest of a data set, and what its collection has."""
    shards = [f"{n:05d}-{n:010x}" for n in range(-(-videos // shard_size))]
    for shard in shards:
        if not (path := files.shard_list(shard)).exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_shard_list(path, [Video(f"{shard}_{n}", "x.mp4", 1, 1) for n in range(2)])
        for encoder in ("clip_vit_l14", "vggish") if finished else ():
            features = files.features_file(encoder, shard)
            features.parent.mkdir(parents=True, exist_ok=True)
            features.touch()
    digests = (
        "video_ids",
        "questions",
        "absent",
        "training",
        "training_videos",
        "test",
        "test_videos",
        "texts",
        "prompts",
        "numbering",
        "left_out",
    )
    described = {"videos": videos, "shards": dict.fromkeys(shards, ""), **dict.fromkeys(digests, "")}
    files.manifest_dir.mkdir(parents=True)
    for name in MANIFEST:
        (files.manifest_dir / name).write_text(json.dumps(described) if name == "manifest.json" else "")


def configuration(folder: Path, sets: dict[str, tuple[str, int, list[str]]], shard_size: int) -> dict:
    annotations = {}
    for split in ("train", "val", "test"):
        annotations[split] = str(folder / f"{split}.json")
        Path(annotations[split]).write_text("[]")
        os.utime(annotations[split], (0, 0))
    return {
        "datasets": {
            name: {"trained_on": trained, "videos": {"collection": collection}, "decode": {"segments": 60}}
            for name, (collection, _, trained) in sets.items()
        },
        "results": str(folder / "results"),
        "videos": {"folder": str(folder / "videos")},
        "annotations": annotations,
        "shard_size": shard_size,
        "encoders": {
            "clip_vit_l14": {"weights": "random", "outputs": ["cls"]},
            "vggish": {"weights": "random"},
        },
        "text": {"encoder": "clip_vit_l14", "weights": "random"},
        "models": {"av_master": {"audio": "vggish/embedding", "visual": "clip_vit_l14/cls"}},
        "train": {"seeds": [0, 1, 2]},
        "ablations": {"tables": []},
    }


def plan(folder: Path) -> tuple[float, float, float, int]:
    """Seconds, seconds of CPU, peak memory in GB and number of jobs of a dry run."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "8"]
    command += ["--dry-run", "--quiet", "rules", "--configfile", "c.yaml", "--directory", str(folder)]
    start = time.monotonic()
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds, text = time.monotonic() - start, (folder / "log").read_text()
    if status:
        raise SystemExit(text[-3000:])
    jobs = [line.split()[1] for line in text.splitlines() if line.startswith("total ")]
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6, int(jobs[-1]) if jobs else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, help="one data set with so many videos in place of the published ones")
    parser.add_argument("--shard-size", type=int, default=128)
    parser.add_argument("--finished", action="store_true")
    args = parser.parse_args()
    sets = {"large": ("many", args.videos, ["large"])} if args.videos else PUBLISHED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "videos").mkdir()
        (folder / "c.yaml").write_text(yaml.safe_dump(configuration(folder, sets, args.shard_size)))
        paths = paths_of(load_configs(folder / "c.yaml"))
        for data_set, (_, videos, _) in sets.items():
            write_data_set(paths[data_set], videos, args.shard_size, args.finished)
        seconds, cpu, memory, jobs = plan(folder)
    print(f"{', '.join(sets)}: {jobs} jobs planned in {seconds:.1f} s ({cpu:.1f} s of CPU) with {memory:.2f} GB")


if __name__ == "__main__":
    main()
