"""AV-Master's parameters and operations, by part, against the published numbers and against a model's own size."""

import pytest
from models.building import av_master

from pipeline.models.complexity import as_text, field_count, rows_by_part

SMALL = {"width": 32, "focus_width": 24, "num_answers": 5, "seconds": 7}
TABLE = """\
                             by convention          released, true               this code
                      M param.       GMACs    M param.       GMACs    M param.       GMACs
input projections         1.87       0.087        3.05       0.087        1.87       0.087
focus capture             2.57       1.974        7.89       6.527        6.12       3.341
key fusion                4.14       0.594       11.62       1.118        6.50       0.661
preferences               2.37       0.142       11.82       0.774       11.81       0.431
decoders                 23.13       0.301       26.93       0.302       20.79       0.024
all                      34.07       3.099       61.32       8.809       47.10       4.544
GFLOPs by convention (twice the GMACs): 6.20"""
# Of `av_master(**SMALL)`: parameters and multiply-adds by convention, as released, and of this code.
PARTS = {
    "input projections": (77952, 2117632, 127168, 2117632, 77952, 2117632),
    "focus capture": (5313, 523264, 15353, 1555456, 12128, 803328),
    "key fusion": (7522, 552192, 84770, 1454912, 11776, 1081408),
    "preferences": (4480, 32256, 25472, 508928, 21248, 448000),
    "decoders": (41664, 89568, 58671, 91488, 38287, 50656),
}


def test_released_model():
    """Table VII: 34.07 M parameters, 6.20 GFLOPs; 61.32 M and 8.81 GMACs are what there really is."""
    model = av_master()
    *parts, total = rows_by_part(model)
    assert total.convention[:2] == field_count(model)[:2] == (34_072_835, 3_099_075_072)
    assert total.released == (61_318_017, 8_808_870_912)
    assert total.own.parameters == sum(p.numel() for p in model.parameters())
    # The focus loop alone: 16 rows, 60 times, through maps of 768 and 512 features; 8 products by heads of 96 features.
    loop = 16 * 60 * (512 * 768 + 4 * 768 * 512 + 768 * 768 + 2 * 512 * 768 + 2 * 8 * 768)
    assert loop < parts[1].own.macs < 1.1 * loop
    assert total.own.macs < 0.6 * total.released[1]
    assert all(row.own.macs <= 1.001 * row.released[1] for row in parts)
    assert as_text(model) == TABLE


def test_parts_of_a_small_model():
    """Golden values, by which every part keeps its own layers: their sum alone would not say whose they are."""
    *parts, total = rows_by_part(av_master(**SMALL, words=77))
    assert {row.part: (*row.convention[:2], *row.released, *row.own[:2]) for row in parts} == PARTS
    assert (*total.convention[:2], *total.released, *total.own[:2]) == tuple(
        map(sum, zip(*PARTS.values(), strict=True))
    )


@pytest.mark.parametrize(
    ("choices", "expected"),
    [({"without": ["avfc"]}, (131618, 2783776)), ({"without": ["avkf"]}, (129409, 2762720)),
     ({"without": ["gpap"]}, (104675, 3206560)), ({"without": ["tdpp"]}, (110208, 2225984)),
     ({"share_blocks": False}, (141188, 3314912)), ({"dynamic_fusion": True}, (104741, 3206624)),
     ({"without": ["avfc", "avkf", "gpap"]}, (91840, 2131104))],
)  # fmt: skip
def test_other_models(choices, expected):
    """What is taken out or put in is counted as such, and the released code's own number is left open."""
    model = av_master(**SMALL, **choices)
    *parts, total = rows_by_part(model)
    assert total.convention[:2] == expected
    assert total.released[0] is None and "–" in as_text(model)
    assert total.own.parameters == sum(p.numel() for p in model.parameters())
    assert all(row.own.macs >= 0 for row in parts)
