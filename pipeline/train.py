"""Train a model on the features of a data set.

The schedule is that of the model's release unless the configuration says otherwise (`pipeline.config.training`): Adam,
and mostly 1e-4, ×0.1 every 8 epochs, batches of 64, 30 epochs, the epoch with the best validation accuracy kept. A
`pretrain` is a whole run of its own, in the folder of that name; the proper one starts from its weights.

Equal seeds give equal histories on a CPU with as many threads; on a GPU with `deterministic` too.
"""

import csv
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline import __version__
from pipeline.config import data_dir, of_one_model, pretraining_entry, without_neutral
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.models import entry_settings, fast, model_class, settings_class
from pipeline.models.base import AVQAModel, Batch
from pipeline.models.choices import MultipleChoice
from pipeline.storage.atomic import atomic, write_if_changed
from pipeline.storage.lock import exclusive
from pipeline.timing import WAITING, Stopwatch

log = logging.getLogger(__name__)

NAMED_VIDEOS = 5  # at most so many videos of a batch are named in an error


def train(
    config: dict, model_name: str, seed: int, out: str | Path, timing: str | Path | None = None, key: str = ""
) -> None:
    """Train on what is in `data_dir` of the configuration. Write checkpoint.safetensors (best epoch), history.csv,
    config.yaml and TensorBoard logs to `out`. `key` is the text of what decides them (`pipeline.keys`).

    An interrupted run resumes after its last whole epoch and ends in the same result: each epoch has random numbers
    of its own. The file `timing` then says how long training waited for data (`pipeline.timing`), pretraining included.
    Raises AVQAError if the configuration has no such model, the data no training questions, or the loss becomes
    infinite or not a number.
    """
    out, watch, count = Path(out), Stopwatch(), 0
    config = of_one_model(config, model_name)
    stage, initial = config["train"]["pretrain"], None
    if stage is not None:
        entry = pretraining_entry(config["models"][model_name], stage)
        schedule = config["train"] | {k: v for k, v in stage.items() if k != "settings"} | {"pretrain": None}
        initial = out / "pretrain" / "checkpoint.safetensors"
        before = config | {"models": {model_name: entry}, "train": schedule}
        count += run(before, model_name, seed, initial.parent, None, watch, key)
    count += run(config, model_name, seed, out, initial, watch, key)
    watch.write(timing, count)


def run(
    config: dict, model_name: str, seed: int, out: Path, initial: Path | None, watch: Stopwatch, key: str = ""
) -> int:
    """One training from fresh weights, or from those of the checkpoint `initial`; returns the number of questions that
    it trained on, those of each epoch."""
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out / ".lock"), fast.switched(config["train"]["fast"]):
        trainer = Trainer(config, model_name, seed, out, initial, watch, key)
        trainer.run()
        return trainer.count


