"""The page of encoders says what the table of encoders says."""

import re
from pathlib import Path

from extractors import ENCODERS

PAGE = (Path(__file__).resolve().parent.parent / "extractors/README.md").read_text()


def test_the_page_lists_all_encoders_with_their_shapes():
    images, texts = PAGE.split("Texts (")
    listed = {}
    for line in images.splitlines():
        if cells := re.match(r"\| `(\w+)` \| [^|]+ \| ([^|]+) \|", line):
            found = re.findall(r"(\*?)(\w+) (\d+(?:×\d+)*)", cells[2])
            listed[cells[1]] = {name: (tuple(map(int, shape.split("×"))), bool(star)) for star, name, shape in found}
    assert listed == {
        name: {output: (shape, output in spec.on_request) for output, shape in spec.outputs.items()}
        for name, spec in ENCODERS.items()
    }
    assert set(re.findall(r"`(\w+_[bl]\w+)`", texts)) == {n for n, spec in ENCODERS.items() if spec.text_outputs}
