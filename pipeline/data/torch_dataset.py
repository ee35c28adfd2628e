"""Questions with their features for torch.utils.data.DataLoader, in any number of worker processes."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import Dataset

from pipeline.errors import AVQAError
from pipeline.storage.features import is_text


class QuestionDataset(Dataset):
    """One item per question: question_id, video_id, question, answer_id, and each feature as a tensor by its name.

    Questions about videos that could not be decoded have no item, whatever the split; `failed` is how many there are.
    HDF5 files must not be carried over into a forked process: each process opens its own, with `open_features`, at its
    first item. Raises AVQAError if a feature does not exist or the split has no questions.
    """

    def __init__(self, open_features: Callable[[], Any], names: Iterable[str], split: str | None = None):
        self.open_features, self.names = open_features, list(names)
        self._features = None
        self._process = 0
        with open_features() as features:
            if lacking := [name for name in self.names if name not in features.names]:
                raise AVQAError(
                    f"{features.index.path}: has no {', '.join(lacking)}; it has {', '.join(features.names)}"
                )
            table, lost, path = features.questions, features.failed, features.folder / "questions.parquet"
        if split is not None:
            table = table[table["split"] == split]
        if table.empty:
            raise AVQAError(f"{path}: has no questions of split {split}")
        failed = table["video_id"].isin(lost)
        self.failed, table = int(failed.sum()), table[~failed]
        if table.empty:
            raise AVQAError(
                f"{path}: all {self.failed} questions of split {split} are about videos "
                "that could not be decoded; mend the files that failures.tsv lists"
            )
        columns = table[["question_id", "video_id", "question", "answer_id"]].fillna({"question_id": ""})
        self.items = columns.to_dict("records")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, n: int) -> dict[str, object]:
        item, features = self.items[n], self._opened()
        keys = {name: item["question" if is_text(name) else "video_id"] for name in self.names}
        return item | {name: torch.from_numpy(features[name, key]) for name, key in keys.items()}

    def _opened(self) -> Any:
        if self._features is None or self._process != os.getpid():
            self._features, self._process = self.open_features(), os.getpid()
        return self._features

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_features": None}  # for workers that are started and not forked
