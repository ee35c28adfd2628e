"""Features and questions as a model reads them."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.data.features import Features
from pipeline.errors import AVQAError
from pipeline.models.base import Batch
from pipeline.storage.contract import DECODED
from pipeline.storage.features import FeatureIndex
from pipeline.storage.read_ahead import read_ahead


class QuestionData:
    """The questions of a data set with the features of their videos and texts.

    `features` maps a model's names to features ("encoder/output"), of which it reads the first `seconds`; `texts` are
    the outputs of the text encoder that it reads. Questions about videos that could not be decoded are left out of
    training. Raises AVQAError naming what is missing, or if the features' rows are not the questions' videos.
    """

    def __init__(
        self,
        folder: str | Path,
        features: dict[str, str],
        texts: Iterable[str],
        standardize: bool,
        device: torch.device,
        seconds: int | None = None,
    ):
        folder = Path(folder)
        self.path = folder / "features.h5"
        self.index = FeatureIndex(self.path)
        self.device, self.seconds = device, seconds
        for name in features.values():
            if name not in self.index.names:
                raise AVQAError(f"{self.path}: has no {name}; it has {', '.join(self.index.names)}")
        encoders = dict.fromkeys((*(name.split("/")[0] for name in features.values()), "text"))
        self.provenance = {name: self.index.provenance[name] for name in encoders}
        self.features = {name: Features(self.index, path, device) for name, path in features.items()}
        self.texts = {name: Features(self.index, f"text/{name}", device) for name in texts}
        self.questions = self._read_questions(folder / "questions.parquet")
        known = self.questions[self.questions["answer_id"] >= 0].drop_duplicates("answer_id").sort_values("answer_id")
        self.answers = known["answer"].tolist()
        self.choices = self._read_choices()
        if standardize:
            self._standardize()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of each feature and text."""
        videos = {name: x.shape for name, x in self.features.items()}
        videos = {name: (min(shape[0], self.seconds or shape[0]), *shape[1:]) for name, shape in videos.items()}
        return videos | {name: x.shape for name, x in self.texts.items()}

    def questions_in(self, split: str) -> pd.DataFrame:
        """The split's questions; those of training without failed videos. Raises AVQAError if there are none."""
        part = self.questions[self.questions["split"] == split]
        if split == "train":
            part = part[~part["failed"]]
        if part.empty:
            raise AVQAError(f"questions.parquet: has no questions of split {split}; add it under annotations:")
        return part

    def training_batches(self, size: int, rng: np.random.Generator, negatives: bool) -> Iterator[Batch]:
        """The training questions in random order; with `negatives`, each with the video of another question."""
        part = self.questions_in("train")
        videos, order = part["video_row"].to_numpy(), rng.permutation(len(part))

        def draw(at: np.ndarray) -> np.ndarray:
            others = videos[rng.integers(len(part), size=len(at))]
            while (same := others == videos[at]).any() and (videos != videos[0]).any():
                others[same] = videos[rng.integers(len(part), size=same.sum())]
            return others

        def read(at: np.ndarray, others: np.ndarray | None) -> Batch:
            batch = self._batch(part.iloc[at], self._read_features(videos[at]))
            batch.negatives = None if others is None else self._read_features(others)
            return batch

        parts = (order[start : start + size] for start in range(0, len(order), size))
        return read_ahead(partial(read, at, draw(at) if negatives else None) for at in parts)

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """The split video by video, each batch with its videos once."""
        part = self.questions_in(split)
        part = part.iloc[part["video_row"].to_numpy().argsort(kind="stable")]

        def read(questions: pd.DataFrame) -> Batch:
            rows, of_rows = np.unique(questions["video_row"].to_numpy(), return_inverse=True)
            batch = self._batch(questions, self._read_features(rows))
            batch.videos = torch.from_numpy(of_rows).to(self.device)
            return batch

        return read_ahead(partial(read, part.iloc[start : start + size]) for start in range(0, len(part), size))

    def _batch(self, questions: pd.DataFrame, features: dict[str, torch.Tensor]) -> Batch:
        texts = questions["text_row"].to_numpy()
        return Batch(
            features=features,
            texts={name: values[texts] for name, values in self.texts.items()},
            choices=None if self.choices is None else self._choice_features(questions.index.to_numpy()),
            answer=torch.from_numpy(questions["answer_id"].to_numpy(copy=True)).to(self.device),
            row=questions.index.to_numpy(),
        )

    def _read_features(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: values[rows][:, : self.seconds] for name, values in self.features.items()}

    def _read_questions(self, path: Path) -> pd.DataFrame:
        table = pd.read_parquet(path)
        for column, name, known in (
            ("video_row", "video_id", self.index.video_id),
            ("text_row", "question", self.index.texts),
        ):
            table[column] = table[name].map({value: n for n, value in enumerate(known)})
            lacking = table.loc[table[column].isna(), name]
            if len(lacking):
                raise AVQAError(
                    f"{self.path}: lacks {lacking.nunique()} of the values of {name} in {path}, the first "
                    f"{lacking.iloc[0]!r}; run the workflow again, so that both are made from the same data"
                )
            table[column] = table[column].astype(np.int64)
        table["failed"] = self.index.status[table["video_row"]] != DECODED
        return table

    def _read_choices(self) -> np.ndarray | None:
        """For multiple choice: which texts are each question's options (N, K, -1 where it has fewer). Answers are then
        numbered among a question's own options. None where questions have no options."""
        if "choices" not in self.questions or self.questions["choices"].isna().all():
            return None
        if self.questions["choices"].isna().any():
            raise AVQAError("questions.parquet: has questions with options and without; put them into two data sets")
        rows = {text: n for n, text in enumerate(self.index.texts)}
        choices = [[rows[text] for text in options] for options in self.questions["choices"]]
        most = max(map(len, choices))
        self.questions["answer_id"] = [
            list(options).index(answer)
            for options, answer in zip(self.questions["choices"], self.questions["answer"], strict=True)
        ]
        self.answers = [f"option {n + 1}" for n in range(most)]
        self.options = Features(self.index, "text/sentence", self.device)
        return np.array([options + [-1] * (most - len(options)) for options in choices])

    def _choice_features(self, at: np.ndarray) -> torch.Tensor:
        """B, K, D: the text features of the options of questions; zeros where there are fewer."""
        rows = self.choices[at]
        values = self.options[np.maximum(rows, 0).reshape(-1)].reshape(*rows.shape, -1)
        return values * torch.from_numpy(rows >= 0).to(values)[..., None]

    def _standardize(self) -> None:
        training = self.questions_in("train")
        for features in self.features.values():
            features.standardize(training["video_row"].unique())
        for features in self.texts.values():
            features.standardize(training["text_row"].unique())
