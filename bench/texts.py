"""Each different text once: time and bytes, against one file per question.

python bench/texts.py music_avqa_test.json …      # annotation files in the form of MUSIC-AVQA
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from extractors import encoder_spec
from pipeline.data.formats import read_annotations
from pipeline.text import encode_texts

SAMPLE = 256


def encode(texts: list[str], out: Path, encoder: str) -> float:
    """Seconds of CPU, the start of the encoder included."""
    lines = out.with_suffix(".txt")
    lines.write_text("\n".join(texts))
    start = time.process_time()
    encode_texts(lines, out, encoder=encoder, weights="random")
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", nargs="+")
    parser.add_argument("--encoder", default="clip_vit_b32")
    args = parser.parse_args()
    table = pd.concat([read_annotations(path, "test") for path in args.annotations])
    texts, shapes = table["question"].unique(), encoder_spec(args.encoder).text_outputs
    with tempfile.TemporaryDirectory() as name:
        encode(texts[:2], Path(name, "first.h5"), args.encoder)  # imports
        seconds = [encode(texts[:count], Path(name, f"{count}.h5"), args.encoder) for count in (SAMPLE, 2 * SAMPLE)]
        seconds, size = (seconds[1] - seconds[0]) / SAMPLE, os.stat(Path(name, f"{SAMPLE}.h5")).st_size / SAMPLE
        one = Path(name, "one.npz")
        np.savez(one, **{key: np.zeros(shape, "float16") for key, shape in shapes.items()})
        alone = os.stat(one).st_size
    for what, count, each in (("once", len(texts), size), ("one file per question", len(table), alone)):
        print(f"{what}: {count} texts, {count * seconds:,.0f} s of CPU, {count * each / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
