"""Features and questions as a model reads them."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pipeline.data.answers import display_forms, written_as, written_differently
from pipeline.data.features import Features
from pipeline.data.vocabulary import build_vocabulary, encode
from pipeline.errors import AVQAError
from pipeline.manifest import read_manifest, read_numbering
from pipeline.models.base import Batch
from pipeline.models.settings import TOKENS
from pipeline.numbering import index_answers
from pipeline.storage.contract import DECODED
from pipeline.storage.features import FeatureIndex
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.tables import read_table


class QuestionData:
    """The questions of a data set with the features of their videos and texts.

    features: a model's names to features ("encoder/output"). texts: its names of texts to their shapes in the model's
        paper: outputs of the text encoder, the prompt's sentence, and TOKENS, which are at least as long.
    seconds: features are read up to this second (default: all).
    reads: of these seconds, those that are read, by the model's name of a feature (default: all).
    vocabulary, answers: a checkpoint's words and answers by their numbers (default: as manifest.json numbers them).
    workers: threads that read batches ahead, which changes no batch.
    text_encoder: whose text outputs are read (default: the first one's).

    Questions about videos that could not be decoded are left out of training. Raises AVQAError naming what is missing,
    or if the features' rows are not the questions' videos.
    """

    def __init__(
        self,
        folder: str | Path,
        features: dict[str, str],
        texts: Mapping[str, tuple[int, ...]],
        standardize: bool,
        device: torch.device,
        seconds: int | None = None,
        reads: Mapping[str, slice] | None = None,
        vocabulary: list[str] | None = None,
        workers: int = 1,
        text_encoder: str | None = None,
        answers: list[str] | None = None,
    ):
        folder = Path(folder)
        self.path = folder / "features.h5"
        self.index = FeatureIndex(self.path)
        self.device, self.workers = device, workers
        for name in features.values():
            if name not in self.index.names:
                raise AVQAError(f"{self.path}: has no {name}; it has {', '.join(self.index.names)}")
        text = f"text_{text_encoder}" if text_encoder else "text"
        if text not in self.index.provenance:
            raise AVQAError(f"{self.path}: has no texts of {text_encoder}; run the workflow again")
        encoders = dict.fromkeys((*(name.split("/")[0] for name in features.values()), text))
        self.provenance = {name: self.index.provenance[name] for name in encoders}
        self.features = {
            name: Features(self.index, path, device, self._seconds(path, seconds, (reads or {}).get(name)))
            for name, path in features.items()
        }
        self.text = text
        encoded = [name for name in texts if name not in TOKENS]
        outputs = {name: "sentence" if name == "prompt" else name for name in encoded}
        self.texts = {name: Features(self.index, f"{text}/{output}", device) for name, output in outputs.items()}
        self.questions = self._read_questions(folder / "questions.parquet")
        self.vocabulary: list[str] | None = None
        self._number_words(folder, {name: shape[0] for name, shape in texts.items() if name in TOKENS}, vocabulary)
        self.answers = answers or read_numbering(folder).answers
        merged = read_manifest(folder).get("merge_answers") and not is_multiple_choice(self.questions)
        if merged and (several := written_differently(self.answers)):
            raise AVQAError(
                f"{folder / 'manifest.json'}: merge_answers makes one answer of {', '.join(map(repr, several[0]))}, "
                "which are different answers of the model; score it on the data set without merge_answers"
            )
        if merged:  # a checkpoint may have other forms
            self.questions["answer"] = written_as(self.questions["answer"], display_forms(self.answers))
        self.questions["answer_id"] = index_answers(self.questions["answer"], self.answers)
        self.choices = self._read_choices()
        if standardize:
            self._standardize()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one sample of each feature and text."""
        shapes = {name: x.shape for name, x in (self.features | self.texts).items()}
        return shapes | {name: x.shape[1:] for name, x in self.tokens.items()}

    def questions_in(self, split: str) -> pd.DataFrame:
        """The split's questions; those of training without failed videos. Raises AVQAError if there are none."""
        part = self.questions[self.questions["split"] == split]
        if split == "train" and len(part):
            if part["failed"].all():
                raise AVQAError(
                    f"{self.path}: all {len(part)} questions of split train are about videos that could not be "
                    "decoded; mend the files that failures.tsv lists"
                )
            part = part[~part["failed"]]
        if part.empty:
            path = self.path.with_name("questions.parquet")
            raise AVQAError(f"{path}: has no questions of split {split}; add it under annotations:")
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
        return read_ahead((partial(read, at, draw(at) if negatives else None) for at in parts), self.workers)

    def batches(self, split: str, size: int) -> Iterator[Batch]:
        """The split video by video, each batch with its videos once."""
        part = self.questions_in(split)
        part = part.iloc[part["video_id"].to_numpy().argsort(kind="stable")]  # whatever their places in shards

        def read(questions: pd.DataFrame) -> Batch:
            rows, of_rows = np.unique(questions["video_row"].to_numpy(), return_inverse=True)
            batch = self._batch(questions, self._read_features(rows))
            batch.videos = torch.from_numpy(of_rows).to(self.device)
            return batch

        reads = (partial(read, part.iloc[start : start + size]) for start in range(0, len(part), size))
        return read_ahead(reads, self.workers)

    def _batch(self, questions: pd.DataFrame, features: dict[str, torch.Tensor]) -> Batch:
        rows = questions.index.to_numpy()
        tokens = {name: torch.from_numpy(numbers[rows]).to(self.device) for name, numbers in self.tokens.items()}
        return Batch(
            features=features,
            texts={name: values[text_rows(questions, name).to_numpy()] for name, values in self.texts.items()} | tokens,
            choices=None if self.choices is None else self._choice_features(rows),
            answer=torch.from_numpy(questions["answer_id"].to_numpy(copy=True)).to(self.device),
            row=rows,
        )

    def batch_digest(self, *splits: str) -> str:
        """Identifies what batches of these splits hold, but for features: made from the same parts as `_batch`."""
        part = self.questions[self.questions["split"].isin(splits)]
        digest = hashlib.sha256(part[["split", "video_id", "answer_id", "failed"]].to_csv(index=False).encode())
        for name in self.texts:
            digest.update(repr([name, self.index.texts[text_rows(part, name).to_numpy()].tolist()]).encode())
        for name, numbers in self.tokens.items():
            digest.update(name.encode() + numbers[part.index.to_numpy()].tobytes())
        if self.choices is not None:
            digest.update(repr([list(options) for options in part["choices"]]).encode())
        return digest.hexdigest()

    def _read_features(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return {name: values[rows] for name, values in self.features.items()}

    def _seconds(self, feature: str, first: int | None, part: slice | None) -> slice | None:
        """The seconds of a feature that are read; None for all."""
        wanted = range(self.index.names[feature][1])[:first][part or slice(None)]
        return None if len(wanted) == self.index.names[feature][1] else slice(wanted.start, wanted.stop, wanted.step)

    def _number_words(self, folder: Path, lengths: dict[str, int], vocabulary: list[str] | None) -> None:
        """`tokens`: for each of TOKENS that is read, the numbers of all questions' words, at least as many as in the
        paper; no vocabulary if none is."""
        self.tokens = {}
        if not lengths:
            return
        numbering = read_numbering(folder)
        self.vocabulary = vocabulary or build_vocabulary(numbering.words, lengths)
        for name, paper in lengths.items():
            self.tokens[name] = encode(self.questions, name, self.vocabulary, max(paper, numbering.longest[name]))

    def _read_questions(self, path: Path) -> pd.DataFrame:
        table = read_table(path)
        texts = self.index.texts
        columns = [("video_row", "video_id", self.index.video_id), ("text_row", "question", texts)]
        if "prompt" in self.texts:  # the question stands in for a prompt that it does not have
            table["prompt"] = table.get("prompt", table["question"]).fillna(table["question"])
            columns.append(("prompt_row", "prompt", texts))
        for column, name, known in columns:
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
        numbered among a question's own options. None where questions have no options. An option that stands twice
        counts at its first place: the scores of both differ by rounding, and either could be the highest."""
        if not is_multiple_choice(self.questions):
            return None
        if self.questions["choices"].isna().any():
            raise AVQAError("questions.parquet: has questions with options and without; put them into two data sets")
        rows = {text: n for n, text in enumerate(self.index.texts)}
        lists = [list(options) for options in self.questions["choices"]]
        if lacking := sorted({option for options in lists for option in options} - rows.keys()):
            raise AVQAError(
                f"{self.path}: has no text features of {len(lacking)} options, as {lacking[0]!r}; make the text file "
                "with `avqa text`, then run `avqa index`"
            )
        choices = [[rows[x] if options.index(x) == n else -1 for n, x in enumerate(options)] for options in lists]
        most = max(map(len, choices))
        answers = zip(lists, self.questions["answer"], strict=True)
        self.questions["answer_id"] = [options.index(answer) for options, answer in answers]
        self.answers = option_names(most)
        self.options = Features(self.index, f"{self.text}/sentence", self.device)
        return np.array([options + [-1] * (most - len(options)) for options in choices])

    def _choice_features(self, at: np.ndarray) -> torch.Tensor:
        """B, K, D: the text features of the options of questions; zeros where there are fewer."""
        rows = self.choices[at]
        values = self.options[np.maximum(rows, 0).reshape(-1)].reshape(*rows.shape, -1)
        return values * torch.from_numpy(rows >= 0).to(values)[..., None]

    def _standardize(self) -> None:
        training = self.questions_in("train")
        for features in self.features.values():
            # By id: which shard a video came into decides no bit.
            features.standardize(training.drop_duplicates("video_id").sort_values("video_id")["video_row"].to_numpy())
        for name, features in self.texts.items():
            if features.shape:  # but for the number of tokens
                features.standardize(np.sort(text_rows(training, name).unique()))


def is_multiple_choice(questions: pd.DataFrame) -> bool:
    """Whether questions have options of their own."""
    return "choices" in questions and bool(questions["choices"].notna().any())


def option_names(count: int) -> list[str]:
    """What stands for the answers where each question has its own."""
    return [f"option {n + 1}" for n in range(count)]


def text_rows(questions: pd.DataFrame, name: str) -> pd.Series:
    """The rows of a model's text among the index's texts."""
    return questions["prompt_row" if name == "prompt" else "text_row"]
