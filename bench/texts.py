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

SAMPLE = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", nargs="+")
    parser.add_argument("--encoder", default="clip_vit_b32")
    args = parser.parse_args()
    table = pd.concat([read_annotations(path, "test") for path in args.annotations])
    texts, shapes = table["question"].unique(), encoder_spec(args.encoder).text_outputs
    with tempfile.TemporaryDirectory() as name:
        out, sample = Path(name, "text.h5"), Path(name, "sample.txt")
        sample.write_text("\n".join(texts[:SAMPLE]))
        start = time.process_time()
        encode_texts(sample, out, encoder=args.encoder, weights="random")
        seconds, size = (time.process_time() - start) / SAMPLE, os.stat(out).st_size / SAMPLE
        one = Path(name, "one.npz")
        np.savez(one, **{key: np.zeros(shape, "float16") for key, shape in shapes.items()})
        alone = os.stat(one).st_size
    for what, count, each in (("once", len(texts), size), ("one file per question", len(table), alone)):
        print(f"{what}: {count} texts, {count * seconds:,.0f} s of CPU, {count * each / 1e6:,.0f} MB")


if __name__ == "__main__":
    main()
