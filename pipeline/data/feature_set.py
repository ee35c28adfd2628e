"""Features for use from Python: one small object per data set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED
from pipeline.storage.features import FeatureIndex, is_text
from pipeline.storage.tables import read_table

if TYPE_CHECKING:
    from pipeline.data.torch_dataset import QuestionDataset


class FeatureSet:
    """The features of a data set, read from its shards as needed.

        features = pipeline.open_features("results/music_avqa")
        frames = features["clip_vit_l14/cls", "00000093"]        # T, 768
        words = features["text/words", "Is the violin louder?"]  # 77, 768

    `names` maps a feature to the shape of one video or text. Iteration, `len` and `in` are about the videos that could
    be decoded; `failed` names the others, whose rows are zeros and are not given. `videos` and `questions` are tables
    of all. Safe with threads; `torch_dataset` is safe with worker processes. Raises AVQAError if features.h5 or one of
    its shards is missing.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.index = FeatureIndex(self.folder / "features.h5")
        self.names = {name: shape[1:] for name, shape in self.index.names.items()}
        rows = {key: n for n, key in enumerate(self.index.video_id)}
        self._rows = {key: n for key, n in rows.items() if self.index.status[n] == DECODED}
        self.failed = [key for key in rows if key not in self._rows]
        self._text_rows = {key: n for n, key in enumerate(self.index.texts)}

    def __getitem__(self, key: tuple[str, str]) -> np.ndarray:
        """The feature (encoder/output, video id) or (text/output, text). Raises AVQAError naming what is not there."""
        name, item = key
        if name not in self.names:
            raise AVQAError(f"{self.index.path}: has no {name}; it has {', '.join(self.names)}")
        rows = self._text_rows if is_text(name) else self._rows
        if rows is self._rows and item in self.failed:
            raise AVQAError(f"{self.index.path}: video {item} could not be decoded; failures.tsv has the reason")
        if item not in rows:
            raise AVQAError(f"{self.index.path}: has no {'text' if rows is self._text_rows else 'video'} {item!r}")
        return self.index.read(name, [rows[item]])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._rows

    @property
    def videos(self) -> pd.DataFrame:
        """video_id, num_segments (true seconds), has_audio, status (0: decoded), shard and row, in reading order."""
        names = ("video_id", "num_segments", "has_audio", "status", "shard", "row")
        return pd.DataFrame({name: getattr(self.index, name) for name in names})

    @property
    def texts(self) -> list[str]:
        """The different questions."""
        return list(self._text_rows)

    @property
    def questions(self) -> pd.DataFrame:
        """questions.parquet: split, question_id, video_id, question, answer, answer_id and more."""
        return read_table(self.folder / "questions.parquet")

    def torch_dataset(self, *names: str, split: str | None = None) -> QuestionDataset:
        """A torch.utils.data.Dataset of the split's questions (default: all) with these features of each. Questions
        about videos that could not be decoded are left out, as in training."""
        from pipeline.data.torch_dataset import QuestionDataset  # PyTorch is imported where it is needed

        return QuestionDataset(partial(FeatureSet, self.folder), names, split)

    def close(self) -> None:
        """Close all files."""
        self.index.close()

    def __enter__(self) -> FeatureSet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
