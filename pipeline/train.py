"""Train a model on the features of a data set: one loop, from top to bottom.

The paper's setting (AV-Master, Section IV-A) is the configuration's default: Adam at 1e-4, ×0.1 every 8 epochs,
batches of 64, 30 epochs, the epoch with the best validation accuracy kept.

Equal seeds give equal histories on a CPU with as many threads; on a GPU with `deterministic` too.
"""

import csv
import hashlib
import json
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
from pipeline.config import dataset_dir
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.models.av_master.model import AVMaster
from pipeline.storage.atomic import atomic, write_if_changed

MODELS = {"av_master": AVMaster}


def train(config: dict, model_name: str, seed: int, out: str | Path) -> None:
    """Write checkpoint.safetensors (best epoch), history.csv, config.yaml and TensorBoard logs to `out`.

    A killed run goes on after its last whole epoch and ends in the same result: each epoch has random numbers of
    its own. Raises AVQAError if the configuration has no such model or the data no training questions.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if model_name not in config["models"]:
        raise AVQAError(f"models: has no {model_name}; it has {', '.join(config['models'])}")
    settings, schedule = config["models"][model_name], config["train"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, deterministic algorithms refuse to run
    torch.use_deterministic_algorithms(schedule["deterministic"])
    data = load_data(config, model_name, device)
    left_out = int((data.questions["failed"] & (data.questions["split"] == "train")).sum())
    counts = {split: len(data.of(split)) for split in ("train", "val")}
    print(f"{counts['train']} training and {counts['val']} validation questions; {left_out} of failed videos left out")

    torch.manual_seed(seed)
    model = build_model(settings, data).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=schedule["learning_rate"], fused=True)
    decay = torch.optim.lr_scheduler.StepLR(optimizer, schedule["decay_every"], schedule["decay"])
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=schedule["dtype"] == "bfloat16")

    history, kept = [], None  # the kept epoch's weights
    resume, key = out / "resume.pt", resume_key(config, model_name, seed, data)
    if resume.exists():
        saved = torch.load(resume, map_location=device, weights_only=True)
        if saved["key"] == key:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            decay.load_state_dict(saved["decay"])
            history, kept = saved["history"], saved["kept"]
            print(f"resuming after epoch {len(history)}")

    log = SummaryWriter(str(out / "tensorboard"), purge_step=len(history) + 1)
    for epoch in tqdm(range(len(history) + 1, schedule["epochs"] + 1), desc=f"{model_name} seed {seed}", unit="epoch"):
        if schedule["patience"] and epochs_since_best(history) >= schedule["patience"]:
            print(f"stopping: {schedule['patience']} epochs in a row without a better validation accuracy")
            break
        torch.manual_seed(epoch_seed(seed, epoch))
        rng = np.random.default_rng((seed, epoch))
        model.train()
        sums, count, correct, started = {}, 0, 0, time.monotonic()
        for batch in data.batches("train", schedule["batch_size"], rng):
            with mixed:
                output = model(*batch[:6])
                loss, parts = model.loss(output, batch.answer)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            for name, value in {"loss": loss, **parts}.items():
                sums[name] = sums.get(name, 0) + value.detach() * len(batch.answer)
            correct += (model.answer_scores(output).argmax(-1) == batch.answer).sum()
            count += len(batch.answer)
        row = {"epoch": epoch, "learning_rate": decay.get_last_lr()[0]}
        row |= {name: round(float(value) / count, 6) for name, value in sums.items()}
        row["train_accuracy"] = round(float(correct) / count, 6)
        row["val_accuracy"] = round(accuracy(model, data, "val", schedule["batch_size"]), 6)
        decay.step()
        history.append(row)
        for name, value in row.items():
            log.add_scalar(name, value, epoch)
        log.add_scalar("questions_per_second", count / (time.monotonic() - started), epoch)
        if schedule["checkpoint"] == "last" or epochs_since_best(history) == 0:
            kept = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        state = {"key": key, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"decay": decay.state_dict(), "history": history, "kept": kept}
        with atomic(resume) as partial, open(partial, "wb") as file:
            torch.save(state, file)  # to an open file, or else a full disk is no error of the system's but a riddle
    log.close()

    with atomic(out / "history.csv") as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, history[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
    described = {"created_by": f"avqa-pipeline {__version__}", "model": model_name, "seed": seed}
    write_if_changed(out / "config.yaml", yaml.safe_dump({**described, "answers": data.answers, "config": config}))
    with atomic(out / "checkpoint.safetensors") as partial:
        safetensors.torch.save_file(kept, partial, {"architecture": settings["architecture"]})
    resume.unlink(missing_ok=True)
    best = max(row["val_accuracy"] for row in history)
    print(f"best validation accuracy {best:.2%}; kept the {schedule['checkpoint']} epoch")


def build_model(settings: dict, data: QuestionData) -> torch.nn.Module:
    """The model that `settings` describe, its dimensions as the features have them. Raises AVQAError."""
    options = {k: v for k, v in settings.items() if k not in ("architecture", "audio", "visual", "segments")}
    try:
        return MODELS[settings["architecture"]](
            num_answers=len(data.answers),
            audio_dim=data.audio.dim,
            visual_dim=data.visual.dim,
            text_dim=data.words.dim,
            **options,
        )
    except (TypeError, ValueError) as error:
        raise AVQAError(f"models: {settings['architecture']} cannot be built with {options}: {error}") from error


def load_data(config: dict, model_name: str, device: torch.device) -> QuestionData:
    """The data set as the model reads it."""
    settings = config["models"][model_name]
    return QuestionData(
        dataset_dir(config),
        settings["audio"],
        settings["visual"],
        config["train"]["standardize"],
        device,
        settings.get("segments"),
    )


@torch.inference_mode()
def predict(model: torch.nn.Module, data: QuestionData, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The place in the table of each question of a split, in rising order, and its N, answers scores."""
    rows, scores = [], []
    with frozen(model):
        for batch in data.batches(split, size):
            rows.append(batch.row)
            scores.append(model.answer_scores(model(*batch[:4], videos=batch.videos)).float().cpu().numpy())
    rows, scores = np.concatenate(rows), np.concatenate(scores)
    order = rows.argsort()
    return rows[order], scores[order]


@contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """For a while the model does not learn; AV-Master then keeps what it makes of its weights between batches."""
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


def epochs_since_best(history: list[dict]) -> int:
    """Epochs since the best validation accuracy, the first of equals; 0 before any."""
    accuracies = [row["val_accuracy"] for row in history]
    return len(history) - 1 - accuracies.index(max(accuracies)) if history else 0


def accuracy(model: torch.nn.Module, data: QuestionData, split: str, size: int) -> float:
    """Share of a split's questions answered right; an answer that never occurs in training counts as wrong."""
    rows, scores = predict(model, data, split, size)
    return float((scores.argmax(-1) == data.questions["answer_id"].to_numpy()[rows]).mean())


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch, so that a resumed run draws what an undisturbed one would have drawn."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def resume_key(config: dict, model_name: str, seed: int, data: QuestionData) -> str:
    """Identifies what a run depends on: a partial run with another key is not resumed."""
    facts = [config["models"][model_name], config["train"], model_name, seed, data.provenance, data.answers]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    digest.update(data.questions.to_csv().encode())
    digest.update("\n".join(data.index.video_id).encode())
    return digest.hexdigest()
