"""A recurrent loop over time whose weight gradients are computed last, many steps at once.

The loop is s_t = f(s_{t-1}, x_t, c, y_{t,1}, y_{t,2}, …) for t = 1 … T, with inputs x_t of each step, tensors c that
all steps share, and affine maps n that f applies inside a step: y_{t,n} = a_{t,n} W_nᵀ + b_n, where a_{t,n} is
whatever f has computed so far. Let ℓ be the loss, g_t = ∂ℓ/∂s_t and δ_{t,n} = ∂ℓ/∂y_{t,n}. Backwards from g_T:

    g_{t-1}   = (∂s_t/∂s_{t-1})ᵀ g_t          every path from s_{t-1} to s_t; one that passes map n has the factor W_n
    ∂ℓ/∂x_t   = (∂s_t/∂x_t)ᵀ g_t
    ∂ℓ/∂c     = Σ_t (∂s_t/∂c)ᵀ g_t
    ∂ℓ/∂W_n   = Σ_t δ_{t,n}ᵀ a_{t,n} = [δ_{1,n}; …; δ_{T,n}]ᵀ [a_{1,n}; …; a_{T,n}]      stacked along the rows
    ∂ℓ/∂b_n   = Σ_t Σ_rows δ_{t,n}

Ordinary backpropagation forms δᵀa, a full weight matrix, at every step, and adds it up T times. The right-hand side is
one product of tall matrices instead. So each step records a graph of its own (f by autograd, the maps by `_ApplyMap`,
which passes δ W_n on and no weight gradient); the backward pass takes from each graph g_{t-1}, ∂ℓ/∂x_t, its part of
∂ℓ/∂c and the δ_{t,n}, and collects (a, δ) of many steps before it multiplies them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from pipeline.models import fast
from pipeline.models.fast.linear import AffineMap, pack, product

ApplyMap = Callable[[int, Tensor], Tensor]
ROWS_PER_PRODUCT = 2048  # rows of a map that are collected for one product of the backward pass


class _ApplyMap(torch.autograd.Function):
    """y = a Wᵀ + b with ∂ℓ/∂a = δ W and no other gradient. W is given as is and transposed, each packed."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, transposed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.transposed = transposed
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return product(grad, ctx.transposed), None, None, None


class _MapGradients:
    """∂ℓ/∂W_n and ∂ℓ/∂b_n of all maps, added up from the pairs (a, δ) of the steps."""

    def __init__(self, flat: Sequence[Tensor | None]):
        self.totals = [x if x is None else torch.zeros_like(x) for x in flat]
        self.waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, n: int, x: Tensor, grad: Tensor) -> None:
        self.waiting.setdefault(n, []).append((x, grad))
        if len(self.waiting[n]) * x.numel() >= ROWS_PER_PRODUCT * x.shape[-1]:
            self.multiply(n)

    def multiply(self, n: int) -> None:
        pairs = zip(*self.waiting.pop(n), strict=True)
        xs, grads = (torch.cat([x.flatten(0, -2) for x in parts]) for parts in pairs)
        self.totals[2 * n].addmm_(grads.T, xs)
        if self.totals[2 * n + 1] is not None:
            self.totals[2 * n + 1] += grads.sum(0)

    def finish(self) -> list[Tensor | None]:
        for n in list(self.waiting):
            self.multiply(n)
        return self.totals


class _Scan(torch.autograd.Function):
    """The loop with the backward pass of the module's docstring."""

    @staticmethod
    def forward(ctx, step, n_inputs: int, n_shared: int, state: Tensor, *tensors: Tensor) -> Tensor:
        inputs, shared = tensors[:n_inputs], tensors[n_inputs : n_inputs + n_shared]
        ctx.flat = [x if x is None else x.detach() for x in tensors[n_inputs + n_shared :]]
        maps = [(pack(state, w), pack(state, w.T), b) for w, b in zip(ctx.flat[::2], ctx.flat[1::2], strict=True)]
        ctx.tape, ctx.shared = [], [x.detach().requires_grad_() for x in shared]
        with torch.enable_grad():
            for now in zip(*inputs, strict=True):
                uses: list[tuple] = []  # of maps in this step: n, a, and the edge of the graph at which δ appears

                def apply_map(n: int, x: Tensor, uses=uses) -> Tensor:
                    y = _ApplyMap.apply(x, *maps[n])
                    uses.append((n, x.detach(), get_gradient_edge(y)))
                    return y

                leaves = [state.detach().requires_grad_(), *(x.detach().requires_grad_() for x in now)]
                state = step(apply_map, ctx.shared, *leaves)
                ctx.tape.append((leaves, uses, state))
        return state.detach()

    @staticmethod
    def backward(ctx, grad: Tensor):
        if not ctx.tape:
            raise RuntimeError("the loop's graph was already used by an earlier backward pass")
        of_maps = _MapGradients(ctx.flat)
        of_shared = [torch.zeros_like(x) for x in ctx.shared]
        of_inputs: list[Sequence[Tensor]] = []
        while ctx.tape:
            leaves, uses, end = ctx.tape.pop()
            wanted = [*leaves, *ctx.shared, *(edge for _, _, edge in uses)]
            grads = torch.autograd.grad(end, wanted, grad)
            grad, now, rest = grads[0], grads[1 : len(leaves)], grads[len(leaves) :]
            of_inputs.append(now)
            for total, part in zip(of_shared, rest, strict=False):
                total += part
            for (n, x, _), delta in zip(uses, rest[len(of_shared) :], strict=True):
                of_maps.add(n, x, delta)
        inputs = [torch.stack(x[::-1]) for x in zip(*of_inputs, strict=True)]
        return None, None, None, grad, *inputs, *of_shared, *of_maps.finish()


def run_step(step: Callable[..., Tensor], flat: Sequence[Tensor | None], *rest) -> Tensor:
    """One step; `flat` holds the weight and bias of each map in turn."""
    return step(lambda n, x: product(x, flat[2 * n], flat[2 * n + 1]), *rest)


def scan(
    step: Callable[..., Tensor],
    state: Tensor,
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    maps: Sequence[AffineMap],
    every: bool = False,
    runner: Callable[..., Tensor] = run_step,
) -> Tensor:
    """state = step(apply_map, shared, state, *(x[t] for x in inputs)) for t = 0 … T-1; returns the last, or with
    `every` all of them stacked (without gradients, unless the faster arithmetic is off).

    `apply_map(n, x)` is x (…,in) through map n. `inputs` are T,…; `shared` are tensors that every step uses whole.
    Under autocast all are brought to its type once, not at each step. `runner` is run_step, or that compiled."""
    device, flat = state.device.type, [x for pair in maps for x in pair]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        state, flat = state.to(dtype), [x if x is None else x.to(dtype) for x in flat]
        inputs, shared = [x.to(dtype) for x in inputs], [x.to(dtype) for x in shared]
    with torch.autocast(device, enabled=False):
        if fast.enabled and torch.is_grad_enabled() and not every:
            return _Scan.apply(step, len(inputs), len(shared), state, *inputs, *shared, *flat)
        if runner is run_step and not torch.is_grad_enabled():
            flat = [x if x is None or x.dim() == 1 else pack(state, x) for x in flat]
        states = []
        for now in zip(*inputs, strict=True):
            state = runner(step, flat, shared, state, *now)
            if every:
                states.append(state)
        return torch.stack(states) if every else state
