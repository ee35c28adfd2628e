"""Checkpoints in the form of the models' releases: scored here, taken over into a run's folder, and written from one.

A checkpoint gives numbers; which answer and which word each number is stands elsewhere. It is read only where that is
known: from lists beside the file, as this module writes them, from the configuration or the card, or from the published
training annotations.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
import yaml

from extractors.base import read_state_dict
from pipeline import __version__
from pipeline.cards import read_answers
from pipeline.config import dataset_dir, merge, read_written
from pipeline.data.dataset import QuestionData
from pipeline.errors import AVQAError
from pipeline.evaluate import answer, load_trained
from pipeline.manifest import read_numbering
from pipeline.models import entry_settings, fast, model_class, settings_class
from pipeline.models.base import AVQAModel, reads_tokens
from pipeline.models.choices import MultipleChoice
from pipeline.models.settings import TOKENS
from pipeline.numbering import NO_TRAINING, TRAINING, listed_answers
from pipeline.storage.atomic import atomic, write_if_changed
from pipeline.train import build_model, load_data, of_one_model

ANSWERS, WORDS = "answer2idx.json", "words.json"  # the lists beside a checkpoint

log = logging.getLogger(__name__)


def written_entry(source: str | Path, dataset: str, name: str) -> dict:
    """An entry of `models` as the user wrote it, without defaults: a setting that equals its default counts."""
    config = json.loads(str(source)) if str(source).startswith("{") else read_written(source)
    if "datasets" in config:
        config = merge(config, config["datasets"][dataset] or {})
    return config["models"][name] or {}


def evaluate_released(
    config: dict, written: dict, name: str, checkpoint: str | Path, out: str | Path, split: str = "test"
) -> dict:
    """Answer a split's questions with a published checkpoint, a .safetensors file or a .pt file of plain tensors.

    `name` is an entry of `models`, and `written` that entry as the user wrote it: what it says comes before what
    follows from the checkpoint. Writes to `out` and returns what `evaluate` does. Raises AVQAError if the file is no
    checkpoint of the model, or not one for these features, or if how its answers and words are numbered is not known.
    """
    config, model, data = open_released(config, written, name, Path(checkpoint))
    described = {"model": name, "checkpoint": str(checkpoint)}
    Path(out).mkdir(parents=True, exist_ok=True)
    return answer(model.to(data.device), data, config["train"], data.answers, Path(out), split, described)


def take_over(config: dict, written: dict, name: str, checkpoint: str | Path, out: str | Path) -> None:
    """Write checkpoint.safetensors and config.yaml, as `avqa train` does, from a published checkpoint.

    The other arguments and the errors are those of `evaluate_released`."""
    config, model, data = open_released(config, written, name, Path(checkpoint))
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    described = {"created_by": f"avqa-pipeline {__version__}", "model": name, "seed": None}
    described |= {"checkpoint": str(checkpoint), "answers": data.answers, "vocabulary": data.vocabulary}
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    with atomic(out / "checkpoint.safetensors") as partial:
        safetensors.torch.save_file(state, partial, {"architecture": config["models"][name]["architecture"]})
    write_if_changed(out / "config.yaml", yaml.safe_dump(described | {"config": config}))
    log.info(f"{out}: {name} with {len(data.answers)} answers; `avqa evaluate` and `avqa explain` read it")


def write_released(folder: str | Path, out: str | Path) -> None:
    """Write checkpoint.pt, which the model's released test script loads, answer2idx.json, and for a model that reads
    words by their numbers words.json, from what `avqa train` wrote to `folder`.

    Tensors that no answer depends on are as in a new model. Raises AVQAError if the model has no released form."""
    folder, out = Path(folder), Path(out)
    trained, model, data = load_trained(folder)
    if isinstance(model, MultipleChoice):
        raise AVQAError(f"{folder}: answers by each question's own options, for which no release has a form")
    if trained["config"]["train"]["standardize"]:
        raise AVQAError(
            f"{folder}: was trained on standardized features (train.standardize), and released code reads features as "
            "they are; train it with standardize: false"
        )
    try:
        state = model.cpu().released_checkpoint()
        assumed = type(model).load_released(state).settings
    except ValueError as error:
        raise AVQAError(f"{folder}: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    with atomic(out / "checkpoint.pt") as partial, open(partial, "wb") as file:
        torch.save(state, file)
    numbers = {answer: n for n, answer in enumerate(data.answers)}
    table = {"ans2ix": numbers, "max_que_len": int(data.index.text_lengths.max())}
    write_if_changed(out / ANSWERS, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    if data.vocabulary is not None:
        write_if_changed(out / WORDS, json.dumps(data.vocabulary, indent=1, ensure_ascii=False) + "\n")
    for key, value in vars(model.settings).items():
        if value != getattr(assumed, key):
            log.warning(
                f"{key} is {value}, which the file does not say: released code has {getattr(assumed, key)}; where the "
                "file is read here, the entry of models: must say so"
            )
    log.info(f"{out}: checkpoint.pt, with {len(data.answers)} answers")


def open_released(config: dict, written: dict, name: str, checkpoint: Path) -> tuple[dict, AVQAModel, QuestionData]:
    """The configuration of one model with the settings of a published checkpoint, the model, and the data as it reads
    them. Raises AVQAError."""
    if not checkpoint.is_file():
        raise AVQAError(f"{checkpoint}: no such checkpoint")
    config = of_one_model(config, name)
    if config["train"]["standardize"]:
        log.info("train.standardize is not for published checkpoints: they read features as they are")
        config["train"]["standardize"] = False
    entry = config["models"][name]
    published = read_released(entry, written, checkpoint)
    answers, answers_from = known_answers(config, checkpoint)
    _check_count(checkpoint, "answers", published.num_answers, answers, answers_from)
    words = None
    if reads_tokens(settings_class(entry["architecture"])):
        words, words_from = known_words(config, checkpoint)
        if words is not None:
            _check_count(checkpoint, "words", published.num_tokens, words, words_from)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(config, name, device, words, answers)
    if data.choices is not None:
        raise AVQAError(f"{checkpoint}: gives answers of one list, and {data.path.parent} has questions with options")
    if words is None and data.vocabulary is not None:
        _check_count(checkpoint, "words", published.num_tokens, data.vocabulary, TRAINING)
    for feature, shape in data.shapes.items():
        if feature not in TOKENS and published.shapes[feature][1:] != shape[1:]:
            expected = "×".join(map(str, published.shapes[feature][1:]))
            raise AVQAError(
                f"{checkpoint}: reads {feature} features of size {expected}, not {entry.get(feature, feature)}"
            )
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(published.settings).items()}
    config["models"] = {name: entry | settings}
    with fast.switched(config["train"]["fast"]):
        model = build_model(config["models"][name], data)
    model.load_state_dict(published.state_dict())
    return config, model.eval(), data


def read_released(entry: dict, written: dict, checkpoint: Path) -> AVQAModel:
    """The model of a published checkpoint with the settings that the user wrote; the others follow from the tensors."""
    chosen = {key: value for key, value in vars(entry_settings(entry)).items() if key in written}
    try:
        return model_class(entry["architecture"]).load_released(read_state_dict(checkpoint), **chosen)
    except ValueError as error:
        raise AVQAError(f"{checkpoint}: {error}") from error


def known_answers(config: dict, checkpoint: Path) -> tuple[list[str], str]:
    """The answers of a checkpoint by number, and what says so. Raises AVQAError if nothing does."""
    beside = checkpoint.parent / ANSWERS
    if beside.exists():
        log.info(f"answers are numbered as in {beside}")
        return read_answers(beside), str(beside)
    if listed := listed_answers(config):
        return listed
    numbering = read_numbering(dataset_dir(config))
    if numbering.answers_from == NO_TRAINING:
        raise AVQAError(
            f"{checkpoint}: it is not known which number each answer has, since {config['dataset']} has no training "
            f"annotations; put the release's {ANSWERS} beside the checkpoint, or give it as answers: in the "
            "configuration, or name the data set that the checkpoint was trained on under trained_on"
        )
    return numbering.answers, numbering.answers_from


def known_words(config: dict, checkpoint: Path) -> tuple[list[str] | None, str]:
    """The words of a checkpoint by number, and what says so; None where they are those of the data set's training
    annotations. Raises AVQAError if nothing says so."""
    beside = checkpoint.parent / WORDS
    if not beside.exists():
        numbering = read_numbering(dataset_dir(config))
        if numbering.words_from != TRAINING:
            raise AVQAError(
                f"{checkpoint}: it is not known which number each word has: {config['dataset']} has "
                f"{numbering.words_from}; name the training annotations of the release, or put a list of the words, "
                f"the padding first, beside the checkpoint as {WORDS}"
            )
        return None, TRAINING
    try:
        words = json.loads(beside.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AVQAError(f"{beside}: not JSON ({error})") from error
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise AVQAError(f"{beside}: must hold a list of words, the padding first")
    return words, str(beside)


def _check_count(checkpoint: Path, what: str, count: int | None, known: list[str], decided_by: str) -> None:
    if count != len(known):
        file = ANSWERS if what == "answers" else WORDS
        raise AVQAError(
            f"{checkpoint}: is of a data set with {count} {what}, this one has {len(known)} ({decided_by}); "
            f"use the annotations that it was trained on, or put its own list beside it as {file}"
        )
