"""The parameter and FLOP report against the published numbers and against a model's own size."""

import pytest
from models.building import av_master

from pipeline.models.av_master.flops import as_text, report


def test_released_model():
    """Table VII: 34.07 M parameters, 6.20 GFLOPs; 61.32 M and 8.81 GMACs are what there really is."""
    model = av_master()
    *parts, total = report(model)
    assert total.parameters == 34_072_835
    assert round(total.macs / 1e9, 3) == 3.099
    assert round(total.constructed / 1e6, 2) == 61.32
    assert round(total.true_macs / 1e9, 2) == 8.81
    assert total.own_parameters == sum(p.numel() for p in model.parameters())
    # The focus loop alone: 16 rows, 60 times, through maps of 768 and 512 features; 8 products by heads of 96 features.
    loop = 16 * 60 * (512 * 768 + 4 * 768 * 512 + 768 * 768 + 2 * 512 * 768 + 2 * 8 * 768)
    assert loop < parts[1].own_macs < 1.1 * loop
    assert total.own_macs < 0.6 * total.true_macs
    assert all(row.own_macs <= 1.001 * row.true_macs for row in parts)
    text = as_text([*parts, total])
    assert "34.07" in text and "61.32" in text and "6.20" in text


@pytest.mark.parametrize(
    "choices",
    [{"without": ["avfc"]}, {"without": ["avkf"]}, {"without": ["gpap"]}, {"without": ["tdpp"]},
     {"share_blocks": False}, {"dynamic_fusion": True}],
)  # fmt: skip
def test_other_models(choices):
    """What is taken out or put in is counted as such, and the released code's own number is left open."""
    small = {"width": 32, "focus_width": 24, "num_answers": 5, "seconds": 7}
    model = av_master(**small, **choices)
    *_, plain = report(av_master(**small))
    *parts, total = report(model)
    assert total.constructed is None
    assert total.own_parameters == sum(p.numel() for p in model.parameters())
    more = "share_blocks" in choices
    assert (total.parameters > plain.parameters) == more
    assert all(row.own_macs >= 0 for row in parts)
    assert total.macs <= plain.macs or choices == {"without": ["avfc"]}
    assert "–" in as_text([*parts, total])
