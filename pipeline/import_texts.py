"""The texts of an import: which array is a question's or a prompt's, and how many tokens it has."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from extractors import ENCODERS, EncoderError, encoder_class
from pipeline.errors import AVQAError
from pipeline.import_source import FeatureFolder, Source, stamp
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter

PROBED = 50  # prompts that are compared with their questions
TAIL = 2  # equal rows at the end of a text's words that are padding
ROUNDING = 1e-3  # relative difference of float16 numbers that are one number

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where the arrays of a text are."""

    folders: dict[str, FeatureFolder]  # by output
    key: str

    def load(self) -> dict[str, np.ndarray]:
        """The text's outputs: D of a sentence, tokens, D of words; published arrays have an axis of length 1 before."""
        found = {}
        for output, folder in self.folders.items():
            array = folder.arrays.load(self.key)
            array = array.reshape(folder.shape_of_row(array.shape))
            found[output] = array.astype(folder.stored_dtype)
        return found


def find_texts(source: Source, questions: pd.DataFrame, published: pd.DataFrame) -> dict[str, Place]:
    """Each text of the questions that has arrays, and where these are: the questions, then their prompts. Of all that
    are published, an id that two of them have names the array of neither.

    Raises AVQAError naming the file that does not fit, and where the arrays of a question are missing. What no array
    was made of is left out with a line that says so: prompts in a layout without them, options.
    """
    places = _places(source, published, "question")
    if lacking := [text for text in questions["question"].unique() if text not in places]:
        folder = next(folder for folder in source.folders if folder.row.per == "question")
        raise AVQAError(
            f"{folder.arrays.path}: has no array for {len(lacking)} questions, as {lacking[0]!r}; a file's name must "
            "be the question_id of a question, which no other question has"
        )
    prompts = _places(source, published.dropna(subset=["prompt"]), "prompt")
    wanted = set(questions["prompt"].dropna()) - places.keys()
    if prompts and (lacking := sorted(wanted - prompts.keys())):
        folder = next(folder for folder in source.folders if folder.row.text == "prompt")
        raise AVQAError(f"{folder.arrays.path}: has no array for {len(lacking)} prompts, as {lacking[0]!r}")
    wanted_texts = set(questions["question"]) | wanted
    places, prompts = ({t: p for t, p in found.items() if t in wanted_texts} for found in (places, prompts))
    for folder in (folder for folder in source.folders if folder.row.per == "question"):
        chosen = prompts if folder.row.text == "prompt" else places
        folder.check(sorted({place.key for place in chosen.values()}))
    if _are_questions(questions, places, prompts):
        log.warning(f"{source.root}: the arrays of prompts are those of their questions, and are left out")
        prompts = {}
    again = f"make the text file with `avqa text --encoder {source.text_encoder}`, then run `avqa index`, to have them"
    if wanted and not prompts:
        log.info(f"{len(wanted)} prompts have no arrays, so that models that read prompts cannot run: {again}")
    options = {option for options in questions["choices"].dropna() for option in options} - places.keys()
    if options:
        log.info(f"{len(options)} options have no arrays, so that models cannot choose among them: {again}")
    return places | {text: place for text, place in prompts.items() if text not in places}


def _places(source: Source, questions: pd.DataFrame, column: str) -> dict[str, Place]:
    folders = [folder for folder in source.folders if folder.row.per == "question" and folder.row.text == column]
    if not folders:
        return {}
    names = set.intersection(*(set(folder.names) for folder in folders))
    pairs = [questions[[column, "question_id"]].set_axis(["text", "key"], axis=1)]
    if source.ids is not None:  # ids of an export, of which a question with an id of its own may have another
        texts = questions.drop_duplicates("question").set_index("question", drop=False)[column]
        exported = source.ids[source.ids["question"].isin(texts.index)]
        pairs.append(pd.DataFrame({"text": texts[exported["question"]].to_numpy(), "key": exported["export_id"]}))
    table = pd.concat(pairs).dropna().drop_duplicates()
    table = table[table["key"].isin(names) & ~table["key"].duplicated(keep=False)].drop_duplicates("text")
    found = {folder.features[0].split("/")[1]: folder for folder in folders}
    return {text: Place(found, key) for text, key in zip(table["text"], table["key"], strict=True)}


def _are_questions(questions: pd.DataFrame, places: dict[str, Place], prompts: dict[str, Place]) -> bool:
    """Whether the arrays of prompts were made of the questions, as earlier versions exported them."""
    pairs = questions.dropna(subset=["prompt"]).drop_duplicates("prompt")
    pairs = pairs[pairs["prompt"].isin(list(prompts)) & (pairs["prompt"] != pairs["question"])].head(PROBED)
    return len(pairs) > 0 and all(
        np.array_equal(prompts[row.prompt].load()["sentence"], places[row.question].load()["sentence"])
        for row in pairs.itertuples()
    )


def write_texts(source: Source, places: dict[str, Place], path: Path, dataset: str) -> None:
    """The text file of a data set, as `avqa text` writes it."""
    texts, outputs = list(places), next(iter(places.values())).folders
    specs = {output: DatasetSpec(folder.row_shape, folder.stored_dtype) for output, folder in outputs.items()}
    specs["length"] = DatasetSpec((), "int32")
    attributes = {"kind": "text", "dataset": dataset, "shard": "", "encoder": source.text_encoder}
    files = [folder.arrays.files[place.key] for place in places.values() for folder in place.folders.values()]
    attributes |= source.provenance("text") | {"arrays": stamp(files)}
    with ShardWriter(path, len(texts), specs, attributes, {"text": texts}) as writer:
        for n in np.flatnonzero(~writer.done).tolist():
            row = places[texts[n]].load()
            writer.write(n, row | {"length": _length(row, texts[n], source.text_encoder or "")})


def _length(row: dict[str, np.ndarray], text: str, encoder: str) -> int:
    """The number of a text's tokens, start and end included.

    CLIP's sentence is the row of words at the end of the text. Where it is not, equal or zero rows at the end of the
    words are padding; where there are none, the encoder's tokenizer counts. All rows, if nothing says more.
    """
    words, sentence = row.get("words"), row.get("sentence")
    if words is not None and sentence is not None and words.shape[1:] == sentence.shape:
        distance = np.abs(words.astype(np.float32) - sentence).max(1)
        end = int(distance.argmin())
        if end > 0 and distance[end] <= ROUNDING * np.abs(sentence).max():
            return end + 1
    if words is not None and (words != words[-1]).any():
        padding = int((words[::-1] == words[-1]).all(1).argmin())
        if padding >= TAIL or not words[-1].any():
            return len(words) - padding
    shape = ENCODERS[encoder].text_outputs.get("words") if encoder in ENCODERS else None
    most = shape[0] if words is None and shape else len(words) if words is not None else 0
    with suppress(EncoderError):  # an encoder that is not in the table, or has no tokenizer of its own
        return min(most, len(encoder_class(encoder).tokens(text)))
    return most
