"""Anyone's own questions: video_id, question, answer.

Optional: split (train, val or test, where one file holds all), scenario, type, choices (a list of texts, the answer
among them; in CSV separated by |) and question_id.
"""

from pipeline.data.formats.base import Question, Record


def parse(record: Record) -> Question:
    """One question. Raises AVQAError naming file, record and field."""
    answer, choices = record.text("answer"), _choices(record)
    if choices is not None and answer not in choices:
        raise record.error(f"field answer must be one of the choices {choices}, not {answer!r}")
    return Question(
        video_id=record.video_id("video_id"),
        question=record.text("question"),
        answer=answer,
        scenario=record.text("scenario") if record.has("scenario") else "All",
        type=record.text("type") if record.has("type") else "All",
        question_id=record.text("question_id") if record.has("question_id") else None,
        choices=choices,
        split=record.text("split") if record.has("split") else None,
    )


def _choices(record: Record) -> list[str] | None:
    if not record.has("choices"):
        return None
    value = record.get("choices")
    values = value.split("|") if isinstance(value, str) and not value.startswith("[") else record.texts("choices")
    return [value.strip() for value in values if value.strip()]
