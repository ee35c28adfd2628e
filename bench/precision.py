"""What mixed precision changes in a trained model's answers.

    python bench/precision.py results/demo/models/av_master/seed-0 [...]

Answers the test questions in float32 and in bfloat16 (autocast). Prints one line per model: accuracies, and how many
answers differ. To train in bfloat16: `train: {dtype: bfloat16}` in the configuration.
"""

import argparse
import time
from pathlib import Path

import torch

from pipeline.evaluate import load_trained
from pipeline.train import predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="what `avqa train` wrote")
    parser.add_argument("--split", default="test")
    args = parser.parse_args()
    for folder in args.folders:
        trained, model, data = load_trained(folder)
        answers, right, seconds = {}, {}, {}
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast(data.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                began = time.perf_counter()
                rows, scores = predict(model, data, args.split, trained["config"]["train"]["batch_size"])
            seconds[dtype], answers[dtype] = time.perf_counter() - began, scores.argmax(-1)
            right[dtype] = (answers[dtype] == data.questions["answer_id"].to_numpy()[rows]).mean()
        differ = int((answers[torch.float32] != answers[torch.bfloat16]).sum())
        print(
            f"{folder}: float32 {right[torch.float32]:.2%}, bfloat16 {right[torch.bfloat16]:.2%}; {differ} of "
            f"{len(rows)} answers differ; {seconds[torch.float32] / seconds[torch.bfloat16]:.1f} times as fast"
        )


if __name__ == "__main__":
    main()