class Trainer:
    """One run: a model, its optimizer, and the history so far."""

    def __init__(
        self,
        config: dict,
        model_name: str,
        seed: int,
        out: Path,
        initial: Path | None = None,
        watch: Stopwatch | None = None,
        decided_by: str = "",
    ):
        self.config, self.name, self.seed, self.out, self.decided_by = config, model_name, seed, out, decided_by
        self.schedule = schedule = config["train"]
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms refuse to run without it
        torch.use_deterministic_algorithms(schedule["deterministic"])
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data = load_data(config, model_name, self.device)
        torch.manual_seed(seed)
        self.model = build_model(config["models"][model_name], self.data).to(self.device)
        if initial is not None:
            start_from(self.model, initial)
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), schedule["learning_rate"], tuple(schedule["betas"]), fused=True
        )
        self.decay = torch.optim.lr_scheduler.StepLR(self.optimizer, schedule["decay_every"], schedule["decay"])
        self.mixed = torch.autocast(self.device.type, torch.bfloat16, enabled=schedule["dtype"] == "bfloat16")
        self.history: list[dict] = []
        self.kept: dict[str, torch.Tensor] | None = None  # the kept epoch's weights
        self.resume_file, self.key = out / "resume.pt", resume_key(config, model_name, seed, self.data)
        self.waited = 0.0  # seconds of this epoch's training in which no batch was ready
        self.watch, self.count = watch or Stopwatch(), 0  # questions that this process has trained on

    def run(self) -> None:
        """All epochs that are left, then the results; nothing if another process has made them."""
        if self.is_finished():
            log.info(f"{self.out}: the checkpoint is there, made with the same settings and data")
            return
        self.log_counts()
        self.resume()
        first, last = len(self.history) + 1, self.schedule["epochs"]
        self.watch.started()
        with SummaryWriter(str(self.out / "tensorboard"), purge_step=first) as board:
            for epoch in tqdm(range(first, last + 1), desc=f"{self.name} seed {self.seed}", unit="epoch"):
                if self.is_patient_no_longer():
                    break
                self.run_epoch(epoch, board)
                self.save_progress()
        self.save_results()

    def is_finished(self) -> bool:
        """Whether the results of this very run are there."""
        names = ("checkpoint.safetensors", "history.csv", "config.yaml")
        if not all((self.out / name).exists() for name in names):
            return False
        return yaml.safe_load((self.out / "config.yaml").read_text(encoding="utf-8")).get("key") == self.key

    def log_counts(self) -> None:
        questions, counts = self.data.questions, {s: len(self.data.questions_in(s)) for s in ("train", "val")}
        left_out = int((questions["failed"] & (questions["split"] == "train")).sum())
        log.info(
            f"{counts['train']} training and {counts['val']} validation questions; {left_out} of failed videos left out"
        )

    def resume(self) -> None:
        """Continue from resume.pt if it is of the same run."""
        if not self.resume_file.exists():
            return
        saved = torch.load(self.resume_file, map_location=self.device, weights_only=True)
        if saved["key"] != self.key:
            log.info(f"{self.resume_file} is of another configuration or other data; starting anew")
            return
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.decay.load_state_dict(saved["decay"])
        self.history, self.kept = saved["history"], saved["kept"]
        log.info(f"resuming after epoch {len(self.history)}")

    def is_patient_no_longer(self) -> bool:
        patience = self.schedule["patience"]
        if not patience or epochs_since_best(self.history) < patience:
            return False
        log.info(f"stopping: {patience} epochs in a row with a lower validation accuracy than the best")
        return True

    def run_epoch(self, epoch: int, board: SummaryWriter) -> None:
        """Train on every question once, validate, and add a row to the history."""
        started, size = time.monotonic(), self.schedule["batch_size"]
        row = {"epoch": epoch, "learning_rate": self.decay.get_last_lr()[0]}
        means, count = self.train_on_all(epoch)
        trained = time.monotonic() - started
        row |= {name: round(value, 6) for name, value in means.items()}
        with self.watch.part("validation"):
            row["val_accuracy"] = round(accuracy(self.model, self.data, "val", size), 6)
        self.watch.add("training", trained - self.waited)
        self.watch.add(WAITING, self.waited)
        self.count += count
        self.decay.step()
        self.history.append(row)
        for name, value in row.items():
            board.add_scalar(name, value, epoch)
        board.add_scalar("questions_per_second", count / (time.monotonic() - started), epoch)
        board.add_scalar("share_of_time_waiting_for_data", self.waited / trained, epoch)
        if self.schedule["checkpoint"] == "last" or epochs_since_best(self.history) == 0:
            self.kept = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}

    def train_on_all(self, epoch: int) -> tuple[dict[str, float], int]:
        """Means of the loss, its parts and the accuracy over the training questions, and how many these are."""
        torch.manual_seed(epoch_seed(self.seed, epoch))
        rng = np.random.default_rng((self.seed, epoch))
        self.model.train()
        sums, correct, count, self.waited = {}, 0, 0, 0.0
        batches = self.data.training_batches(self.schedule["batch_size"], rng, self.model.needs_negatives)
        for batch in self.timed(batches):
            output, parts = self.train_on_batch(batch, epoch)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value * len(batch.answer)
            correct += (self.model.scores(output).argmax(-1) == batch.answer).sum()
            count += len(batch.answer)
        means = {name: float(value) / count for name, value in sums.items()}
        return means | {"train_accuracy": float(correct) / count}, count

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; `waited` adds up the time that they take to come."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def train_on_batch(self, batch: Batch, epoch: int) -> tuple[object, dict[str, torch.Tensor]]:
        """One step of the optimizer; the model's output, and the loss with its parts."""
        with self.mixed:
            output = self.model(batch)
            loss, parts = self.model.loss(output, batch)
        if not loss.isfinite():
            self.refuse(loss, batch, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return output, {name: value.detach() for name, value in {"loss": loss, **parts}.items()}

    def refuse(self, loss: torch.Tensor, batch: Batch, epoch: int) -> None:
        """Raise an AVQAError that names the batch's videos: those with features that are not finite, or else all."""
        videos = self.data.questions.loc[batch.row, "video_id"]
        finite = torch.stack([x.flatten(1).isfinite().all(1) for x in batch.features.values()]).all(0).cpu().numpy()
        suspect = videos[~finite].unique() if not finite.all() else videos.unique()
        named = ", ".join(suspect[:NAMED_VIDEOS]) + (", …" if len(suspect) > NAMED_VIDEOS else "")
        cause = "features are not finite numbers" if not finite.all() else "features are finite"
        raise AVQAError(
            f"epoch {epoch}: the loss is {float(loss.detach())} on a batch with videos {named}, whose {cause}; extract "
            "such features again, or lower train.learning_rate, or set train.dtype to float32"
        )

    def save_progress(self) -> None:
        state = {"key": self.key, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"decay": self.decay.state_dict(), "history": self.history, "kept": self.kept}
        with atomic(self.resume_file) as partial, open(partial, "wb") as file:
            torch.save(state, file)  # to an open file: given a path, it does not say that a disk is full

    def save_results(self) -> None:
        with atomic(self.out / "history.csv") as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, self.history[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
        described = {"created_by": f"avqa-pipeline {__version__}", "model": self.name, "seed": self.seed}
        described |= {"answers": self.data.answers, "vocabulary": self.data.vocabulary, "config": self.config}
        # What these were made from, by a name that stays, and relative, so that the results folder can be moved.
        data = self.data.path.resolve().parent
        described |= {"data": os.path.relpath(data, self.out.resolve()), "data_digest": data_digest(self.data)}
        described |= {"key": self.key, "decided_by": self.decided_by}
        architecture = self.config["models"][self.name]["architecture"]
        with atomic(self.out / "checkpoint.safetensors") as partial:
            safetensors.torch.save_file(self.kept, partial, {"architecture": architecture})
        write_if_changed(self.out / "config.yaml", yaml.safe_dump(described))  # last: its key says that all is there
        self.resume_file.unlink(missing_ok=True)
        best = max(row["val_accuracy"] for row in self.history)
        log.info(f"best validation accuracy {best:.2%}; kept the {self.schedule['checkpoint']} epoch")


def build_model(entry: dict, data: QuestionData) -> AVQAModel:
    """The model of an entry of `models`, for features of the data's shapes. Raises AVQAError."""
    architecture, settings = model_class(entry["architecture"]), entry_settings(entry)
    vocabulary = {} if data.vocabulary is None else {"num_tokens": len(data.vocabulary)}
    try:
        if data.choices is not None:
            model = architecture(settings, data.shapes, data.options.dim, **vocabulary)
            return MultipleChoice(model, len(data.answers))
        return architecture(settings, data.shapes, len(data.answers), **vocabulary)
    except ValueError as error:
        raise AVQAError(f"models: {entry['architecture']} cannot be built: {error}") from error


def start_from(model: AVQAModel, checkpoint: Path) -> None:
    """Fill a model's tensors with those of the same name and shape of a checkpoint. Raises AVQAError without any."""
    state, own = safetensors.torch.load_file(checkpoint), model.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise AVQAError(f"{checkpoint}: has no tensor that the model has too; check pretrain.settings")
    model.load_state_dict(fitting, strict=False)
    log.info(f"starting from {checkpoint}: {len(fitting)} of the model's {len(own)} tensors")


def load_data(
    config: dict,
    model_name: str,
    device: torch.device,
    vocabulary: list[str] | None = None,
    answers: list[str] | None = None,
) -> QuestionData:
    """The data set as the model reads it, with the given numbers of words and answers (default: its own)."""
    entry, schedule = config["models"][model_name], config["train"]
    reads = settings_class(entry["architecture"])
    return QuestionData(
        data_dir(config),
        {name: entry[name] for name in reads.features},
        reads.texts,
        schedule["standardize"],
        device,
        entry.get("seconds"),
        entry_settings(entry).reads(),
        vocabulary,
        schedule.get("workers", 1),
        entry.get("text"),
        answers,
    )


@torch.inference_mode()
def predict(model: AVQAModel, data: QuestionData, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The place in the table of each question of a split, in rising order, and its N, answers scores.

    Raises AVQAError if a question's highest score is not finite: no answer follows from such scores."""
    rows, scores = [], []
    with frozen(model):
        for batch in data.batches(split, size):
            rows.append(batch.row)
            scores.append(model.scores(model(batch)).float().cpu().numpy())
            if not (finite := np.isfinite(scores[-1].max(-1))).all():
                video_id = data.questions.loc[batch.row[~finite][0], "video_id"]
                raise AVQAError(
                    f"{split}: the scores of questions about videos {video_id}, … are no finite numbers, as those of a "
                    "training that diverges; lower train.learning_rate, or set train.dtype to float32, and train again"
                )
    rows, scores = np.concatenate(rows), np.concatenate(scores)
    order = rows.argsort()
    return rows[order], scores[order]


@contextmanager
def frozen(model: AVQAModel) -> Iterator[None]:
    """In evaluation mode and without gradients; a model may then keep what it computes from its weights alone."""
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


def epochs_since_best(history: list[dict]) -> int:
    """Epochs since the best validation accuracy, the last of equals, as in AV-Master's release; 0 before any."""
    accuracies = [row["val_accuracy"] for row in reversed(history)]
    return accuracies.index(max(accuracies)) if history else 0


def accuracy(model: AVQAModel, data: QuestionData, split: str, size: int) -> float:
    """Share of a split's questions answered right; an answer that never occurs in training counts as wrong."""
    rows, scores = predict(model, data, split, size)
    return float((scores.argmax(-1) == data.questions["answer_id"].to_numpy()[rows]).mean())


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that a resumed run draws the same numbers as an uninterrupted one."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def resume_key(config: dict, model_name: str, seed: int, data: QuestionData) -> str:
    """Identifies what a run's result depends on: an interrupted run with another key is not resumed."""
    return digest_of([config["models"][model_name], schedule_of(config), seed, data_digest(data)])


def schedule_of(config: dict) -> dict:
    """What of a run's schedule changes its result."""
    return without_neutral("train", config["train"])


def data_digest(data: QuestionData) -> str:
    """Identifies what a model is trained on."""
    answers = data.answers if data.choices is None else []  # of options, the number follows from all questions
    return digest_of([data.provenance, answers, data.vocabulary, data.batch_digest("train", "val")])


def digest_of(parts: list) -> str:
    """The sha256 of what can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
