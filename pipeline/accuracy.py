"""Accuracy overall, by scenario and by question type: what scores.json holds, and its entries in the papers' order."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from pipeline.data.formats.base import TYPES
from pipeline.errors import AVQAError

Key = tuple[str, ...]  # what an entry is of: ("scenario", "Audio"), ("types", "Audio", "Counting"), ("overall",)

OVERALL: Key = ("overall",)
ALL_FAILED = (
    "NOTE: the videos of all these questions could not be decoded; the answers are made from zeros, and these scores "
    "say nothing about the model. failures.tsv has the reasons."
)
RANDOM_WEIGHTS = (
    "NOTE: encoder weights are seeded random numbers, not pretrained ones; these scores show that the pipeline "
    "works and say nothing about the model."
)


def score_all(table: pd.DataFrame) -> dict:
    """`score` of all questions, of each part of the split (head, tail), and of those whose video did not fail: None
    where all failed."""
    present = table[~table["failed"]]
    parts = {part: score(rows) for part, rows in table.dropna(subset="part").groupby("part", sort=False)}
    return {**score(table), "parts": parts, "present": score(present) if len(present) else None}


def score(table: pd.DataFrame) -> dict:
    """Accuracy and count of predictions: overall, by scenario, by type in each scenario, and by type in all scenarios.

    Scenarios and types are any texts, so `types` is nested: no text stands for a pair of them.
    """

    def entry(part: pd.DataFrame) -> dict:
        return {"accuracy": float(part["correct"].mean()), "count": len(part)}

    kinds = sorted(
        table[["scenario", "type"]].drop_duplicates().itertuples(index=False, name=None),
        key=lambda kind: (TYPES.index(kind) if kind in TYPES else len(TYPES), kind),
    )
    types: dict[str, dict[str, dict]] = {}
    for scenario, kind in kinds:
        rows = table[(table["scenario"] == scenario) & (table["type"] == kind)]
        types.setdefault(scenario, {})[kind] = entry(rows)
    return {
        "overall": entry(table),
        "scenario": {s: entry(table[table["scenario"] == s]) for s in types},
        "types": types,
        "question_type": {t: entry(table[table["type"] == t]) for t in dict.fromkeys(t for _, t in kinds)},
    }


def read_scores(path: str | Path) -> dict:
    """A scores.json. Raises AVQAError if it is not there, damaged, or of an earlier version that lost questions."""
    again = f"`avqa evaluate {Path(path).parent}` makes it"
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
        for part in (scores, *scores["parts"].values(), *filter(None, [scores["present"]])):
            if "types" not in part:
                part["types"] = _types_of_an_earlier_version(part)
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file; {again}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise AVQAError(f"{path}: does not have the form of this version; {again} again") from None
    return scores


def _types_of_an_earlier_version(part: dict) -> dict[str, dict[str, dict]]:
    """An earlier version named types scenario/type. Raises ValueError if these names have lost or hide a pair."""
    types: dict[str, dict[str, dict]] = {scenario: {} for scenario in part["scenario"]}
    for name, entry in part["type"].items():
        scenario = max((s for s in types if name.startswith(f"{s}/")), key=len)
        types[scenario][name.removeprefix(f"{scenario}/")] = entry
    for scenario, entries in types.items():
        if sum(entry["count"] for entry in entries.values()) != part["scenario"][scenario]["count"]:
            raise ValueError(scenario)
    return types


def keys_of(runs: Iterable[dict]) -> list[Key]:
    """What the entries of scores are of, in the papers' order: each scenario's types, then its average; the types that
    several scenarios have (AVQA's relations have all eight); the whole."""
    types: dict[str, dict[str, None]] = {}
    for scores in runs:
        for scenario, entries in scores["types"].items():
            types.setdefault(scenario, {}).update(dict.fromkeys(entries))
    keys: list[Key] = []
    for scenario, kinds in types.items():
        keys += [*(("types", scenario, kind) for kind in kinds), ("scenario", scenario)]
    named = [kind for kinds in types.values() for kind in kinds]
    shared = [kind for kind in dict.fromkeys(named) if named.count(kind) > 1]
    return [*keys, *(("question_type", kind) for kind in shared), OVERALL]


def entry_of(scores: dict, key: Key) -> dict:
    """Accuracy and count of what a key stands for; not a number, and 0, where the scores have no such question."""
    found = scores
    for name in key:
        found = found.get(name) or {}
    return found or {"accuracy": float("nan"), "count": 0}


def label(key: Key) -> str:
    """A key as a line of a table names it. Two keys may have the same label."""
    name = "/".join(key[1:])
    return {"types": name, "scenario": f"{name} average", "question_type": f"{name}, all scenarios"}.get(key[0], key[0])


def names_of(keys: Iterable[Key], name: Callable[[Key], str] = label, taken: Iterable[str] = ()) -> dict[Key, str]:
    """What keys are called in a table, where names must differ: `name` of each, with a number behind it where it is
    taken or an earlier key has it. The whole has the first choice."""
    names: dict[Key, str] = {}
    for key in sorted(keys, key=lambda key: key != OVERALL):
        wanted, n = name(key), 1
        while (free := wanted if n == 1 else f"{wanted} ({n})") in {*taken, *names.values()}:
            n += 1
        names[key] = free
    return names


def format_scores(scores: dict) -> str:
    """Scores as a table in the papers' order."""
    lines = [f"{'':36}{'accuracy':>9}{'questions':>11}"]
    for key in keys_of([scores]):
        entry = entry_of(scores, key)
        lines.append(f"{label(key):36}{entry['accuracy']:>9.2%}{entry['count']:>11}")
    if scores.get("present", scores) is None:
        lines.append(ALL_FAILED)
    if not all(e["pretrained"] for e in scores.get("encoders", {}).values()):
        lines.append(RANDOM_WEIGHTS)
    return "\n".join(lines)
