"""The layers of released code, as the field counts their parameters and multiply-adds.

The field counts with thop, which counts layers that are called (linear, layer norm, LSTM) and nothing else: not
attention's own projections and products, and not plain parameters. A layer norm costs four operations per element.
The field calls these multiply-adds FLOPs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Count(NamedTuple):
    """Of a layer or of many. `uncounted` are multiply-adds that the field's counter does not see, where a model says
    how many they are."""

    parameters: int
    macs: int
    uncounted: int = 0


def linear(inner: int, outer: int, rows: int) -> Count:
    """A linear layer with bias that `rows` rows pass."""
    return Count(inner * outer + outer, inner * outer * rows)


def norm(width: int, rows: int) -> Count:
    """A layer norm that `rows` rows pass."""
    return Count(2 * width, 4 * width * rows)


def feed_forward(width: int, rows: int) -> Count:
    """Two linear layers D→D and a layer norm."""
    return total([linear(width, width, rows), linear(width, width, rows), norm(width, rows)])


def attention(width: int, queries: int, keys: int) -> Count:
    """D→D attention: four projections and two products."""
    return Count(0, 0, 2 * (queries + keys) * width**2 + 2 * queries * keys * width)


def total(counts: Iterable[Count]) -> Count:
    return Count(*(sum(numbers) for numbers in zip(Count(0, 0), *counts, strict=True)))
