"""Linear layers: oneDNN products, packed weights, and results kept while weights are frozen.

An affine map is the (weight, bias) of a linear layer, weight out×in: x -> x · weightᵀ + bias.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.models import fast

AffineMap = tuple[Tensor, Tensor | None]

# PyTorch for CPUs includes oneDNN, but uses MKL for float32 products unless a program is compiled. MKL has its best
# kernels for Intel's processors; on AMD's, oneDNN is 1.1 to 1.6 times as fast. Its operator has no documented name.
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN_FROM = 2**16  # elements of a weight; with fewer, oneDNN's call costs more than its product saves


def by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN computes the product of the two."""
    return (
        fast.enabled
        and HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.numel() >= ONEDNN_FROM
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · weightᵀ + bias, without gradients where oneDNN computes it. `weight` may be packed."""
    if by_onednn(x, weight):
        # The result is a view of two dimensions, to which nothing could be added in place once it has gradients.
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "").detach()
    return F.linear(x, weight, bias)


def pack(x: Tensor, weight: Tensor) -> Tensor:
    """`weight` in the layout for many calls of `product` with tensors like x: worth it where x has few rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight) if by_onednn(x, weight) else weight


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b by oneDNN. With δ = ∂ℓ/∂y: ∂ℓ/∂x = δ W, ∂ℓ/∂W = δᵀ x, ∂ℓ/∂b = Σ_rows δ."""

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
    """Equals F.linear: x · weightᵀ + bias by the faster library."""
    if torch.is_grad_enabled() and by_onednn(x, weight):
        return _Linear.apply(x, weight, bias)
    return product(x, weight, bias)


def affine_map(layer: nn.Linear) -> AffineMap:
    return layer.weight, layer.bias


def chain_affine(first: AffineMap, *then: AffineMap) -> AffineMap:
    """The one affine map that equals `first` followed by the others in turn."""
    for weight, bias in then:
        carried = bias if first[1] is None else F.linear(first[1], weight, bias)
        first = weight @ first[0], carried
    return first


class Memo:
    """Keeps what was last computed from frozen parameters (requires_grad False) until one of them changes.

    Results of parameters that can be trained are computed anew each time: not every optimizer increases a tensor's
    version when it steps."""

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self.key, self.value, self.sources = None, None, []

    def applies(self, parameters: Sequence[Tensor]) -> bool:
        """Whether all of these are frozen, so that a result of theirs may be kept. If not, forgets what was kept."""
        if torch.compiler.is_compiling() or any(p.requires_grad for p in parameters):
            self.forget()
            return False
        return True

    def __call__(self, make: Callable[[], Any], parameters: Sequence[Tensor]) -> Any:
        """make(), or its last result if the parameters are the same as then."""
        if not self.applies(parameters):
            return make()
        device = parameters[0].device.type
        mixed = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = (mixed, *((p.data_ptr(), p._version, p.dtype) for p in parameters))
        if key != self.key:
            self.key, self.value = key, make()
            self.sources = [p.detach() for p in parameters]  # while they exist, no other tensor has their addresses
        return self.value


class Linear(nn.Linear):
    """Equals nn.Linear: by the faster library; a frozen layer keeps its weight packed."""

    def __init__(self, *sizes: int, bias: bool = True):
        super().__init__(*sizes, bias=bias)
        self.packed = Memo()

    def forward(self, x: Tensor) -> Tensor:
        if not fast.enabled:
            return F.linear(x, self.weight, self.bias)
        if not self.packed.applies([self.weight]) or torch.is_grad_enabled():
            return linear(x, self.weight, self.bias)
        return product(x, self.packed(lambda: pack(x, self.weight), [self.weight]), self.bias)
