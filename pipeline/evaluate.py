"""Answer the questions of a split with a trained model, and score the answers."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
import yaml

from pipeline.accuracy import score_all
from pipeline.config import of_one_model
from pipeline.data.dataset import QuestionData, option_names
from pipeline.data.vocabulary import encode
from pipeline.errors import AVQAError
from pipeline.models import fast
from pipeline.models.base import AVQAModel
from pipeline.paths import RUN_FILES
from pipeline.storage.atomic import atomic, link
from pipeline.storage.contract import comparable
from pipeline.storage.tables import reading
from pipeline.train import build_model, data_digest, frozen, load_data, predict

OF_TRAINING = (*RUN_FILES, "tensorboard", "pretrain")  # what leads from the scores to the run


def evaluate(
    folder: str | Path,
    split: str = "test",
    questions_of: str | Path | None = None,
    out: str | Path | None = None,
    training_data: str | Path | None = None,
) -> dict:
    """Answer a split's questions with the model in `folder`; writes predictions.parquet and scores.json to `out`
    (default: there), with links to the model's files.

    `questions_of` is a folder with features.h5 and questions, whose questions are asked in place of those that the
    model was trained with. `training_data` is a folder with the same training questions and features as the model was
    trained on (default: the very one). For another split than test the files are named predictions-<split>.parquet and
    scores-<split>.json. Questions whose video failed are answered too, from zeros; `present` has the scores without
    them. Returns the scores. Raises AVQAError if the folder holds no trained model.
    """
    folder, out = Path(folder), Path(out or folder)
    trained, model, data = load_trained(folder, questions_of, training_data)
    out.mkdir(parents=True, exist_ok=True)
    if out.resolve() != folder.resolve():
        for name in filter(lambda name: (folder / name).exists(), OF_TRAINING):
            link(out / name, folder / name)
    described = {"model": trained["model"]}
    if "checkpoint" in trained:  # a published one that was taken over
        described |= {"checkpoint": trained["checkpoint"]}
    else:
        described |= {"seed": trained["seed"], "trained_on": trained["config"]["dataset"]}
    return answer(model, data, trained["config"]["train"], trained["answers"], out, split, described)


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


def load_trained(
    folder: Path, questions_of: str | Path | None = None, training_data: str | Path | None = None
) -> tuple[dict, AVQAModel, QuestionData]:
    """The config.yaml that `avqa train` wrote, the model and its data, or that of the data set in `questions_of`.

    What the model was trained on may be gone, since test questions or videos have changed. `training_data` has the same
    training questions and features, as keys say, which are not compared again. Raises AVQAError if something is missing
    or does not fit the model."""
    trained, state = _read_run(folder)
    name = trained["model"]
    config = trained["config"] = of_one_model(trained["config"], name)
    if training_data:
        config["data"] = str(training_data)
    elif "data" in trained:  # relative to the file itself, whatever link led here
        config["data"] = os.path.normpath((folder / "config.yaml").resolve().parent / trained["data"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(config, name, device, trained.get("vocabulary"), trained["answers"])
    with_options = trained["answers"] == option_names(len(trained["answers"]))
    if with_options is (data.choices is None):
        raise AVQAError(
            f"{folder / 'config.yaml'}: was trained on questions {'with' if with_options else 'without'} options, "
            f"unlike those of {data.path.parent}; train again"
        )
    if not training_data and "data" in trained and trained["data_digest"] != data_digest(data):
        raise AVQAError(
            f"{folder / 'config.yaml'}: the features or questions in {data.path.parent} are no longer those that the "
            "model was trained on; train again"
        )
    model = build_model(config["models"][name], data).to(device)
    model.load_state_dict(state)
    model.eval()
    if questions_of is None or Path(questions_of, "features.h5").resolve() == data.path.resolve():
        return trained, model, data
    return trained, model, load_other(data, config, name, Path(questions_of))


def _read_run(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.yaml and checkpoint.safetensors of a run. Raises AVQAError where one is not there or damaged."""
    path, checkpoint = folder / "config.yaml", folder / "checkpoint.safetensors"
    try:
        with reading(path, "avqa train"):
            trained = yaml.safe_load(path.read_text(encoding="utf-8"))
            _ = trained["model"], trained["answers"], trained["config"]["models"], trained["config"]["train"]
        with reading(checkpoint, "avqa train"):
            return trained, safetensors.torch.load_file(checkpoint)
    except yaml.YAMLError as error:
        raise AVQAError(f"{path}: is damaged ({error}); `avqa train` makes it again") from error
    except safetensors.SafetensorError as error:
        raise AVQAError(f"{checkpoint}: is damaged ({error}); `avqa train` makes it again") from error


def load_other(trained: QuestionData, config: dict, name: str, folder: Path) -> QuestionData:
    """Another data set as the model of `config` reads it: its features must be made as those of training were, and are
    standardized by the statistics of training; its questions have as many word numbers. Raises AVQAError."""
    config = config | {"data": str(folder)}
    plain = config | {"train": config["train"] | {"standardize": False}}
    data = load_data(plain, name, trained.device, trained.vocabulary, trained.answers)
    if (trained.choices is None) != (data.choices is None):
        theirs, ours = ("with" if which.choices is not None else "without" for which in (trained, data))
        raise AVQAError(
            f"{folder / 'questions.parquet'}: has questions {ours} options, and the model was trained on questions "
            f"{theirs}; train a model on this data set"
        )
    for encoder, provenance in trained.provenance.items():
        for attribute in ("weights", "weights_sha256", "config"):
            both = (comparable(attribute, of[attribute]) for of in (provenance, data.provenance[encoder]))
            if len({*both}) > 1:
                raise AVQAError(f"{data.path}: {attribute} of {encoder} differ from what the model was trained with")
    for source, numbers in trained.tokens.items():
        data.tokens[source] = encode(data.questions, source, trained.vocabulary or (), numbers.shape[1])
    for kind in ("features", "texts"):
        for feature, values in getattr(data, kind).items():
            values.mean, values.std = getattr(trained, kind)[feature].mean, getattr(trained, kind)[feature].std
    return data


def evaluate_by_second(
    folder: str | Path, split: str = "test", questions_of: str | Path | None = None, out: str | Path | None = None
) -> pd.DataFrame:
    """Accuracy had the videos ended after each second; writes steps.csv. The arguments are those of `evaluate`.

    Raises AVQAError if the model does not offer it."""
    folder, out = Path(folder), Path(out or folder)
    trained, model, data = load_trained(folder, questions_of)
    schedule = trained["config"]["train"]
    with fast.switched(schedule["fast"]):
        accuracies = accuracy_by_second(model, data, split, schedule["batch_size"])
    steps = pd.DataFrame({"second": np.arange(1, len(accuracies) + 1), "accuracy": accuracies})
    with atomic(out / f"steps{suffix(split)}.csv") as partial:
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
