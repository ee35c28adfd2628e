"""Parameters and multiply-adds of AV-Master: as the field counts them, as the release has them, as this code does.

The field counts with thop, which counts layers that are called (linear, layer norm) and nothing else: not attention's
own projections and products, not plain parameters, and not the decoders' layer norms, whose class it does not know;
a layer norm costs four operations per element. FLOPs are twice the multiply-adds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.av_master.model import AVMaster
from pipeline.models.base import example_batch

# Parts of the model: the beginnings of our names, and of the released ones.
PARTS = {
    "input projections": (("fc_",), ("fc_a.", "fc_v.", "fc_p.", "fc_word.", "fc_q.", "fc_spat_q.")),
    "focus capture": (("embed", "focus", "own_focus_audio", "bias_"), ("AugInformation", "bisa_v", "bias_a")),
    "key fusion": (
        ("fusion",),
        ("GlobalSelf", "bo_", "Uo_", "wo_", "linear_visual", "audio_fusion", "visual_fusion", "SM_f", "fc_av_fusion"),
    ),
    "preferences": (("preference_",), ("AP_Module", "VP_Module")),
    "decoders": (("decode_",), ("fc_answer_pred",)),
}


@dataclass
class Row:
    """Of one part, or of all. `parameters` and `macs` follow the field's convention; `constructed` and `true_macs` are
    the released code's real ones; `own_parameters` and `own_macs` are this implementation's. macs are for one sample
    without a negative. `constructed` is None for a model with other blocks than the released one."""

    part: str
    parameters: int = 0
    macs: int = 0
    constructed: int | None = 0
    true_macs: int = 0
    own_parameters: int = 0
    own_macs: int = 0


def linear(inner: int, outer: int, rows: int, bias: bool = True) -> tuple[int, int]:
    """Parameters and multiply-adds of a linear layer that `rows` rows pass."""
    return inner * outer + bias * outer, inner * outer * rows


def released_counts(model: AVMaster, seconds: int, words: int) -> dict[str, tuple[int, int, int]]:
    """For each part: parameters and multiply-adds by the convention, and the multiply-adds of attention on top."""
    s, dims = model.settings, {name: shape[-1] for name, shape in model.shapes.items()}
    d, f, answers, tokens = s.width, s.focus_width, model.num_answers, 2 * seconds + words
    templates = (s.visual_template, s.audio_template)
    guides = templates if model.focus is not None else (seconds, seconds)
    parts: dict[str, tuple[list[tuple[int, int]], int]] = {}

    def norm(rows: int) -> tuple[int, int]:
        return 2 * d, 4 * d * rows

    def attention(queries: int, keys: int) -> int:
        return (2 * queries + 2 * keys) * d * d + 2 * queries * keys * d

    parts["input projections"] = (
        [
            linear(dims["audio"], d, seconds),
            linear(dims["visual"], d, seconds),
            linear(dims["words"], d, words),
            linear(dims["sentence"], d, 1),
        ],
        0,
    )
    if model.focus is not None:
        rows = seconds * sum(templates)
        pairs = seconds * sum(length**2 for length in templates)
        layers = [linear(d, f, rows), linear(d, f, rows), linear(f, 1, pairs), linear(f, d, rows)]
        layers += [linear(d, f, rows), linear(f, d, rows), *[norm(rows)] * 4]
        if model.own_focus_audio is not None:
            layers += [(parameters, 0) for parameters, _ in layers]
        own = seconds * sum(2 * attention(length, length) for length in templates)
        parts["focus capture"] = [linear(d, d, 2 * seconds), *layers], own
    if model.fusion is not None:
        layers = [*[linear(d, d, tokens)] * 2, *[norm(tokens)] * 2, linear(3 * d, d, tokens)]
        for length in guides:
            layers += [linear(d, d, length), linear(d, 1, tokens * length)]
        if model.fusion.gate is not None:
            layers.append(linear(d, 2, 1))
        parts["key fusion"] = layers, attention(tokens, tokens)
    if model.preference_audio is not None:
        layers = [*[linear(d, d, seconds)] * 4, *[norm(seconds)] * 4]
        parts["preferences"] = layers, 2 * (attention(seconds, seconds) + attention(seconds, words))
    memories = [1] * (model.decode_fused is not None) + [seconds] * 2 * (model.decode_audio is not None)
    layers = []
    for length in memories:
        # query, key, value, output, two of the feed-forward; then the head
        layers += 2 * [linear(d, d, 1), *[linear(d, d, length)] * 2, *[linear(d, d, 1)] * 3]
        layers += [linear(d, d, 1), linear(d, answers, 1, bias=False)]
    parts["decoders"] = layers, sum(2 * 2 * length * d for length in memories)
    return {part: (sum(n for n, _ in layers), sum(n for _, n in layers), own) for part, (layers, own) in parts.items()}


@torch.no_grad()
def executed(model: AVMaster) -> dict[str, int]:
    """Multiply-adds of the matrix products of one forward pass of one sample, by part, as counted while it runs.
    The model is frozen for it, so that products of parameters are made once, not for each sample, and in float64, whose
    products are all PyTorch's own: the counter knows no others."""
    counter, batch = FlopCounterMode(display=False), example_batch(model)
    twin = AVMaster(model.settings, model.shapes, model.num_answers)  # the counter's hooks refuse views of parameters
    twin.double().eval().requires_grad_(False)
    twin(batch)
    with counter:
        twin(batch)
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    done = {
        part: sum(n for name, n in counts.items() if name.count(".") == 1 and name.partition(".")[2].startswith(ours))
        for part, (ours, _) in PARTS.items()
    }
    # Key fusion is called in two halves, of which the counter knows one; it is all that the other parts have not done.
    done["key fusion"] += counts["Global"] - sum(done.values())
    return done


def report(model: AVMaster) -> list[Row]:
    """A row for each part of the model and one for all of it, for one sample of the shapes that it is built for."""
    seconds, words = model.shapes["audio"][0], model.shapes["words"][0]
    counted, done = released_counts(model, seconds, words), executed(model)
    try:
        theirs = {name: tensor.numel() for name, tensor in model.released_state_dict().items()}
    except ValueError:
        theirs = None
    rows = []
    for part, (ours, released_names) in PARTS.items():
        parameters, macs, own = counted.get(part, (0, 0, 0))
        constructed = theirs and sum(n for name, n in theirs.items() if name.startswith(released_names))
        own_parameters = sum(p.numel() for name, p in model.named_parameters() if name.startswith(ours))
        rows.append(Row(part, parameters, macs, constructed, macs + own, own_parameters, done[part]))
    total = Row("all")
    for field in fields(Row)[1:]:
        values = [getattr(row, field.name) for row in rows]
        setattr(total, field.name, None if None in values else sum(values))
    return [*rows, total]


def as_text(rows: list[Row]) -> str:
    """The report as a table: parameters in millions, multiply-adds in billions (10⁹)."""
    head = f"{'':<18}{'by convention':>24}{'released, true':>24}{'this code':>24}"
    units = f"{'':<18}" + f"{'M param.':>12}{'GMACs':>12}" * 3
    lines = [head, units]
    for row in rows:
        pairs = ((row.parameters, row.macs), (row.constructed, row.true_macs), (row.own_parameters, row.own_macs))
        cells = (f"{'–' if n is None else format(n / 1e6, '.2f'):>12}{macs / 1e9:>12.3f}" for n, macs in pairs)
        lines.append(f"{row.part:<18}" + "".join(cells))
    lines.append(f"GFLOPs by convention (twice the GMACs): {2 * rows[-1].macs / 1e9:.2f}")
    return "\n".join(lines)
