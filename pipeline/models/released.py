"""Checkpoints of the authors' releases: which of their modules each of ours is, and their modules without use."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.models.base import AVQAModel

Maker = Callable[[], nn.Module | Tensor]  # of a released module or plain parameter, initialised as the release does


class Partly(NamedTuple):
    """A released module of which the model has parts only.

    `parts` says of its parameters, by their names in it, of which of ours they are a stack along the first dimension.
    No output depends on rows that are None there, and on parameters that are not there."""

    make: Maker
    parts: dict[str, tuple[str | None, ...]]


# By released name of a module or plain parameter: ours; a maker of one that no output depends on; or what is partly
# ours. In the order of the released state dict.
Modules = dict[str, str | Maker | Partly]
Stack = list[tuple[Tensor, bool]]  # what a released tensor is a stack of, and whether it is a parameter of the model


def shape_of(state_dict: dict[str, Tensor], name: str) -> torch.Size:
    """Of a matrix. Raises ValueError if there is none of this name."""
    if name not in state_dict:
        there = f"{', '.join(list(state_dict)[:3]) or 'nothing'} ({len(state_dict)} in all)"
        raise ValueError(f"not a released state dict of this model: it lacks {name}, and has {there}")
    if state_dict[name].ndim != 2:
        raise ValueError(f"{name}: expected a matrix, the state dict has shape {tuple(state_dict[name].shape)}")
    return state_dict[name].shape


def named(module: nn.Module | Tensor) -> dict[str, Tensor]:
    """The parameters of a module by their names in it; a plain parameter has no name."""
    return {"": module} if isinstance(module, Tensor) else dict(module.named_parameters())


def stacks_of(model: AVQAModel, modules: Modules) -> dict[str, Stack]:
    """By released name."""
    own, stacks = dict(model.named_parameters()), {}
    for theirs, ours in modules.items():
        if isinstance(ours, str):
            whole = own[ours] if ours in own else model.get_submodule(ours)
            found: dict[str, Stack] = {name: [(p, True)] for name, p in named(whole).items()}
        else:
            make, parts = ours if isinstance(ours, Partly) else (ours, {})
            found = {}
            for name, tensor in named(make()).items():
                names = parts.get(name, (None,))
                blocks = zip(names, tensor.detach().chunk(len(names)), strict=True)
                found[name] = [(block, False) if part is None else (own[part], True) for part, block in blocks]
        stacks |= {f"{theirs}.{name}" if name else theirs: stack for name, stack in found.items()}
    return stacks


def lengths(stack: Stack) -> list[int]:
    return [len(tensor) for tensor, _ in stack]


@torch.no_grad()
def load(model: AVQAModel, modules: Modules, state_dict: dict[str, Tensor], frozen: str = "") -> dict[str, Tensor]:
    """Fill the model's parameters; returns the tensors that hold what it has no use for, by released name.

    `frozen` begins the names of an encoder inside the released model that works on raw inputs; they may be missing.
    Raises ValueError when another name is missing or unknown, or a shape does not fit."""
    with torch.device("meta"):  # of what has no use, only the shapes
        stacks = stacks_of(model, modules)
    missing = stacks.keys() - state_dict.keys()
    rest = {name: x for name, x in state_dict.items() if name not in stacks}
    unknown = {name for name in rest if not (frozen and name.startswith(frozen))}
    if missing or unknown:
        some = [f"lacks {name}" for name in sorted(missing)] + [f"has unknown {name}" for name in sorted(unknown)]
        name = type(model).__name__
        raise ValueError(f"not a released {name} state dict: it {', '.join(some[:3])} ({len(some)} in all)")
    for name, stack in stacks.items():
        expected, found = (sum(lengths(stack)), *stack[0][0].shape[1:]), tuple(state_dict[name].shape)
        if found != expected:
            raise ValueError(f"{name}: expected shape {expected}, the state dict has {found}")
        for (parameter, used), rows in zip(stack, state_dict[name].split(lengths(stack)), strict=True):
            if used:
                parameter.copy_(rows)
        if not all(used for _, used in stack):
            rest[name] = state_dict[name]
    return {name: tensor.detach().clone() for name, tensor in rest.items()}


def save(model: AVQAModel, modules: Modules, unused: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The released state dict of a model and of the unused tensors that `load` returned. Without these, they are
    initialised as the release does, from a random state of their own; an encoder inside is then left out."""
    unused, out, like = unused or {}, {}, next(model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not a GPU's, which would not be restored
        stacks = stacks_of(model, modules)
    for name, stack in stacks.items():
        kept = unused[name].split(lengths(stack)) if name in unused else [tensor for tensor, _ in stack]
        rows = [ours if used else row.to(like) for (ours, used), row in zip(stack, kept, strict=True)]
        out[name] = torch.cat(rows).detach()
    return out | {name: tensor.clone() for name, tensor in unused.items() if name not in out}


def cross_modal(theirs: str, ours: str) -> Modules:
    """A layer of self and cross attention: ours is a CrossModalLayer."""
    return {
        f"{theirs}.self_attn": f"{ours}.own",
        f"{theirs}.cm_attn": f"{ours}.cross",
        f"{theirs}.linear1": f"{ours}.feed_forward.inner",
        f"{theirs}.linear2": f"{ours}.feed_forward.outer",
        f"{theirs}.norm1": f"{ours}.norm",
        f"{theirs}.norm2": f"{ours}.feed_forward.norm",
    }


def query(theirs: str, ours: str, kind: str = "qst") -> Modules:
    """A layer of attention of a query: ours is a QueryLayer."""
    return {
        f"{theirs}.attn_{kind}_query": f"{ours}.attention",
        f"{theirs}.{kind}_query_linear1": f"{ours}.feed_forward.inner",
        f"{theirs}.{kind}_query_linear2": f"{ours}.feed_forward.outer",
        f"{theirs}.{kind}_query_visual_norm": f"{ours}.feed_forward.norm",
    }


def without_use(modules: Modules, width: int) -> Modules:
    """The same released modules where ours has none: D→D attention, layer norms and linear layers."""

    def maker(name: str) -> Callable[[], nn.Module]:
        if "norm" in name:
            return lambda: nn.LayerNorm(width)
        if "attn" in name.rpartition(".")[2]:
            return lambda: nn.MultiheadAttention(width, 1)
        return lambda: nn.Linear(width, width)

    return {name: maker(name) for name in modules}
