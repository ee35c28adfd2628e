"""Exact but faster arithmetic that belongs to no model in particular, and the switch that turns it off.

Each function here has a plain PyTorch equivalent and falls back to it when the switch is off: F.linear, F.dropout,
an ordinary loop, autograd. Outputs and gradients are then the same up to rounding, and easy to debug or profile.
"""

from collections.abc import Iterator
from contextlib import contextmanager

enabled = True


@contextmanager
def switched(on: bool) -> Iterator[None]:
    """The faster arithmetic on or off within the context. `train.fast` of the configuration sets it."""
    global enabled
    before, enabled = enabled, on
    try:
        yield
    finally:
        enabled = before
