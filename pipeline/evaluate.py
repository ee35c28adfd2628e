"""Score a trained model: accuracy overall, by scenario and by question type."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import yaml

from extractors.base import read_state_dict
from pipeline.data.dataset import QuestionData, option_names
from pipeline.data.formats.base import TYPES
from pipeline.data.vocabulary import encode
from pipeline.errors import AVQAError
from pipeline.models import entry_settings, fast, model_class, settings_class
from pipeline.models.base import AVQAModel
from pipeline.models.settings import TOKENS
from pipeline.storage.atomic import atomic
from pipeline.train import build_model, frozen, load_data, of_one_model, predict


def evaluate(
    folder: str | Path, split: str = "test", questions_of: str | Path | None = None, out: str | Path | None = None
) -> dict:
    """Answer a split's questions with the model in `folder`; writes predictions.parquet and scores.json to `out`
    (default: there).

    `questions_of` is the results folder of another data set, whose questions are asked in place of the model's own. For
    another split than test the files are named predictions-<split>.parquet and scores-<split>.json. Questions whose
    video failed are answered too, from zeros; `present` has the scores without them. Returns the scores. Raises
    AVQAError if the folder holds no trained model.
    """
    folder, out = Path(folder), Path(out or folder)
    trained, model, data = load_trained(folder, questions_of)
    described = {"model": trained["model"], "seed": trained["seed"], "trained_on": trained["config"]["dataset"]}
    return answer(model, data, trained["config"]["train"], trained["answers"], out, split, described)


def evaluate_released(config: dict, name: str, checkpoint: str | Path, out: str | Path, split: str = "test") -> dict:
    """Answer a split's questions with a published checkpoint, a .safetensors file or a .pt file of plain tensors.

    `name` is an entry of `models` with the features to read. Writes to `out` and returns what `evaluate` does. Raises
    AVQAError if the file is no checkpoint of the model, or not one for these features, words and answers.
    """
    config = of_one_model(config, name)
    data = load_data(config, name, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with fast.switched(config["train"]["fast"]):
        model = load_released(config["models"][name], data, Path(checkpoint))
    described = {"model": name, "checkpoint": str(checkpoint)}
    Path(out).mkdir(parents=True, exist_ok=True)
    return answer(model.to(data.device), data, config["train"], data.answers, Path(out), split, described)


def load_released(entry: dict, data: QuestionData, checkpoint: Path) -> AVQAModel:
    """The model of an entry with a published checkpoint's weights and sizes, for the data's shapes."""
    if not checkpoint.is_file():
        raise AVQAError(f"{checkpoint}: no such checkpoint")
    chosen, usual = entry_settings(entry), settings_class(entry["architecture"])()
    changes = {k: v for k, v in vars(chosen).items() if v != getattr(usual, k)}  # the others follow from the tensors
    try:
        published = model_class(entry["architecture"]).load_released(read_state_dict(checkpoint), **changes)
    except ValueError as error:
        raise AVQAError(f"{checkpoint}: {error}") from error
    counts = {"answers": (published.num_answers, len(data.answers))}
    if data.vocabulary is not None:
        counts["words"] = (published.num_tokens, len(data.vocabulary))
    for what, (theirs, ours) in counts.items():
        if theirs != ours:
            raise AVQAError(
                f"{checkpoint}: is of a data set with {theirs} {what}, this one has {ours}; both are numbered in the "
                "order of the training questions, so use the annotations that the checkpoint was trained on"
            )
    for name, shape in data.shapes.items():
        if name not in TOKENS and published.shapes[name][1:] != shape[1:]:
            expected = "×".join(map(str, published.shapes[name][1:]))
            raise AVQAError(f"{checkpoint}: reads {name} features of size {expected}, not {entry.get(name, name)}")
    model = build_model(entry | asdict(published.settings), data)
    model.load_state_dict(published.state_dict())
    return model.eval()


def answer(
    model: AVQAModel,
    data: QuestionData,
    schedule: dict,
    answers: list[str],
    out: Path,
    split: str,
    described: dict[str, object],
) -> dict:
    """Answer a split's questions, and write predictions and scores, with what describes the model, to a folder."""
    with fast.switched(schedule["fast"]):
        rows, scores = predict(model, data, split, schedule["batch_size"])
    table = predictions(data, rows, scores, answers)
    summary = {
        **score_all(table),
        "split": split,
        **described,
        "questions_of_failed_videos": int(table["failed"].sum()),
        "encoders": {n: {k: p[k] for k in ("weights", "pretrained")} for n, p in data.provenance.items()},
    }
    with atomic(out / f"predictions{suffix(split)}.parquet") as partial:
        table.to_parquet(partial, index=False)
    with atomic(out / f"scores{suffix(split)}.json") as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def suffix(split: str) -> str:
    """Of the files' names: what the workflow and the report read is of the test split."""
    return "" if split == "test" else f"-{split}"


