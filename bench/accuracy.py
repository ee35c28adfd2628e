"""What inexact frames cost and save: `decode.frame_selection` reference and keyframe, and `decode.backend` nvdec,
against the exact frames.

    python bench/accuracy.py FOLDER --weights openai
    python bench/accuracy.py FOLDER --weights openai --nvdec    # on a machine with an NVIDIA GPU and torchcodec

For each video of the folder: processor seconds for its segments, the distance of the frames from the wanted moments,
the share of the encoder's input values that differ and the largest difference (of 255), and the cosine similarity of
their CLS rows with those of the exact frames; for scale, that of exact frames one second apart. Prints a table in
Markdown.
"""

import argparse
import time
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from extractors import load_encoder
from pipeline.media.container import MediaFile
from pipeline.media.segments import MediaError, read_segments
from pipeline.media.video import UnreliableTimestamps
from pipeline.media.video_sparse import SparseDecoder

SELECTIONS = ("exact", "reference", "keyframe")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--encoder", default="clip_vit_b32")
    parser.add_argument("--weights", default="openai", help="a hub tag, a file, or random")
    parser.add_argument("--segments", type=int, default=60)
    parser.add_argument("--nvdec", action="store_true", help="the exact selection, decoded by the GPU, as well")
    args = parser.parse_args()
    encoder = load_encoder(args.encoder, args.weights, dtype="float32")
    (wanted,) = encoder.spec.inputs
    print(f"CLS of {args.encoder}, weights: {encoder.provenance['weights']}\n")
    print("| clip | frames | processor s | off by, ms (mean, most) | values that differ, by at most ", end="")
    print("| CLS cosine (mean, least) | one second apart |\n|---|---|---:|---:|---:|---:|---:|")
    ways = [(selection, selection, "pyav") for selection in SELECTIONS] + [("nvdec", "exact", "nvdec")] * args.nvdec
    for path in sorted(path for path in args.folder.iterdir() if path.is_file()):
        exact = None
        for name, selection, backend in ways:
            try:
                off = distances(path, args.segments, selection)
                began = time.process_time()
                options = {"frame_selection": selection, "backend": backend}
                read = read_segments(path, segments=args.segments, inputs=(wanted,), **options)
            except (MediaError, UnreliableTimestamps):
                break  # refused, or decoded in full whatever the selection
            spent = time.process_time() - began
            frames = read.data[wanted.key][: read.num_segments]
            cls = encoder.encode(frames)["cls"].cpu()
            if exact is None:
                exact, exact_frames = cls, frames.astype(int)
            different = np.abs(frames - exact_frames)
            same = torch.cosine_similarity(cls, exact).numpy()
            apart = torch.cosine_similarity(exact[1:], exact[:-1]).mean().item()
            print(
                f"| {path.name} | {name} | {spent:.2f} | {off.mean():.0f}, {off.max():.0f} "
                f"| {(different > 0).mean():.1%}, {different.max()} "
                f"| {same.mean():.4f}, {same.min():.4f} | {apart:.4f} |",
                flush=True,
            )


def distances(path: Path, segments: int, selection: str) -> np.ndarray:
    """Milliseconds between the selected frames and the exact ones, for each second of the video."""
    file = MediaFile.check(path)
    with closing(SparseDecoder(file, segments)) as exact, closing(SparseDecoder(file, segments, selection)) as other:
        seconds = max(1, min(segments, round(exact.end - exact.start)))
        moments = [exact.start + second + Fraction(1, 2) for second in range(seconds)]
        pairs = [(other.times[other.frame_number_at(m)], exact.times[exact.frame_number_at(m)]) for m in moments]
        return np.array([abs(a - b) * 1000 for a, b in pairs], float)


if __name__ == "__main__":
    main()
