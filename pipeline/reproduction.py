"""What the papers print that needs no training, and whether this project's models reproduce it.

manifests/published_counts.csv has a line per printed number: the model's settings and shapes that it is of, what to add
for a part that the model does not hold (an encoder), and what has to be said about it. Parameters and multiply-adds
follow the field's counter where a released code could be counted, else they are this code's own.
"""

import json
from pathlib import Path

import pandas as pd

from pipeline.models import MODELS, complexity, model_class
from pipeline.models.base import AVQAModel, reads_tokens

PUBLISHED = Path(__file__).parent.parent / "manifests" / "published_counts.csv"
UNITS = {"M parameters": 1e6, "GMACs": 1e9, "GFLOPs": 0.5e9}
HEAD = """# What the papers print that needs no training

Written by `avqa reproduction`; not to be edited. *Ours* is by the field's counter (thop) where there is released code
to count, else this code's own count. A number is reproduced if it is the paper's when rounded as the paper rounds it.
"""


def reproduction() -> str:
    """The comparison as Markdown."""
    rows = pd.read_csv(PUBLISHED, dtype={"published": str, "reason": str}).fillna({"reason": ""})
    lines = [HEAD, "| model | where | row | | paper | ours | reproduced | note |", "|---|---|---|---|--:|--:|---|---|"]
    for row in rows.to_dict("records"):
        decimals = len(row["published"].partition(".")[2])
        ours = f"{counted(row):.{decimals}f}"
        cells = [row["model"], row["where"], row["row"], row["quantity"], row["published"], ours]
        lines.append("| " + " | ".join([*cells, "yes" if ours == row["published"] else "no", row["reason"]]) + " |")
    silent = [name for name in MODELS if name not in {*rows["model"], "pooled"}]
    lines += ["", f"No paper prints such a number of {' and '.join(silent)}."]
    return "\n".join(lines) + "\n"


def counted(row: dict) -> float:
    """The quantity of a line, in its unit."""
    model = build(row["model"], json.loads(row["settings"]), json.loads(row["shapes"]))
    count = complexity.field_count(model)
    number = count.parameters if row["quantity"] == "M parameters" else count.macs
    return number / UNITS[row["quantity"]] + row["added"]


def build(name: str, settings: dict, shapes: dict[str, list[int]]) -> AVQAModel:
    """A model in its paper's setting but for the given settings and shapes."""
    model = model_class(name).in_paper_setting(**settings)
    if not shapes:
        return model
    vocabulary = {"num_tokens": model.num_tokens} if reads_tokens(type(model.settings)) else {}
    given = model.shapes | {key: tuple(shape) for key, shape in shapes.items()}
    return type(model)(model.settings, given, model.num_answers, **vocabulary)
