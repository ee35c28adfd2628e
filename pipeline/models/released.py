"""Checkpoints of the authors' releases: which of their modules each of ours is, and their modules without use."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from pipeline.models.base import AVQAModel

# A released module's name: ours, or a maker of one that no output depends on. In the order of the released state dict.
Modules = dict[str, str | Callable[[], nn.Module]]


def shape_of(state_dict: dict[str, Tensor], name: str) -> torch.Size:
    """Of a tensor. Raises ValueError if there is no such name."""
    if name not in state_dict:
        raise ValueError(f"not a released state dict of this model: it lacks {name}")
    return state_dict[name].shape


def parameters_of(module: nn.Module, theirs: str) -> Iterator[tuple[str, Tensor]]:
    """Released names and parameters of one module."""
    return ((f"{theirs}.{name}", parameter) for name, parameter in module.named_parameters())


def load(model: AVQAModel, modules: Modules, state_dict: dict[str, Tensor], frozen: str = "") -> dict[str, Tensor]:
    """Fill the model's parameters; returns the tensors that it has no use for, by released name.

    `frozen` begins the names of an encoder inside the released model that works on raw inputs; they may be missing.
    Raises ValueError when another name is missing or unknown, or a shape does not fit."""
    rest = dict(state_dict)
    wanted: dict[str, tuple[Tensor, bool]] = {}
    for theirs, ours in modules.items():
        with torch.device("meta"):  # of what has no use, only the shapes
            module = model.get_submodule(ours) if isinstance(ours, str) else ours()
        wanted |= {name: (p, isinstance(ours, str)) for name, p in parameters_of(module, theirs)}
    missing = wanted.keys() - rest.keys()
    unknown = {name for name in rest.keys() - wanted.keys() if not (frozen and name.startswith(frozen))}
    if missing or unknown:
        some = [f"lacks {name}" for name in sorted(missing)] + [f"has unknown {name}" for name in sorted(unknown)]
        name = type(model).__name__
        raise ValueError(f"not a released {name} state dict: it {', '.join(some[:3])} ({len(some)} in all)")
    for name, (parameter, used) in wanted.items():
        if rest[name].shape != parameter.shape:
            expected, found = tuple(parameter.shape), tuple(rest[name].shape)
            raise ValueError(f"{name}: expected shape {expected}, the state dict has {found}")
        if used:
            with torch.no_grad():
                parameter.copy_(rest.pop(name))
    return {name: tensor.detach().clone() for name, tensor in rest.items()}


def save(model: AVQAModel, modules: Modules, unused: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The released state dict of a model and of the unused tensors that `load` returned. Without these, they are
    initialised as the release does, from a random state of their own; an encoder inside is then left out."""
    out: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for theirs, ours in modules.items():
            module = model.get_submodule(ours) if isinstance(ours, str) else ours()
            out |= {name: p.detach().clone() for name, p in parameters_of(module, theirs)}
    return out | {name: tensor.clone() for name, tensor in (unused or {}).items()}


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
