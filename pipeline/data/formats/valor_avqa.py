"""Valor32k-AVQA v2: multiple choice about clips of the VALOR-32K collection.

Fields: video_id, question, options (texts), correct_answer_idx (an index into them), and, where given, modality (what
has to be perceived), category (what is asked for) and id.
"""

from pipeline.data.formats.base import Question, Record


def parse(record: Record) -> Question:
    """One question. Raises AVQAError naming file, record and field."""
    choices, answer = record.choice("options", "correct_answer_idx")
    return Question(
        video_id=record.video_id("video_id"),
        question=record.text("question"),
        answer=answer,
        scenario=record.text("modality") if record.has("modality") else "Audio-Visual",
        type=record.text("category") if record.has("category") else "Multiple choice",
        question_id=record.text("id") if record.has("id") else None,
        choices=choices,
    )
