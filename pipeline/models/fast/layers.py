"""The arithmetic that AV-Master's blocks share, each piece written for the least work that is still exact.

Shapes: B samples, N tokens, D features. A map is the (weight, bias) of a linear layer, weight out×in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

Map = tuple[Tensor, Tensor | None]

# PyTorch for CPUs carries oneDNN, but leaves float32 products to MKL unless a program is compiled. MKL keeps its best
# kernels for Intel's processors; on AMD's, oneDNN is 1.1 to 1.6 times as fast. Its operator has no documented name.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN_FROM = 2**16  # elements of a weight; with fewer, oneDNN's call costs more than its product saves


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= ONEDNN_FROM
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, without gradients where oneDNN does it. `weight` may be packed."""
    if by_onednn(x, weight):
        # It gives a view of two dimensions, to which nothing could be added in place once it has gradients.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "").detach()
    return F.linear(x, weight, bias)


def pack(x: Tensor, weight: Tensor) -> Tensor:
    """`weight` laid out for many calls of `product` with the likes of x: worth it where rows are few."""
    return torch.ops.mkldnn._reorder_linear_weight(weight) if by_onednn(x, weight) else weight


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            product(grad, weight.T) if ctx.needs_input_grad[0] else None,
            rows.T @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None,
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias by the faster library."""
    if torch.is_grad_enabled() and by_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def as_map(layer: nn.Linear) -> Map:
    return layer.weight, layer.bias


def compose(first: Map, *then: Map) -> Map:
    """The one map that equals `first`, then the others in turn."""
    for weight, bias in then:
        carried = bias if first[1] is None else F.linear(first[1], weight, bias)
        first = weight @ first[0], carried
    return first


def select_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """x[rows]; all of x where `rows` is None."""
    return x if rows is None else x.index_select(0, rows)


class Memo:
    """Keeps what was last computed from parameters that are frozen (requires_grad False), until one of them changes.
    Whatever may be trained is computed anew each time: not every optimizer leaves a trace of its steps."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self.key, self.value, self.held = None, None, []

    def holds(self, parameters: Sequence[Tensor]) -> bool:
        """Whether these are frozen. If not, what was kept is forgotten."""
        if torch.compiler.is_compiling() or any(p.requires_grad for p in parameters):
            self.forget()
            return False
        return True

    def __call__(self, make: Callable[[], Any], parameters: Sequence[Tensor]) -> Any:
        if not self.holds(parameters):
            return make()
        device = parameters[0].device.type
        mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = (mixed, *((p.data_ptr(), p._version, p.dtype) for p in parameters))
        if key != self.key:
            self.key, self.value = key, make()
            self.held = [p.detach() for p in parameters]  # as long as they live, no others have their addresses
        return self.value


class Linear(nn.Linear):
    """nn.Linear by the faster library; a frozen one keeps its weight packed."""

    def __init__(self, *sizes: int, bias: bool = True):
        super().__init__(*sizes, bias=bias)
        self.packed = Memo()

    def forward(self, x: Tensor) -> Tensor:
        if not self.packed.holds([self.weight]) or torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return product(x, self.packed(lambda: pack(x, self.weight), [self.weight]), self.bias)


class _DropAdd(torch.autograd.Function):
    """residual + dropout(x) on the CPU. One draw of 64 random bits serves four elements and is kept, not the mask:
    drawing is a sixth of the time of PyTorch's own dropout, which otherwise takes a tenth of a training step."""

    @staticmethod
    def forward(ctx, residual: Tensor | None, x: Tensor, rate: float) -> Tensor:
        dropped = round(rate * 65536)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        ctx.threshold, ctx.scale = 32768 - dropped, 65536 / (65536 - dropped)
        ctx.save_for_backward(bits)
        mask = _DropAdd.mask(ctx, x, bits)
        return mask.mul_(x).mul_(ctx.scale) if residual is None else torch.addcmul(residual, x, mask, value=ctx.scale)

    @staticmethod
    def mask(ctx, x: Tensor, bits: Tensor) -> Tensor:
        return torch.lt(bits[: x.numel()].view(x.shape), ctx.threshold, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx, grad: Tensor):
        mask = _DropAdd.mask(ctx, grad.contiguous(), *ctx.saved_tensors)
        return grad if ctx.needs_input_grad[0] else None, mask.mul_(grad).mul_(ctx.scale), None


def drop(x: Tensor, rate: float) -> Tensor:
    """Dropout; `rate` 0 is none."""
    if not rate:
        return x
    return _DropAdd.apply(None, x.contiguous(), rate) if x.device.type == "cpu" else F.dropout(x, rate)


