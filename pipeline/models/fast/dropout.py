"""Dropout on the CPU with one random number per four elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models import fast


class _AddDropped(torch.autograd.Function):
    """residual + dropout(x) on the CPU. One draw of 64 random bits serves four elements and is kept, not the mask:
    drawing then takes a sixth of the time of PyTorch's dropout, which is a tenth of a training step."""

    @staticmethod
    def forward(ctx, residual: Tensor | None, x: Tensor, rate: float) -> Tensor:
        dropped = round(rate * 65536)
        bits = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        ctx.threshold, ctx.scale = 32768 - dropped, 65536 / (65536 - dropped)
        ctx.save_for_backward(bits)
        mask = _AddDropped.mask(ctx, x, bits)
        return mask.mul_(x).mul_(ctx.scale) if residual is None else torch.addcmul(residual, x, mask, value=ctx.scale)

    @staticmethod
    def mask(ctx, x: Tensor, bits: Tensor) -> Tensor:
        return torch.lt(bits[: x.numel()].view(x.shape), ctx.threshold, out=torch.empty_like(x))

    @staticmethod
    def backward(ctx, grad: Tensor):
        mask = _AddDropped.mask(ctx, grad.contiguous(), *ctx.saved_tensors)
        return grad if ctx.needs_input_grad[0] else None, mask.mul_(grad).mul_(ctx.scale), None


def drop(x: Tensor, rate: float) -> Tensor:
    """Equals F.dropout (other random numbers); `rate` 0 is none."""
    if not rate:
        return x
    if fast.enabled and x.device.type == "cpu":
        return _AddDropped.apply(None, x.contiguous(), rate)
    return F.dropout(x, rate)


def add_dropped(residual: Tensor, x: Tensor, rate: float) -> Tensor:
    """Equals residual + F.dropout(x) (other random numbers), shapes equal unless `rate` is 0."""
    if not rate:
        return residual + x
    if fast.enabled and x.device.type == "cpu":
        return _AddDropped.apply(residual, x.contiguous(), rate)
    return residual + F.dropout(x, rate)