def predictions(data: QuestionData, rows: np.ndarray, scores: np.ndarray, answers: list[str]) -> pd.DataFrame:
    """predictions.parquet: the questions in `rows` with what the model answered, N, answers `scores`."""
    kept = ["question_id", "video_id", "question", "scenario", "type", "part", "answer", "failed"]
    table = data.questions.loc[rows].reindex(columns=kept)
    best = scores.argmax(-1)
    if data.choices is None:
        table["prediction"] = np.array(answers)[best]
    else:
        table["prediction"] = [data.questions.at[row, "choices"][n] for row, n in zip(rows, best, strict=True)]
    table["confidence"] = torch.from_numpy(scores).softmax(-1).amax(-1).numpy()
    table["correct"] = table["prediction"] == table["answer"]
    return table


def load_trained(folder: Path, questions_of: str | Path | None = None) -> tuple[dict, AVQAModel, QuestionData]:
    """The config.yaml that `avqa train` wrote, the model and its data, or that of the data set in `questions_of`.

    Raises AVQAError if something is missing or does not fit the model."""
    try:
        trained = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        state = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    except FileNotFoundError as error:
        raise AVQAError(f"{error.filename or folder}: no such file; `avqa train` makes it") from None
    name = trained["model"]
    config = trained["config"] = of_one_model(trained["config"], name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(config, name, device, trained.get("vocabulary"))
    answers = trained["answers"]
    same = answers == (data.answers if data.choices is None else option_names(len(answers)))
    if not same:  # how many options the test's questions have is no matter: each is scored by its text
        raise AVQAError(f"{folder / 'config.yaml'}: was trained on other answers than there are now; train again")
    model = build_model(config["models"][name], data).to(device)
    model.load_state_dict(state)
    return trained, model.eval(), data if questions_of is None else load_other(data, config, name, Path(questions_of))


def load_other(trained: QuestionData, config: dict, name: str, folder: Path) -> QuestionData:
    """Another data set as the model of `config` reads it: its features must be made as those of training were, and are
    standardized by the statistics of training; its questions have as many word numbers. Raises AVQAError."""
    config = config | {"results": str(folder.parent), "dataset": folder.name}
    plain = config | {"train": config["train"] | {"standardize": False}}
    data = load_data(plain, name, trained.device, trained.vocabulary)
    if (trained.choices is None) != (data.choices is None):
        theirs, ours = ("with" if which.choices is not None else "without" for which in (trained, data))
        raise AVQAError(
            f"{folder / 'questions.parquet'}: has questions {ours} options, and the model was trained on questions "
            f"{theirs}; train a model on this data set"
        )
    for encoder, provenance in trained.provenance.items():
        for attribute in ("weights", "weights_sha256", "config"):
            if provenance[attribute] != data.provenance[encoder][attribute]:
                raise AVQAError(f"{data.path}: {attribute} of {encoder} differ from what the model was trained with")
    asked = data.questions.assign(split="test")  # whatever it is there, none is a training question of this model
    for source, numbers in trained.tokens.items():
        data.tokens[source] = encode(asked, source, trained.vocabulary or (), numbers.shape[1])
    for kind in ("features", "texts"):
        for feature, values in getattr(data, kind).items():
            values.mean, values.std = getattr(trained, kind)[feature].mean, getattr(trained, kind)[feature].std
    return data


def evaluate_by_second(folder: str | Path, split: str = "test") -> pd.DataFrame:
    """Accuracy had the videos ended after each second; writes steps.csv to `folder`.

    Raises AVQAError if the model does not offer it."""
    folder = Path(folder)
    trained, model, data = load_trained(folder)
    schedule = trained["config"]["train"]
    with fast.switched(schedule["fast"]):
        accuracies = accuracy_by_second(model, data, split, schedule["batch_size"])
    steps = pd.DataFrame({"second": np.arange(1, len(accuracies) + 1), "accuracy": accuracies})
    with atomic(folder / f"steps{suffix(split)}.csv") as partial:
        steps.to_csv(partial, index=False)
    return steps


@torch.inference_mode()
def accuracy_by_second(model: AVQAModel, data: QuestionData, split: str, size: int) -> np.ndarray:
    """T: share of a split's questions answered right had the videos ended after each second. Raises NotOffered."""
    right, count = 0, 0
    with frozen(model):
        for batch in data.batches(split, size):
            answers = model.scores_by_second(batch).argmax(-1)  # B, T
            right = right + (answers == batch.answer[:, None]).sum(0).cpu().numpy()
            count += len(answers)
    return right / count


def score_all(table: pd.DataFrame) -> dict:
    """`score` of all questions, of each part of the split (head, tail), and of those whose video did not fail: None
    where all failed."""
    present = table[~table["failed"]]
    parts = {part: score(rows) for part, rows in table.dropna(subset="part").groupby("part", sort=False)}
    return {**score(table), "parts": parts, "present": score(present) if len(present) else None}


def score(table: pd.DataFrame) -> dict:
    """Accuracy and count of predictions: overall, by scenario, by scenario/type, and by type in all scenarios."""

    def entry(part: pd.DataFrame) -> dict:
        return {"accuracy": float(part["correct"].mean()), "count": len(part)}

    kinds = sorted(
        table[["scenario", "type"]].drop_duplicates().itertuples(index=False, name=None),
        key=lambda kind: (TYPES.index(kind) if kind in TYPES else len(TYPES), kind),
    )
    return {
        "overall": entry(table),
        "scenario": {s: entry(table[table["scenario"] == s]) for s in dict.fromkeys(s for s, _ in kinds)},
        "type": {f"{s}/{t}": entry(table[(table["scenario"] == s) & (table["type"] == t)]) for s, t in kinds},
        "question_type": {t: entry(table[table["type"] == t]) for t in dict.fromkeys(t for _, t in kinds)},
    }


def types_of(scores: dict, scenario: str) -> list[str]:
    """The names under `type` of a scenario's types, scenario/type. Both parts may have a / themselves."""

    def own(name: str) -> str:
        return max((s for s in scores["scenario"] if name.startswith(f"{s}/")), key=len)

    return [name for name in scores["type"] if own(name) == scenario]


def in_all_scenarios(scores: dict) -> dict[str, dict]:
    """Accuracy and count by type, of the types that several scenarios have (AVQA's relations have all eight)."""
    types = [name.removeprefix(f"{s}/") for s in scores["scenario"] for name in types_of(scores, s)]
    return {name: entry for name, entry in scores.get("question_type", {}).items() if types.count(name) > 1}


def format_scores(scores: dict) -> str:
    """Scores as a table in the papers' order: each scenario's types, its average, types in all scenarios, the whole."""
    lines = [f"{'':36}{'accuracy':>9}{'questions':>11}"]
    for scenario, average in scores["scenario"].items():
        parts = {name: scores["type"][name] for name in types_of(scores, scenario)}
        for name, entry in [*parts.items(), (f"{scenario} average", average)]:
            lines.append(f"{name:36}{entry['accuracy']:>9.2%}{entry['count']:>11}")
    for name, entry in in_all_scenarios(scores).items():
        lines.append(f"{f'{name}, all scenarios':36}{entry['accuracy']:>9.2%}{entry['count']:>11}")
    overall = scores["overall"]
    lines.append(f"{'overall':36}{overall['accuracy']:>9.2%}{overall['count']:>11}")
    if "present" in scores and scores["present"] is None:
        lines.append(ALL_FAILED)
    if not all(e["pretrained"] for e in scores.get("encoders", {}).values()):
        lines.append(RANDOM_WEIGHTS)
    return "\n".join(lines)


ALL_FAILED = (
    "NOTE: the videos of all these questions could not be decoded; the answers are made from zeros, and these scores "
    "say nothing about the model. failures.tsv has the reasons."
)
RANDOM_WEIGHTS = (
    "NOTE: encoder weights are seeded random numbers, not pretrained ones; these scores show that the pipeline "
    "works and say nothing about the model."
)
