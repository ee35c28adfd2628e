"""What `toy_encoders` can be run, without PyTorch, which takes seconds to import."""

from extractors import AudioInput, EncoderSpec, FrameInput, Transform

SIZE, RATE, WORDS, WIDTH = 16, 8000, 6, 4


def _spec(kind: str, inputs: tuple, outputs: dict, texts: dict | None = None) -> EncoderSpec:
    return EncoderSpec(f"toy_encoders:{kind}", "toy", inputs, outputs, texts or {}, dtype="float32")


FRAMES = FrameInput(SIZE, transform=Transform("bilinear"))
TEXTS = {"words": (WORDS, WIDTH), "sentence": (WIDTH,)}
TOYS = {
    "toy_colour": _spec("Colour", (FRAMES,), {"mean": (3,), "mixed": (WIDTH,)}),
    "toy_colour_2": _spec("Colour", (FrameInput(2 * SIZE),), {"mean": (3,), "mixed": (WIDTH,)}),
    "toy_loudness": _spec("Loudness", (AudioInput(RATE),), {"level": (1,), "mixed": (WIDTH,)}),
    "toy_words": _spec("Words", (), {}, TEXTS),
    "toy_words_2": _spec("Words", (), {}, TEXTS),
}
