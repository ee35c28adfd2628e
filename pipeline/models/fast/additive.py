"""Additive attention without keeping its pairs of tokens in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.models import fast


class _AdditiveScores(torch.autograd.Function):
    """s_ij = Σ_d w_d σ(2(m_id + u_jd)), a few samples at a time: all pairs are too many to keep, a few fit a cache.

    With p = σ(2(m + u)) and γ_ij = ∂ℓ/∂s_ij: ∂ℓ/∂w_d = Σ_ij γ_ij p_ijd, ∂ℓ/∂m_id = 2 w_d Σ_j γ_ij p_ijd (1 − p_ijd),
    and ∂ℓ/∂u_jd the same summed over i. The pairs p are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, m: Tensor, u: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(m, u, w)
        return torch.cat([_AdditiveScores.pairs(a, b) @ w for a, b in _AdditiveScores.chunks(m, u)])

    @staticmethod
    def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(x.split(1 if x.device.type == "cpu" else len(x)) for x in tensors), strict=True)

    @staticmethod
    def pairs(m: Tensor, u: Tensor) -> Tensor:
        return ((2 * m)[:, :, None] + (2 * u)[:, None]).sigmoid_()

    @staticmethod
    def backward(ctx, grad: Tensor):
        m, u, w = ctx.saved_tensors
        grad_m, grad_u, grad_w = [], [], torch.zeros_like(w)
        for a, b, g in _AdditiveScores.chunks(m, u, grad):
            p = _AdditiveScores.pairs(a, b)  # B,N,L,D
            grad_w += g.flatten() @ p.flatten(0, 2)
            p = torch.addcmul(p, p, p, value=-1).mul_(g[..., None])
            grad_m.append(p.sum(2))
            grad_u.append(p.sum(1))
        return torch.cat(grad_m) * (2 * w), torch.cat(grad_u) * (2 * w), grad_w


def additive_weights(m: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """softmax over j of w·tanh(m_i + u_j): m B,N,D; u B,L,D; w D -> B,N,L.

    tanh x = 2σ(2x) − 1, the constant drops out of the softmax, and σ is the faster of the two."""
    with torch.autocast(m.device.type, enabled=False):
        u, w = u.to(m.dtype), w.to(m.dtype)
        if not fast.enabled:
            return (torch.tanh(m[:, :, None] + u[:, None]) @ w).softmax(-1)
        return (2 * _AdditiveScores.apply(m, u, w)).softmax(-1)
