"""Cards of published data sets, manifests/<name>.yaml: their files, their form, and the counts that were published."""

import json
from pathlib import Path

import pandas as pd
import yaml

from pipeline.data.formats import SPLITS
from pipeline.data.formats.base import is_storable
from pipeline.errors import AVQAError

MANIFESTS = Path(__file__).parent.parent / "manifests"


def card_names() -> list[str]:
    """The data sets that have a card."""
    return sorted(path.stem for path in MANIFESTS.glob("*.yaml"))


def read_card(name: str) -> dict:
    """A card by its name. Raises AVQAError if there is none."""
    if name not in card_names():
        raise AVQAError(f"card: there is no {name} in manifests/; there are {', '.join(card_names())}")
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8"))


def apply_card(config: dict) -> None:
    """Fill in what the card of a configuration's data set says and the configuration does not: format, pattern of the
    videos' names, seconds, ids, and the names of the annotation files where only their folder is given."""
    if config.get("dataset") in card_names():
        config.setdefault("card", config["dataset"])
    if not isinstance(config.get("card"), str):
        return
    card = read_card(config["card"])
    for name in ("format", "video_ids"):
        if name in card:
            config.setdefault(name, card[name])
    if isinstance(config.get("videos"), dict):
        config["videos"].setdefault("pattern", card["pattern"])
    if isinstance(config.setdefault("decode", {}), dict):
        config["decode"].setdefault("segments", card["seconds"])
    annotations = config.get("annotations")
    if isinstance(annotations, str) and not Path(annotations).suffix:
        config["annotations"] = _in_folder(card["annotations"], annotations)


def _in_folder(files: dict, folder: str) -> dict:
    return {
        name: _in_folder(file, folder) if isinstance(file, dict) else str(Path(folder, file))
        for name, file in files.items()
    }


def compare(card: dict, questions: pd.DataFrame) -> list[str]:
    """One line for each published count: what was published and what was read. `questions` has split, part, video_id,
    scenario and type, before questions of missing videos are left out."""
    splits = questions["split"].unique()
    totals = ("videos", "questions") if len(splits) == len(SPLITS) else ()  # only of all splits
    found = {"videos": questions["video_id"].nunique(), "questions": len(questions)}
    found |= {f"{s}.questions": n for s, n in questions["split"].value_counts().items()}
    found |= {f"{s}.videos": n for s, n in questions.groupby("split")["video_id"].nunique().items()}
    found |= {f"{s}.{p}.questions": n for (s, p), n in questions.groupby(["split", "part"]).size().items()}
    kinds = questions.groupby(["split", "scenario", "type"]).size()
    found |= {f"{s}.{scenario}/{kind}": n for (s, scenario, kind), n in kinds.items()}
    lines = []
    for source, published in card["published"].items():
        for name, count in published.items():
            if name.split(".")[0] in (*splits, *totals):
                read = int(found.get(name, 0))
                verdict = "equal" if read == count else f"differs by {read - count:+d}"
                lines.append(f"{source}: {name}: published {count}, read {read}: {verdict}")
    return lines


def published_videos(card: dict) -> int | None:
    """How many videos a data set has, as the first publication on its card says that counts them."""
    return next((counts["videos"] for counts in card["published"].values() if "videos" in counts), None)


def card_answers(name: str) -> list[str] | None:
    """The answers in the order of their numbers in a data set's release; None where the card does not say. A card may
    name the card whose numbers its data set has (`answers_of`)."""
    card = read_card(name)
    return card.get("answers") or (card_answers(card["answers_of"]) if "answers_of" in card else None)


def decides_numbers(config: dict) -> dict:
    """What in a data set's configuration decides the numbers of its answers and words."""
    parts = {name: config[name] for name in ("annotations", "format", "answers", "card") if name in config}
    if isinstance(files := parts.get("annotations"), dict):
        parts["annotations"] = {split: file for split, file in files.items() if split == "train"}
    return parts


def read_answers(source: str | Path | list[str]) -> list[str]:
    """A release's answers in the order of their numbers: the list, or a file. JSON is a list, or an object with each
    answer's number, by itself or under ans2ix (answer2idx.json); a text file has one answer per line.

    Raises AVQAError naming the file."""
    named = "answers" if isinstance(source, list) else str(source)
    answers = source if isinstance(source, list) else _load_answers(Path(source))
    if isinstance(answers, dict):
        answers = _by_number(answers.get("ans2ix", answers), named)
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise AVQAError(
            f"{named}: must hold a list of answers, each a text, or an object with the number of each answer"
        )
    answers = [answer.strip() for answer in answers]  # as those of the annotations
    if unusable := [answer for answer in answers if not is_storable(answer)]:
        raise AVQAError(f"{named}: {unusable[0]!r} has NUL or half of a surrogate pair; write the character whole")
    if len(set(answers)) < len(answers):
        raise AVQAError(f"{named}: names an answer twice")
    return answers


def _load_answers(path: Path) -> object:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise AVQAError(f"{path}: {error.strerror} (answers)") from None
    try:
        return json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (ValueError, RecursionError) as error:
        raise AVQAError(f"{path}: not JSON ({error})") from error


def _by_number(numbers: object, named: str) -> list[str]:
    """The answers of an object with each one's number. Raises AVQAError unless these are 0, 1, 2, …"""
    whole = isinstance(numbers, dict) and all(type(number) is int for number in numbers.values())
    if not whole or sorted(numbers.values()) != list(range(len(numbers))):
        raise AVQAError(f"{named}: must give each answer a number, from 0 on and each number once")
    return sorted(numbers, key=numbers.get)
