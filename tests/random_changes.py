"""What users do between two runs, at random. Each change returns what it did, or None where it is not possible now."""

import os
import shutil
from collections.abc import Callable

import numpy as np
from small_project import SPLITS, Clip, DirectWorker, Project
from toy_table import TOYS

from pipeline.clean import remove, unnamed
from pipeline.paths import paths_of

Change = Callable[[Project, np.random.Generator], str | None]


def _any(rng: np.random.Generator, values):
    values = sorted(values)
    return values[int(rng.integers(len(values)))] if values else None


def replaced_video(project: Project, rng: np.random.Generator) -> str:
    """By another one, whose file is newer, older, or has no time at all."""
    video, time = _any(rng, project.clips), [None, 0, int(rng.integers(1, 10**9))][int(rng.integers(3))]
    project.add_video(video, time)
    return f"{video} is another video, time {time}"


def touched_video(project: Project, rng: np.random.Generator) -> str:
    video, time = _any(rng, project.clips), [None, 0, int(rng.integers(1, 10**9))][int(rng.integers(3))]
    project.set_time(project.path(video), time)
    return f"{video} has time {time}"


def added_video(project: Project, rng: np.random.Generator) -> str:
    video = f"{_any(rng, 'auwz')}{len(project.clips)}{int(rng.integers(10**6))}"
    project.add_video(video)
    for split in (_any(rng, SPLITS), _any(rng, (*SPLITS, "other"))):
        project.ask(split, video)
    return f"{video} is there"


def removed_video(project: Project, rng: np.random.Generator) -> str | None:
    video = _any(rng, project.clips)
    if not project.can_lose(video):
        return None
    project.path(video).unlink()
    del project.clips[video]
    return f"{video} is gone"


def broken_video(project: Project, rng: np.random.Generator) -> str | None:
    """What stands under its name is no video."""
    video = _any(rng, project.clips)
    if not project.can_lose(video):
        return None
    project.set_clip(video, Clip(None, float(rng.random()), 0))
    return f"{video} is broken"


def mended_video(project: Project, rng: np.random.Generator) -> str | None:
    video = _any(rng, (name for name, clip in project.clips.items() if clip.colour is None))
    if video:
        project.add_video(video)
    return video and f"{video} is mended"


def late_video(project: Project, rng: np.random.Generator) -> str | None:
    """One takes too long in the next run, and in no later one."""
    video = _any(rng, project.clips)
    if not project.can_lose(video):
        return None
    project.set_time(project.path(video))
    DirectWorker.failing.add(str(project.path(video)))
    project.late.add(video)
    project.run()
    DirectWorker.failing.clear()
    return f"{video} was late"


def decoded_otherwise(project: Project, rng: np.random.Generator) -> str:
    name = _any(rng, ("segments", "frame_at", "pad"))
    value = {
        "segments": int(rng.integers(1, 4)),
        "frame_at": _any(rng, (0.0, 0.25, 0.5)),
        "pad": _any(rng, ("zero", "repeat")),
    }
    project.config["decode"][name] = value[name]
    return f"decode.{name}: {value[name]}"


def other_encoder(project: Project, rng: np.random.Generator) -> str:
    """One is added, or one that no model reads is removed."""
    encoders = project.config["encoders"]
    read = {entry[name].split("/")[0] for entry in project.config["models"].values() for name in ("audio", "visual")}
    name = _any(rng, {name for name, spec in TOYS.items() if spec.outputs} - read)
    if name in encoders:
        del encoders[name]
        return f"no encoder {name}"
    encoders[name] = {"weights": "random", "outputs": [_any(rng, TOYS[name].outputs)]}
    return f"encoder {name}"


def other_settings_of_encoder(project: Project, rng: np.random.Generator) -> str:
    name = _any(rng, project.config["encoders"])
    entry = project.config["encoders"][name]
    read = {entry[of] for entry in project.config["models"].values() for of in ("audio", "visual")}
    needed = {output.split("/")[1] for output in read if output.split("/")[0] == name}
    setting = _any(rng, ("seed", "outputs", "dtype"))
    others = [output for output in TOYS[name].outputs if rng.random() < 0.5 or output in needed]
    values = {"seed": int(rng.integers(3)), "dtype": _any(rng, ("bfloat16", "float32"))}
    values["outputs"] = [*others][:: int(rng.choice([1, -1]))] or list(TOYS[name].outputs)
    entry[setting] = values[setting]
    return f"encoders.{name}.{setting}: {values[setting]}"


def other_text(project: Project, rng: np.random.Generator) -> str:
    name = _any(rng, ("encoder", "seed", "sentence", "dtype", "drop_last_character", "others"))
    values = {"encoder": "toy_words_2" if project.config["text"]["encoder"] == "toy_words" else "toy_words"}
    values |= {"seed": int(rng.integers(3)), "sentence": _any(rng, ("first", "mean", "eot"))}
    values |= {"dtype": _any(rng, ("bfloat16", "float32")), "drop_last_character": bool(rng.integers(2))}
    project.config["text"].pop("others", None)
    values["others"] = {values["encoder"]: {"weights": "random", "seed": int(rng.integers(3))}}
    project.config["text"][name] = values[name]
    return f"text.{name}: {values[name]}"


