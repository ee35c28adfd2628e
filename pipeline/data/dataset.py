"""Features and questions as a model reads them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from pipeline.data.features import Features
from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED
from pipeline.storage.features import FeatureIndex


class Batch(NamedTuple):
    """What AV-Master's forward takes, and the questions' places in their table with their answers."""

    audio: torch.Tensor  # B, T, audio dimension; with `videos` V, T, audio dimension
    visual: torch.Tensor  # B, T, visual dimension; with `videos` V, T, visual dimension
    words: torch.Tensor  # B, 77, text dimension
    sentence: torch.Tensor  # B, text dimension
    neg_audio: torch.Tensor | None
    neg_visual: torch.Tensor | None
    videos: torch.Tensor | None  # B int64: each question's row in audio and visual, where these hold a video once
    answer: torch.Tensor  # B int64; -1 where the answer never occurs in training
    row: np.ndarray  # B


class QuestionData:
    """The questions of a data set with the features of their videos and texts.

    `audio` and `visual` name the features ("encoder/output"), of which a model sees the first `segments` seconds.
    Questions about videos that could not be decoded are left out of training. Raises AVQAError naming what is
    missing.
    """

    def __init__(
        self,
        folder: str | Path,
        audio: str,
        visual: str,
        standardize: bool,
        device: torch.device,
        segments: int | None = None,
    ):
        folder = Path(folder)
        self.index = FeatureIndex(folder / "features.h5")
        for name in (audio, visual):
            if name not in self.index.names:
                raise AVQAError(f"{folder / 'features.h5'}: has no {name}; it has {', '.join(self.index.names)}")
        self.provenance = {
            name: self.index.provenance[name]
            for name in dict.fromkeys((audio.split("/")[0], visual.split("/")[0], "text"))
        }
        names = (audio, visual, "text/words", "text/sentence")
        self.audio, self.visual, self.words, self.sentence = (Features(self.index, n, device) for n in names)

        table = pd.read_parquet(folder / "questions.parquet")
        video_rows = {video_id: n for n, video_id in enumerate(self.index.video_id)}
        table["video_row"] = table["video_id"].map(video_rows)
        row_of = {text: n for n, text in enumerate(self.index.texts)}
        table["text_row"] = table["question"].map(row_of)
        if table["video_row"].isna().any():
            lacking = table.loc[table["video_row"].isna(), "video_id"]
            raise AVQAError(
                f"{folder / 'features.h5'}: lacks {lacking.nunique()} videos that questions ask about, as "
                f"{lacking.iloc[0]}; run the workflow again"
            )
        if table["text_row"].isna().any():
            raise AVQAError(f"{folder / 'features.h5'}: lacks some of the questions; run the workflow again")
        table["failed"] = self.index.status[table["video_row"]] != DECODED
        self.questions = table
        known = table[table["answer_id"] >= 0].drop_duplicates("answer_id").sort_values("answer_id")
        self.answers = known["answer"].tolist()
        self.device, self.segments = device, segments
        if standardize:
            training = self.of("train")
            for features in (self.audio, self.visual):
                features.standardize(training["video_row"].unique())
            for features in (self.words, self.sentence):
                features.standardize(training["text_row"].unique().astype(np.int64))

    def of(self, split: str) -> pd.DataFrame:
        """The split's questions; those of training without failed videos. Raises AVQAError if there are none."""
        part = self.questions[self.questions["split"] == split]
        if split == "train":
            part = part[~part["failed"]]
        if part.empty:
            raise AVQAError(f"questions.parquet: has no questions of split {split}; add it under annotations:")
        return part

    def batches(self, split: str, size: int, rng: np.random.Generator | None = None) -> Iterator[Batch]:
        """The split video by video, each batch with its videos once; with `rng` shuffled, and with another question's
        video as each sample's negative."""
        part = self.of(split)
        video, text = part["video_row"].to_numpy(), part["text_row"].to_numpy(np.int64)
        order = video.argsort(kind="stable") if rng is None else rng.permutation(len(part))
        answer, row = part["answer_id"].to_numpy(), part.index.to_numpy()

        def batch(at: np.ndarray, negative: np.ndarray | None) -> Batch:
            seconds = slice(self.segments)
            rows = video[at]
            if negative is None:
                rows, of_rows = np.unique(rows, return_inverse=True)
                others = (None, None, torch.from_numpy(of_rows).to(self.device))
            else:
                others = (self.audio[negative][:, seconds], self.visual[negative][:, seconds], None)
            return Batch(
                self.audio[rows][:, seconds],
                self.visual[rows][:, seconds],
                self.words[text[at]],
                self.sentence[text[at]],
                *others,
                torch.from_numpy(answer[at]).to(self.device),
                row[at],
            )

        def negatives(at: np.ndarray) -> np.ndarray:
            chosen = video[rng.integers(len(part), size=len(at))]
            while (same := chosen == video[at]).any() and (video != video[0]).any():
                chosen[same] = video[rng.integers(len(part), size=same.sum())]
            return chosen

        # The next batch is read while the model works on this one; the draws stay in order.
        with ThreadPoolExecutor(1) as pool:
            ahead = None
            for start in range(0, len(order), size):
                at = order[start : start + size]
                following = pool.submit(batch, at, None if rng is None else negatives(at))
                if ahead is not None:
                    yield ahead.result()
                ahead = following
            yield ahead.result()
