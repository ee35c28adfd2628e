"""How large a model is: parameters and multiply-adds, as the field counts those of released code, and of this code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import fast
from pipeline.models.base import AVQAModel, example_batch
from pipeline.models.counts import Count, total


def field_count(model: AVQAModel) -> Count:
    """For one sample, as the field counts the released code; this code's own count where there is none."""
    layers = [layer for part in model.counted().values() for layer in part]
    return total(layers) if layers else executed(model)


def executed(model: AVQAModel) -> Count:
    """Of this code: all parameters, and the multiply-adds of the matrix products of one forward pass of one sample, as
    counted while it runs; in float64, whose products are all PyTorch's own: the counter knows no others."""
    flops = count_flops(model.twin().double().eval())
    return Count(size(model), flops.get("Global", 0) // 2)


def as_text(model: AVQAModel) -> str:
    """A table of the model's parts and of all of it, for one sample of the shapes that it is built for."""
    if model.parts:
        table = three_counts(rows_by_part(model))
    else:
        table = by_convention(model) if model.counted() else by_module(model)
    return f"{table}\n{model.published}" if model.published else table


@torch.no_grad()
def by_module(model: AVQAModel) -> str:
    """Parameters and FLOPs of this code's modules."""
    twin = model.twin().eval()
    with fast.switched(False):  # the counter knows PyTorch's own products only
        flops = count_flops(twin, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    rows = []
    for name, part in twin.named_children():  # a list of modules is not called itself, but its items are
        items = [f"{name}.{n}" for n in range(len(part))] if isinstance(part, nn.ModuleList) else [name]
        rows.append((name, part, sum(flops.get(f"{type(twin).__name__}.{item}", 0) for item in items)))
    rows.append(("all", twin, flops.get("Global", 0)))
    lines = [f"{name:<18}{size(part) / 1e6:>14.3f}{n / 1e6:>14.3f}" for name, part, n in rows]
    return "\n".join([f"{'':<18}{'M parameters':>14}{'MFLOPs':>14}", *lines])


def by_convention(model: AVQAModel) -> str:
    """The counts of the released code's parts by the field's convention, and those of this code."""
    rows = [(name, total(layers)) for name, layers in model.counted().items()]
    rows.append(("all, by convention", total(count for _, count in rows)))
    rows.append(("all, this code", executed(model)))
    lines = [f"{name:<22}{count.parameters / 1e6:>14.3f}{count.macs / 1e9:>10.4f}" for name, count in rows]
    return "\n".join([f"{'':<22}{'M parameters':>14}{'GMACs':>10}", *lines])


class Row(NamedTuple):
    """Of one part, or of all: parameters and multiply-adds of the released code by the field's convention; those that
    the released code really holds and does, None for the parameters of a model with other blocks; and of this code."""

    part: str
    convention: Count
    released: tuple[int | None, int]
    own: Count


def rows_by_part(model: AVQAModel) -> list[Row]:
    """A row for each of the model's `parts` and one for all of it."""
    layers, ours, theirs = model.counted(), *zip(*model.parts.values(), strict=True)
    convention = [total(layers.get(part, [])) for part in model.parts]
    sizes = sum_by_part({name: p.numel() for name, p in model.named_parameters()}, ours)
    own = [Count(*both) for both in zip(sizes, macs_by_part(model, ours), strict=True)]
    true = [count.macs + count.uncounted for count in convention]
    held: list[int | None] = [None] * len(theirs)
    with suppress(ValueError):
        held = [*sum_by_part({name: x.numel() for name, x in model.released_state_dict().items()}, theirs)]
    columns = zip(model.parts, convention, zip(held, true, strict=True), own, strict=True)
    everything = None if None in held else sum(held), sum(true)
    return [*itertools.starmap(Row, columns), Row("all", total(convention), everything, total(own))]


def three_counts(rows: list[Row]) -> str:
    """As a table: parameters in millions, multiply-adds in billions (10⁹)."""
    lines = [f"{'':<18}{'by convention':>24}{'released, true':>24}{'this code':>24}"]
    lines.append(f"{'':<18}" + f"{'M param.':>12}{'GMACs':>12}" * 3)
    for part, *counts in rows:
        cells = (f"{'–' if n is None else format(n / 1e6, '.2f'):>12}{macs / 1e9:>12.3f}" for n, macs, *_ in counts)
        lines.append(f"{part:<18}" + "".join(cells))
    return "\n".join([*lines, f"GFLOPs by convention (twice the GMACs): {2 * rows[-1].convention.macs / 1e9:.2f}"])


def sum_by_part(numbers: dict[str, int], parts: Sequence[tuple[str, ...]]) -> list[int]:
    """The sums of the numbers whose names begin as each part's do; a part without beginnings has all the others."""
    named = [sum(n for name, n in numbers.items() if name.startswith(part)) for part in parts]
    return [n if part else sum(numbers.values()) - sum(named) for part, n in zip(parts, named, strict=True)]


@torch.no_grad()
def macs_by_part(model: AVQAModel, parts: Sequence[tuple[str, ...]]) -> list[int]:
    """Of the matrix products of one forward pass of one sample, as `executed` counts them. The model is frozen, so that
    products of parameters are made once, not for each sample. What no module does when it is called belongs to the
    part without beginnings."""
    twin = model.twin().double().eval().requires_grad_(False)  # the counter's hooks refuse views of parameters
    twin(example_batch(twin))
    flops = count_flops(twin)
    called = {name.partition(".")[2]: n // 2 for name, n in flops.items() if name.count(".") == 1}
    done = {name: n for name, n in called.items() if name.startswith(sum(parts, ()))}
    return sum_by_part(done | {"": flops["Global"] // 2 - sum(done.values())}, parts)


def count_flops(model: AVQAModel, **options: Any) -> dict[str, int]:
    """By module, in one forward pass of one sample."""
    with FlopCounterMode(display=False, **options) as counter:
        model(example_batch(model))
    return {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}


def _lstm_flops(x: tuple[int, ...], *weights_and_rest: Any, **_: Any) -> int:
    """Of the products of an LSTM layer: L·B inputs and as many states, each with its matrix."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(weight) for weight in weights_and_rest[:2])


def size(module: nn.Module) -> int:
    """How many parameters it has."""
    return sum(p.numel() for p in module.parameters())
