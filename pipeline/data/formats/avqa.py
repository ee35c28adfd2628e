"""AVQA (Yang et al., ACM MM 2022): multiple choice about VGGSound clips.

Fields: id, video_name (the clip's file name), video_id (a number of the data set's own), question_text, multi_choice
(up to four answers, null where there are fewer), answer (an index into them), question_relation (what has to be
perceived), question_type.
"""

from pipeline.data.formats.base import Question, Record


def parse(record: Record) -> Question:
    """One question. Raises AVQAError naming file, record and field."""
    choices, answer = record.choice("multi_choice", "answer")
    return Question(
        video_id=record.video_id("video_name"),
        question=record.text("question_text"),
        answer=answer,
        scenario=record.text("question_relation"),
        type=record.text("question_type"),
        question_id=record.text("id") if record.has("id") else None,
        choices=choices,
    )
