"""Parameters and multiply-adds: as the field counts them for the released code, and of this code.

The field counts with thop, which counts layers that are called (linear, layer norm, LSTM) and nothing else: not
attention's own projections and products, and not plain parameters. A layer norm costs four operations per element.
The field calls these multiply-adds FLOPs.
"""

from __future__ import annotations

from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.base import AVQAModel, example_batch


class Count(NamedTuple):
    """Of a layer or of many."""

    parameters: int
    macs: int


def linear(inner: int, outer: int, rows: int) -> Count:
    """A linear layer with bias that `rows` rows pass."""
    return Count(inner * outer + outer, inner * outer * rows)


def norm(width: int, rows: int) -> Count:
    """A layer norm that `rows` rows pass."""
    return Count(2 * width, 4 * width * rows)


def feed_forward(width: int, rows: int) -> Count:
    """Two linear layers D→D and a layer norm."""
    return total([linear(width, width, rows), linear(width, width, rows), norm(width, rows)])


def total(counts: list[Count]) -> Count:
    return Count(sum(count.parameters for count in counts), sum(count.macs for count in counts))


def executed(model: AVQAModel) -> Count:
    """Of this code: all parameters, and the multiply-adds of the matrix products of one forward pass of one sample, as
    counted while it runs; in float64, whose products are all PyTorch's own: the counter knows no others."""
    twin = model.twin().double().eval()
    counter = FlopCounterMode(display=False)
    with counter:
        twin(example_batch(twin))
    return Count(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def as_text(model: AVQAModel, parts: dict[str, list[Count]], published: str) -> str:
    """The counts by the field's convention for each part and in all, those of this code, and the published ones."""
    rows = [*((name, total(counts)) for name, counts in parts.items())]
    rows.append(("all, by convention", total([count for _, count in rows])))
    rows.append(("all, this code", executed(model)))
    lines = [f"{'':<22}{'M parameters':>14}{'GMACs':>10}"]
    lines += [f"{name:<22}{count.parameters / 1e6:>14.3f}{count.macs / 1e9:>10.4f}" for name, count in rows]
    return "\n".join([*lines, f"published: {published}"])