def add_dropped(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    """residual + dropout(x), shapes equal."""
    if not rate:
        return residual + x
    if x.device.type == "cpu":
        return _DropAdd.apply(residual, x.contiguous(), rate)
    return residual + F.dropout(x, rate)


class _AdditiveScores(torch.autograd.Function):
    """Σ_d w_d σ(2(m_id + u_jd)), a few samples at a time: the pairs are too many to keep, and fit a cache so."""

    @staticmethod
    def forward(ctx, m: Tensor, u: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(m, u, w)
        return torch.cat([_AdditiveScores.pairs(a, b) @ w for a, b in _AdditiveScores.chunks(m, u)])

    @staticmethod
    def chunks(*tensors: Tensor):
        return zip(*(x.split(1 if x.device.type == "cpu" else len(x)) for x in tensors), strict=True)

    @staticmethod
    def pairs(m: Tensor, u: Tensor) -> Tensor:
        return ((2 * m)[:, :, None] + (2 * u)[:, None]).sigmoid_()

    @staticmethod
    def backward(ctx, grad: Tensor):
        m, u, w = ctx.saved_tensors
        grad_m, grad_u, grad_w = [], [], torch.zeros_like(w)
        for a, b, g in _AdditiveScores.chunks(m, u, grad):
            s = _AdditiveScores.pairs(a, b)  # B,N,L,D
            grad_w += g.flatten() @ s.flatten(0, 2)
            s = torch.addcmul(s, s, s, value=-1).mul_(g[..., None])
            grad_m.append(s.sum(2))
            grad_u.append(s.sum(1))
        return torch.cat(grad_m) * (2 * w), torch.cat(grad_u) * (2 * w), grad_w


def additive_weights(m: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """softmax over j of w·tanh(m_i + u_j): m B,N,D; u B,L,D; w D -> B,N,L.

    tanh x = 2σ(2x) − 1, the constant drops out of the softmax, and σ is the faster of the two."""
    with torch.autocast(m.device.type, enabled=False):
        return (2 * _AdditiveScores.apply(m, u.to(m.dtype), w.to(m.dtype))).softmax(-1)


class _Pass(torch.autograd.Function):
    """x through a weight that learns elsewhere, given for the way there and, transposed, for the way back."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor, bias: Tensor | None) -> Tensor:
        ctx.back = back
        return product(x, there, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        return product(grad, ctx.back), None, None, None


class _Scan(torch.autograd.Function):
    """A loop over time that leaves the gradients of its maps for last.

    Backpropagation would form and add up the gradient of every weight matrix once a step. Here each step is a small
    graph of its own; going back through it yields the gradient at each map's output, and inputs and gradients of
    many steps meet in one product."""

    ROWS = 2048  # rows of a map gathered for one product

    @staticmethod
    def forward(ctx, step, n_inputs: int, n_shared: int, state: Tensor, *tensors: Tensor) -> Tensor:
        inputs, shared = tensors[:n_inputs], tensors[n_inputs : n_inputs + n_shared]
        maps = [x if x is None else x.detach() for x in tensors[n_inputs + n_shared :]]
        ways = [(pack(state, w), pack(state, w.T), b) for w, b in zip(maps[::2], maps[1::2], strict=True)]
        ctx.tape, ctx.shared = [], [x.detach().requires_grad_() for x in shared]
        ctx.maps = maps
        with torch.enable_grad():
            for now in zip(*inputs, strict=True):
                uses: list[tuple] = []

                def apply(n: int, x: Tensor, uses=uses) -> Tensor:
                    y = _Pass.apply(x, *ways[n])
                    uses.append((n, x.detach(), get_gradient_edge(y)))
                    return y

                leaves = [state.detach().requires_grad_(), *(x.detach().requires_grad_() for x in now)]
                state = step(apply, ctx.shared, *leaves)
                ctx.tape.append((leaves, uses, state))
        return state.detach()

    @staticmethod
    def backward(ctx, grad: Tensor):
        if not ctx.tape:
            raise RuntimeError("the focus loop's graph was already used by an earlier backward pass")
        grad_maps = [x if x is None else torch.zeros_like(x) for x in ctx.maps]
        grad_shared = [torch.zeros_like(x) for x in ctx.shared]
        grad_inputs: list[list[Tensor]] = []
        waiting: dict[int, list[tuple[Tensor, Tensor]]] = {}

        def settle(n: int) -> None:
            xs, gs = (torch.cat([x.flatten(0, -2) for x in parts]) for parts in zip(*waiting.pop(n), strict=True))
            grad_maps[2 * n].addmm_(gs.T, xs)
            if grad_maps[2 * n + 1] is not None:
                grad_maps[2 * n + 1] += gs.sum(0)

        while ctx.tape:
            leaves, uses, end = ctx.tape.pop()
            wanted = [*leaves, *ctx.shared, *(edge for _, _, edge in uses)]
            grads = torch.autograd.grad(end, wanted, grad)
            grad, now, rest = grads[0], grads[1 : len(leaves)], grads[len(leaves) :]
            grad_inputs.append(now)
            for total, part in zip(grad_shared, rest, strict=False):
                total += part
            for (n, x, _), g in zip(uses, rest[len(grad_shared) :], strict=True):
                waiting.setdefault(n, []).append((x, g))
                if len(waiting[n]) * x.numel() >= _Scan.ROWS * x.shape[-1]:
                    settle(n)
        for n in list(waiting):
            settle(n)
        inputs = [torch.stack(x[::-1]) for x in zip(*grad_inputs, strict=True)]
        return None, None, None, grad, *inputs, *grad_shared, *grad_maps


Apply = Callable[[int, Tensor], Tensor]


def run_step(step: Callable[..., Tensor], flat: Sequence[Tensor | None], *rest) -> Tensor:
    """One step without gradients; `flat` holds the weight and bias of each map in turn."""
    return step(lambda n, x: product(x, flat[2 * n], flat[2 * n + 1]), *rest)


def scan(
    step: Callable[..., Tensor],
    state: Tensor,
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    maps: Sequence[Map],
    every: bool = False,
    take: Callable[..., Tensor] = run_step,
) -> Tensor:
    """state = step(apply, shared, state, *(x[t] for x in inputs)) for t = 0 … T-1; the last, or with `every` all of
    them stacked (no gradients then).

    `apply(n, x)` is x (…,in) through map n. `inputs` are T,…; `shared` are tensors that every step uses whole. Under
    autocast all are brought to its type once, not at each step. `take` is run_step, or that compiled."""
    device, flat = state.device.type, [x for pair in maps for x in pair]
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        state, flat = state.to(dtype), [x if x is None else x.to(dtype) for x in flat]
        inputs, shared = [x.to(dtype) for x in inputs], [x.to(dtype) for x in shared]
    with torch.autocast(device, enabled=False):
        if torch.is_grad_enabled() and not every:
            return _Scan.apply(step, len(inputs), len(shared), state, *inputs, *shared, *flat)
        if take is run_step:
            flat = [x if x is None or x.dim() == 1 else pack(state, x) for x in flat]
        states = []
        for now in zip(*inputs, strict=True):
            state = take(step, flat, shared, state, *now)
            if every:
                states.append(state)
        return torch.stack(states) if every else state


class Attention(nn.Module):
    """The four maps of an attention, each D→D. Keys have no bias: it would move all scores of a softmax alike."""

    def __init__(self, width: int):
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        # As PyTorch starts the packed input projection of its own attention: 3·width outputs in one matrix.
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -((1.5 / width) ** 0.5), (1.5 / width) ** 0.5)
        for layer in (self.query, self.value, self.out):
            nn.init.zeros_(layer.bias)


class OneHeadAttention(Attention):
    """Attention with a single head: queries meet keys, and values meet `out`, with no head between them. So query·key
    and out·value are two matrices, which only the memory has to pass. Forming them costs as much as D rows do."""

    def __init__(self, width: int):
        super().__init__(width)
        self.products = Memo()

    def multiply(self, layer: nn.Linear | None) -> tuple[Tensor, Tensor, Tensor]:
        """From the memory, or from what `layer` makes it of: keys and values, and a term of the scores."""
        meet = self.query.weight.T @ self.key.weight
        give, bias = compose(as_map(self.value), (self.out.weight, None))
        weight, bias, offset = torch.cat([meet, give]), F.pad(bias, (len(bias), 0)), self.query.bias @ self.key.weight
        if layer is not None:  # its bias moves all scores of a softmax alike
            (weight, bias), offset = compose(as_map(layer), (weight, bias)), offset @ layer.weight
        return weight, bias, offset

    def forward(
        self, x: Tensor, memory: Tensor, dropout: float = 0.0, made: tuple[Tensor, nn.Linear] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x B,N,D attends to memory B,M,D -> B,N,D and the weights B,N,M (before dropout). If the memory was `made`
        from a narrower sequence B,M,d by a layer, keys and values are made directly from that."""
        source, layer = made if made and made[0].shape[-1] < memory.shape[-1] else (memory, None)
        width, parameters = x.shape[-1], [*self.parameters(), *(layer.parameters() if layer else ())]
        scale = width**-0.5
        if x.numel() < width * width and not self.products.holds(parameters):
            weights = (self.query(x) @ self.key(memory).mT * scale).softmax(-1)
            return self.out(drop(weights, dropout) @ self.value(memory)), weights
        weight, bias, offset = self.products(lambda: self.multiply(layer), parameters)
        key, values = linear(source, weight, bias).chunk(2, -1)
        scores = torch.baddbmm((source @ offset)[:, None], x, key.mT, beta=scale, alpha=scale)
        weights = scores.softmax(-1)
        return torch.baddbmm(self.out.bias, drop(weights, dropout), values), weights


class FeedForward(nn.Module):
    """x -> LN(x + W2 relu(W1 x)), D→D→D."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer, self.norm = Linear(width, width), Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        hidden = drop(F.relu(self.inner(x), inplace=True), dropout)
        return self.norm(add_dropped(x, self.outer(hidden), dropout))
