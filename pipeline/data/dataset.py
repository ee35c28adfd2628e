"""Features and questions as a model reads them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import h5py
import numpy as np
import pandas as pd
import torch

from pipeline.data.features import Features
from pipeline.errors import AVQAError
from pipeline.models.base import Batch
from pipeline.storage.features import open_index

Item, Result = TypeVar("Item"), TypeVar("Result")


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
        self.path, self.file = folder / "features.h5", open_index(folder / "features.h5")
        self.device, self.seconds = device, seconds
        for name in features.values():
            self._check_has(name)
        self.provenance = {
            name: {k: v.item() if isinstance(v, np.generic) else v for k, v in self.file[name].attrs.items()}
            for name in dict.fromkeys((*(path.split("/")[0] for path in features.values()), "text"))
        }
        self.features = {name: Features(self.file[path], device) for name, path in features.items()}
        self.texts = {name: Features(self.file[f"text/{name}"], device) for name in texts}
        self.questions = self._read_questions(folder / "questions.parquet")
        known = self.questions[self.questions["answer_id"] >= 0].drop_duplicates("answer_id").sort_values("answer_id")
        self.answers = known["answer"].tolist()
        if standardize:
            self._standardize()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of each feature and text."""
        videos = {name: tuple(x.values.shape[1:]) for name, x in self.features.items()}
        videos = {name: (min(shape[0], self.seconds or shape[0]), *shape[1:]) for name, shape in videos.items()}
        return videos | {name: tuple(x.values.shape[1:]) for name, x in self.texts.items()}

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

        def read(drawn: tuple[np.ndarray, np.ndarray | None]) -> Batch:
            at, others = drawn
            batch = self._batch(part.iloc[at], self._read_features(videos[at]))
            batch.negatives = None if others is None else self._read_features(others)
            return batch

        parts = (order[start : start + size] for start in range(0, len(order), size))
        return read_ahead(read, ((at, draw(at) if negatives else None) for at in parts))

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """The split video by video, each batch with its videos once."""
        part = self.questions_in(split)
        part = part.iloc[part["video_row"].to_numpy().argsort(kind="stable")]

        def read(questions: pd.DataFrame) -> Batch:
            rows, of_rows = np.unique(questions["video_row"].to_numpy(), return_inverse=True)
            batch = self._batch(questions, self._read_features(rows))
            batch.videos = torch.from_numpy(of_rows).to(self.device)
            return batch

        return read_ahead(read, (part.iloc[start : start + size] for start in range(0, len(part), size)))

    def _batch(self, questions: pd.DataFrame, features: dict[str, torch.Tensor]) -> Batch:
        texts = questions["text_row"].to_numpy(np.int64)
        return Batch(
            features=features,
            texts={name: values[texts] for name, values in self.texts.items()},
            answer=torch.from_numpy(questions["answer_id"].to_numpy(copy=True)).to(self.device),
            row=questions.index.to_numpy(),
        )

    def _read_features(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: values[rows][:, : self.seconds] for name, values in self.features.items()}

    def _check_has(self, name: str) -> None:
        if name not in self.file:
            known = [f"{e}/{o}" for e in self.file if isinstance(self.file[e], h5py.Group) for o in self.file[e]]
            raise AVQAError(f"{self.path}: has no {name}; it has {', '.join(known)}")

    def _read_questions(self, path: Path) -> pd.DataFrame:
        table = pd.read_parquet(path)
        row_of = {text: n for n, text in enumerate(self.file["text/text"].asstr()[:])}
        table["text_row"] = table["question"].map(row_of)
        if table["text_row"].isna().any():
            raise AVQAError(f"{self.path}: lacks some of the questions; run the workflow again")
        ids, rows = self.file["video_id"].asstr()[:], table["video_row"].to_numpy()
        wrong = (rows < 0) | (rows >= len(ids))
        wrong[~wrong] = ids[rows[~wrong]] != table["video_id"].to_numpy()[~wrong]
        if wrong.any():
            first = table[wrong].iloc[0]
            raise AVQAError(
                f"{path}: video_row {first['video_row']} of video {first['video_id']} is not its row in {self.path} "
                f"({wrong.sum()} questions in all); run the workflow again, so that both are made from the same videos"
            )
        table["failed"] = self.file["status"][:][rows] != 0
        return table

    def _standardize(self) -> None:
        training = self.questions_in("train")
        for features in self.features.values():
            features.standardize(training["video_row"].unique())
        for features in self.texts.values():
            features.standardize(training["text_row"].unique().astype(np.int64))


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """read(item) of each item in order, the next one read by a thread while the caller works on the last."""
    with ThreadPoolExecutor(1) as pool:
        ahead = None
        for item in items:
            following = pool.submit(read, item)
            if ahead is not None:
                yield ahead.result()
            ahead = following
        if ahead is not None:
            yield ahead.result()
