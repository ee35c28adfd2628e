"""The papers' results and the survey's methods as tables, with the scores of a configuration's models beside them."""

from itertools import product

import numpy as np
import pandas as pd

from pipeline.ablations import MANIFESTS
from pipeline.accuracy import Key, entry_of, keys_of, names_of, read_scores
from pipeline.config import scores_dir
from pipeline.data.formats.base import TYPES
from pipeline.errors import AVQAError

KEYS = ["method", "setting", "encoder", "source"]
SCENARIOS = tuple(dict.fromkeys(scenario for scenario, _ in TYPES))
# The columns of the papers' tables, in their order: each scenario's types, its average, then the whole.
_PARTS = ((*(f"{scenario}/{kind}" for scenario, kind in TYPES if scenario == s), s) for s in SCENARIOS)
COLUMNS = (*(name for part in _PARTS for name in part), "overall")
_SHORT = {"Audio": "A", "Visual": "V", "Audio-Visual": "AV", "Counting": "Count", "Comparative": "Comp",
          "Location": "Local", "Existential": "Exist", "Temporal": "Temp"}  # fmt: skip


def published(dataset: str | None = None, method: str | None = None, source: str | None = None) -> pd.DataFrame:
    """The rows of manifests/published_results.csv: method, dataset, setting, encoder, column, value, source.

    `dataset` selects by name, whatever its case and punctuation; `method` and `source` by a part of the name.
    """
    table = pd.read_csv(MANIFESTS / "published_results.csv", keep_default_na=False)
    if dataset is not None:
        table = table[table["dataset"].map(plain) == plain(dataset)]
    for column, word in (("method", method), ("source", source)):
        if word is not None:
            table = table[table[column].str.contains(word, case=False, regex=False)]
    return table


def plain(name: str) -> str:
    """A name without case and punctuation: MUSIC-AVQA and music_avqa are the same data set."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def wide(table: pd.DataFrame, accuracies: bool = False) -> pd.DataFrame:
    """One line per method, setting, encoder and source, and one column per column of the papers' tables, in their
    order. With `accuracies`, the columns of the nine types, of their parts (head, tail) and of the averages only."""
    names = sorted(dict.fromkeys(table["column"]), key=_place)
    table = table[table["column"].map(_place) < len(COLUMNS)] if accuracies else table
    lines = table.drop_duplicates([*KEYS, "column"]).pivot(index=KEYS, columns="column", values="value")
    order = pd.MultiIndex.from_frame(table[KEYS].drop_duplicates())
    return lines.reindex(order).reindex(columns=[n for n in names if n in lines]).reset_index()


def _place(column: str) -> int:
    """The place in COLUMNS of a column of the papers' tables, whatever its part, head or tail; others at the end."""
    name = column.removesuffix(" (head)").removesuffix(" (tail)")
    return COLUMNS.index(name) if name in COLUMNS else len(COLUMNS)


def own_results(config: dict) -> pd.DataFrame:
    """The models' mean accuracies in % over the seeds, in the form of `published`. Models without scores yet are left
    out."""
    rows = []
    for trained_on, model in product(config["trained_on"], config["models"]):
        folders = [scores_dir(config, trained_on, model, seed) for seed in config["train"]["seeds"]]
        runs = [read_scores(folder / "scores.json") for folder in folders if (folder / "scores.json").exists()]
        notes = [f"trained on {trained_on}"] if config["trained_on"] != [config["dataset"]] else []
        if any(not e["pretrained"] for run in runs for e in run["encoders"].values()):
            notes.append("random weights")
        names = dict.fromkeys(name for run in runs for name in run["encoders"] if not name.startswith("text"))
        described = {"method": f"{model} (ours)", "dataset": config["dataset"], "setting": ", ".join(notes)}
        described |= {"encoder": " + ".join(names), "source": f"mean of {len(runs)} seed(s)"}
        for key, name in _columns(runs).items():
            accuracy = np.nanmean([entry_of(run, key)["accuracy"] for run in runs])
            rows.append(described | {"column": name, "value": round(100 * float(accuracy), 2)})
    return pd.DataFrame(rows, columns=["method", "dataset", "setting", "encoder", "column", "value", "source"])


def _columns(runs: list[dict]) -> dict[Key, str]:
    """The columns of the papers' tables that runs have accuracies for."""
    keys = [key for key in keys_of(runs) if key[0] != "question_type"] if runs else []
    for part in dict.fromkeys(part for run in runs for part in run["parts"]):
        of_part = keys_of(run["parts"][part] for run in runs if part in run["parts"])
        keys += [("parts", part, *key) for key in of_part if key[0] == "types"]
    return names_of(keys, _column, KEYS)


def _column(key: Key) -> str:
    if key[0] == "parts":
        return f"{_column(key[2:])} ({key[1]})"
    return "/".join(key[1:]) or key[0]


def format_results(dataset: str, method: str | None, source: str | None, sort: str, config: dict | None = None) -> str:
    """The results on a data set as text, best first. Raises AVQAError if there are none or no such column."""
    known = ", ".join(published()["dataset"].unique())
    table = published(dataset, method, source)
    if config is not None:
        table = pd.concat([own_results(config), table])
    if table.empty:
        raise AVQAError(f"no published results on {dataset} fit; there are results on {known}")
    lines = wide(table)
    if sort not in lines:
        raise AVQAError(f"--sort: there is no column {sort}; there are {', '.join(lines.columns)}")
    lines = lines.sort_values(sort, ascending=not pd.api.types.is_numeric_dtype(lines[sort]), na_position="last")
    lines = lines.rename(columns=short_name)
    return lines.to_string(index=False, na_rep="", float_format=lambda x: f"{x:.2f}")


def short_name(column: str) -> str:
    """A column's name in a narrow table: A/Count for Audio/Counting."""
    scenario, _, kind = column.partition("/")
    if scenario not in SCENARIOS:
        return column
    word, _, rest = kind.partition(" ")
    kind = f"{_SHORT.get(word, word)} {rest}".strip()
    return f"{_SHORT[scenario]}/{kind}" if kind else f"{_SHORT[scenario]}-QA"


def format_survey(method: str | None) -> str:
    """The survey's data sets and methods as text, those with `method` in their name."""
    table = pd.read_csv(MANIFESTS / "methods.csv", keep_default_na=False, dtype=str)
    table = table[table["name"].str.contains(method or "", case=False, regex=False)]
    if table.empty:
        raise AVQAError(f"--method: the survey has no {method}")
    return table[["kind", "year", "name", "venue", "spatio_temporal", "title", "link"]].to_string(index=False)