def other_questions(project: Project, rng: np.random.Generator) -> str | None:
    split = _any(rng, project.questions)
    records = project.questions[split]
    record = records[int(rng.integers(len(records)))]
    kind = _any(rng, ("edited", "removed", "added", "id", "answer", "order"))
    if kind == "removed":
        project.questions[split] = [other for other in records if other is not record]
        if not project.can_lose(""):
            project.questions[split] = records
            return None
    elif kind == "added":
        project.ask(split, _any(rng, project.clips))
    elif kind == "order":
        project.questions[split] = records[::-1]
    else:
        name = {"edited": "question", "id": "question_id", "answer": "answer"}[kind]
        record[name] = (
            f"Where is the {_any(rng, 'abcdef')} ?" if kind == "edited" else _any(rng, ("yes", "no", "NO", "1"))
        )
    return f"questions of {split}: {kind}"


def reordered(project: Project, rng: np.random.Generator) -> str:
    """The entries of a section."""
    place = project.config
    for name in _any(rng, (("datasets", "tiny", "annotations"), ("encoders",), ("models",), ("train",))):
        parent, place = place, place[name]
    parent[name] = {key: place[key] for key in map(str, rng.permutation(list(place)))}
    return f"{name} in the order {', '.join(parent[name])}"


def merged_answers(project: Project, rng: np.random.Generator) -> str:
    project.config["merge_answers"] = not project.config.get("merge_answers", False)
    return f"merge_answers: {project.config['merge_answers']}"


def other_data_set(project: Project, rng: np.random.Generator) -> str:
    """A second one, whose questions the first one's models answer, is added or removed."""
    if project.config["datasets"].pop("other", None):
        return "no other data set"
    project.config["datasets"]["other"] = {"annotations": {"test": "data/other.json"}, "trained_on": ["tiny"]}
    return "another data set"


def other_model(project: Project, rng: np.random.Generator) -> str:
    models = project.config["models"]
    if "second" in models and rng.random() < 0.5:
        del models["second"]
        return "no second model"
    kept = [
        f"{name}/{output}"
        for name, entry in project.config["encoders"].items()
        for output in entry.get("outputs", TOYS[name].outputs)
    ]
    models["second"] = {"architecture": "pooled", "audio": _any(rng, kept), "visual": _any(rng, kept), "width": 3}
    return f"models.second: {models['second']}"


def other_training(project: Project, rng: np.random.Generator) -> str:
    name = _any(rng, ("width", "epochs", "learning_rate", "standardize", "seeds", "entry", "checkpoint"))
    train, entry = project.config["train"], project.config["models"]["pooled"]
    if name == "width":
        entry["width"] = int(rng.integers(2, 6))
    elif name == "entry":
        entry["train"] = {"epochs": int(rng.integers(1, 3))}
    else:
        values = {"epochs": int(rng.integers(1, 4)), "learning_rate": _any(rng, (0.01, 0.02)), "seeds": [0, 1]}
        values |= {"standardize": not train["standardize"], "checkpoint": _any(rng, ("best", "last"))}
        values["seeds"] = [[0], [1], [0, 1]][int(rng.integers(3))]
        train[name] = values[name]
    return f"training: {name}"


def touched_results(project: Project, rng: np.random.Generator) -> str:
    for path in project.results.rglob("*"):
        time = int(rng.integers(10**9))
        os.utime(path, (time, time), follow_symlinks=False)
    return "all results have other times"


LOST = (
    "clips/shards/*.tsv",
    "clips/videos.parquet",
    "clips/features/*",
    "clips/features/*/*.h5",
    "clips/failures",
    "tiny/manifests/*",
    "tiny/manifests/*/questions.parquet",
    "tiny/text/*.h5",
    "tiny/data/*",
    "tiny/data/*/features.h5",
    "tiny/data/*/failures.tsv",
    "tiny/data/*/verify.json",
    "tiny/runs/*",
    "tiny/runs/*/*/checkpoint.safetensors",
    "tiny/runs/*/*/history.csv",
    "tiny/scores/*",
    "tiny/scores/*/*/*/*.json",
    "tiny/scores/*/*/*/predictions.parquet",
    "tiny/reports/*",
    "tiny/reports/*/summary.txt",
    "tiny/models",
    "other/scores",
    "other",
)


def lost_results(project: Project, rng: np.random.Generator) -> str | None:
    """Where a video is broken, the table that says why is kept: it is not in another place."""
    pattern = _any(rng, LOST)
    path = _any(rng, project.results.glob(pattern))
    if path is None or (pattern == "clips/failures" and any(clip.colour is None for clip in project.clips.values())):
        return None
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return f"{path} is lost"


def cleaned(project: Project, rng: np.random.Generator) -> str:
    """`avqa clean --yes`, after a run: what is needed is there."""
    project.run()
    found = [path for path, _ in unnamed([paths_of(project.configs())])]
    remove(found)
    return f"{len(found)} files and folders are cleaned away"


def neutral_settings(project: Project, rng: np.random.Generator) -> str:
    """What changes no number."""
    project.config["train"]["workers"] = int(rng.integers(1, 3))
    project.config["decode"]["ahead"] = int(rng.integers(1, 3))
    project.config["decode"]["selective"] = bool(rng.integers(2))
    _any_entry = project.config["encoders"][_any(rng, project.config["encoders"])]
    _any_entry["batch_size"] = int(rng.integers(1, 9))
    project.config["text"]["batch_size"] = int(rng.integers(1, 9))
    return "settings that change no result"


CHANGES: tuple[Change, ...] = (
    replaced_video,
    touched_video,
    added_video,
    removed_video,
    broken_video,
    mended_video,
    late_video,
    decoded_otherwise,
    other_encoder,
    other_settings_of_encoder,
    other_text,
    other_questions,
    reordered,
    merged_answers,
    other_data_set,
    other_model,
    other_training,
    touched_results,
    lost_results,
    cleaned,
    neutral_settings,
)
