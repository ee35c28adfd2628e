"""What decode.accuracy costs and saves: frames of `reference` and `keyframe` against the exact ones.

    python bench/accuracy.py FOLDER --weights openai

For each video of the folder: processor seconds for the pictures, how far the shown frames are from the right
moment, and the cosine similarity of their CLS rows with those of the exact frames; for scale, that of exact frames
a second apart. Prints a table in Markdown.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from extractors import load_encoder
from pipeline.media.container import MediaFile
from pipeline.media.segments import MediaError, read_segments
from pipeline.media.video import UnreliableTimestamps
from pipeline.media.video_sparse import SparseDecoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="clip_vit_b32")
    parser.add_argument("--weights", default="openai", help="a hub tag, a file, or random")
    parser.add_argument("--segments", type=int, default=60)
    args = parser.parse_args()
    encoder = load_encoder(args.encoder, args.weights, dtype="float32")
    (frames,) = encoder.spec.inputs
    size = frames.size
    print(f"CLS of {args.encoder}, weights: {encoder.provenance['weights']}\n")
    print("| clip | accuracy | processor s | off by, ms (mean, most) | CLS cosine (mean, least) | a second apart |")
    print("|---|---|---:|---:|---:|---:|")
    for path in sorted(path for path in args.folder.iterdir() if path.is_file()):
        exact = None
        for accuracy in ("exact", "reference", "keyframe"):
            try:
                off = distances(path, args.segments, accuracy)
                began = time.process_time()
                read = read_segments(path, segments=args.segments, sizes=(size,), accuracy=accuracy)
            except (MediaError, UnreliableTimestamps):
                break  # refused, or decoded in full whatever the accuracy
            spent = time.process_time() - began
            cls = encoder.encode(read.frames[size][: read.num_segments])["cls"]
            exact = cls if exact is None else exact
            same = torch.cosine_similarity(cls, exact).numpy()
            apart = torch.cosine_similarity(exact[1:], exact[:-1]).mean().item()
            print(
                f"| {path.name} | {accuracy} | {spent:.2f} | {off.mean():.0f}, {off.max():.0f} "
                f"| {same.mean():.4f}, {same.min():.4f} | {apart:.4f} |",
                flush=True,
            )


def distances(path: Path, segments: int, accuracy: str) -> np.ndarray:
    """Milliseconds between the frames shown and the ones that should be, for each second of the video."""
    file = MediaFile.check(path)
    right, shown = SparseDecoder(file, segments), SparseDecoder(file, segments, accuracy)
    moments = [right.start + second + 0.5 for second in range(max(1, min(segments, round(right.end - right.start))))]
    return np.array([abs(shown.times[shown.on_show(m)] - right.times[right.on_show(m)]) * 1000 for m in moments], float)


if __name__ == "__main__":
    main()
