"""MUSIC-AVQA (Li et al., CVPR 2022) and what has its form: -Real, -R, -v2.0 and FortisAVQA, as JSON or CSV.

Fields: video_id, question_id (optional), type (a JSON list inside a text: scenario and question type),
question_content (a template with <Object>-like slots), templ_values (a JSON list inside a text: the slots' values in
order; not where questions are rephrased), anser (as spelled in the release), split (FortisAVQA: the part of the test
split, head or tail).
"""

import csv
import re
from functools import cache
from pathlib import Path

from pipeline.data.formats.base import Question, Record
from pipeline.errors import AVQAError

SLOT = re.compile(r"<[^<>]+>")
# Template and its prompt, {0} for the first slot's value. TSPM's own wording is in its release's
# extract_qaPrompt_ViT-L14@336px.py; the statements here say the same in other words.
PROMPTS = Path(__file__).parents[3] / "manifests" / "prompts.csv"


def parse(record: Record) -> Question:
    """One question. Raises AVQAError naming file, record and field."""
    kind = record.texts("type")
    if len(kind) != 2:
        raise record.error(f"field type must hold a scenario and a question type, not {kind}")
    return Question(
        video_id=record.video_id("video_id"),
        question=fill_slots(record),
        answer=record.text("anser"),
        scenario=kind[0],
        type=kind[1],
        question_id=record.text("question_id") if record.has("question_id") else None,
        keywords=record.texts("templ_values") if record.has("templ_values") else None,
        part=record.text("split") if record.has("split") else None,
        prompt=make_prompt(record),
    )


def fill_slots(record: Record) -> str:
    """`Is the <Object> louder?` and ["violin"] make `Is the violin louder?`."""
    template = record.text("question_content")
    slots = SLOT.findall(template)
    # MUSIC-AVQA-R's rephrased questions have no slots left, but may keep the values.
    values = record.texts("templ_values") if slots else []
    if len(slots) != len(values):
        raise record.error(
            f"question_content has {len(slots)} slots, templ_values {len(values)} values: {template!r}, {values}"
        )
    remaining = iter(values)
    return SLOT.sub(lambda _: next(remaining), _plain(template))


def make_prompt(record: Record) -> str | None:
    """`Is the <Object> louder than the <Object>?`, violin and flute make `The violin is louder than the flute`. None
    for a question without a template."""
    template = _plain(record.text("question_content"))
    prompt = prompts().get(template)
    values = record.texts("templ_values") if record.has("templ_values") else []
    try:
        return prompt and prompt.format(*values)
    except (IndexError, KeyError, ValueError, AttributeError):
        raise AVQAError(
            f"{PROMPTS}: the prompt of {template!r} is {prompt!r}; it may have {{0}} to {{{len(values) - 1}}} for the "
            f"values {values}"
        ) from None


@cache
def prompts() -> dict[str, str]:
    """The prompts of MUSIC-AVQA's templates."""
    with open(PROMPTS, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"template", "prompt"} <= rows[0].keys() or any(None in row.values() for row in rows):
        raise AVQAError(f"{PROMPTS}: must be CSV with the columns template and prompt, each filled in every row")
    return {row["template"]: row["prompt"] for row in rows}


def _plain(template: str) -> str:
    """Some question marks are full-width, which CLIP's tokenizer would take for another word."""
    return template.strip().replace("？", "?")
