"""Questions to word and sentence features, each different text once."""

from pathlib import Path

import pandas as pd
from tqdm import tqdm

from extractors import encoder_spec, load_encoder, text_encoders
from pipeline.errors import AVQAError
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter

BATCH_SIZE = 32  # texts


def read_texts(path: str | Path, prompts: bool = False) -> list[str]:
    """The different questions of a questions.parquet, the options of multiple choice and with `prompts` the prompts, or
    the lines of a text file in order of appearance. Those of a table are sorted, so that they follow from which texts
    there are."""
    questions, others = _read(Path(path), prompts)
    texts = list(dict.fromkeys(line for line in questions + others if line))
    texts = sorted(texts) if Path(path).suffix == ".parquet" else texts
    if not texts:
        raise AVQAError(f"{path}: holds no question")
    return texts


def _read(path: Path, prompts: bool) -> tuple[list[str], list[str]]:
    """The questions of a file, and the options and prompts beside them."""
    try:
        if path.suffix != ".parquet":
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines()], []
        table = pd.read_parquet(path)
        others = [text for options in table.get("choices", pd.Series(dtype=object)).dropna() for text in options]
        if prompts:
            others += table.get("prompt", pd.Series(dtype=object)).dropna().tolist()
        return table["question"].tolist(), others
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file") from None
    except (ValueError, KeyError) as error:
        raise AVQAError(f"{path}: not a table of questions ({error})") from error


def without_last_character(question: str) -> str:
    """What `drop_last_character` gives the encoder: released scripts take the last character for a question mark."""
    return question.strip()[:-1]


def encode_texts(
    questions: str | Path,
    out: str | Path,
    *,
    encoder: str,
    weights: str,
    sentence: str = "eot",
    dataset: str = "",
    sha256: str | None = None,
    seed: int = 0,
    dtype: str | None = None,
    batch_size: int | None = None,
    key: str = "",
    drop_last_character: bool = False,
    prompts: bool = False,
) -> None:
    """Write text Q, length Q (tokens) and the encoder's text outputs of the different questions.

    Text outputs are Q, … float16; those of CLIP are words Q, 77, D, words_unprojected Q, 77, W and sentence Q, D.
    With `drop_last_character` the encoder reads questions without their last character, and options and prompts whole;
    `text` holds them as they are. With `prompts` those of a questions.parquet are texts too, for models that read them.
    Raises AVQAError for an encoder without text outputs, and EncoderError.
    """
    spec = encoder_spec(encoder)
    if not spec.text_outputs:
        raise AVQAError(f"encoder {encoder} has no text outputs; use one of {text_encoders()}")
    texts = said = read_texts(questions, prompts)
    if drop_last_character:
        shortened = set(_read(Path(questions), prompts)[0])
        said = [without_last_character(text) if text in shortened else text for text in texts]
    dtype = dtype or spec.dtype
    model = load_encoder(encoder, weights, sha256=sha256, seed=seed, dtype=dtype)
    attributes = {
        "kind": "text",
        "dataset": dataset,
        "shard": "",
        "encoder": encoder,
        **model.provenance,
        "config": {"dtype": dtype, "sentence": sentence}
        | ({"drop_last_character": True} if drop_last_character else {}),
        **({"prompts": True} if prompts else {}),
        "key": key,
    }
    datasets = {name: DatasetSpec(shape, "float16") for name, shape in spec.text_outputs.items()}
    datasets["length"] = DatasetSpec((), "int32")
    batch_size = batch_size or BATCH_SIZE
    with ShardWriter(out, len(texts), datasets, attributes, {"text": texts}) as writer:
        for start in tqdm(range(0, len(texts), batch_size), desc=f"{encoder} text", unit="batch", mininterval=2):
            rows = slice(start, start + batch_size)
            if not writer.done[rows].all():
                encoded = model.encode_text(said[rows], sentence)
                writer.write(rows, {name: values.cpu().numpy() for name, values in encoded.items()})
