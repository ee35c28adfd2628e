"""Layers that several models share, against PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.models import fast
from pipeline.models.fast.attention import MultiHeadAttention


def both(width, heads):
    ours = MultiHeadAttention(width, heads).double()
    theirs = nn.MultiheadAttention(width, heads, batch_first=True).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_attention_equals_pytorchs(batch, queries, rows, heads, seed):
    """Outputs, weights and gradients, with few queries and with many; with one head also with frozen weights."""
    torch.manual_seed(seed)
    ours, theirs = both(8, heads)
    x = torch.randn(batch, queries, 8, dtype=torch.float64, requires_grad=True)
    memory = torch.randn(batch, rows, 8, dtype=torch.float64, requires_grad=True)
    expected, weights = theirs(x, memory, memory)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * direction).sum(), [x, memory, *theirs.parameters()])
    for fast_on in (True, False):
        with fast.switched(fast_on):
            made = ours(x, memory)
            torch.testing.assert_close(made, expected)
            torch.testing.assert_close(ours.weights(x, memory), weights)
            own = torch.autograd.grad((made * direction).sum(), [x, memory, *ours.parameters()])
        for a, b in zip(own, gradients, strict=True):
            torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(ours.requires_grad_(False)(x, memory), expected)


@pytest.mark.parametrize("heads", [1, 2])
def test_copies_of_rows_count_as_often(heads):
    torch.manual_seed(0)
    ours, _ = both(8, heads)
    x, memory, copies = torch.randn(2, 20, 8).double(), torch.randn(2, 5, 8).double(), torch.tensor([1, 3, 2, 1, 4])
    written_out = memory.repeat_interleave(copies, 1)
    torch.testing.assert_close(ours(x, memory, copies=copies.double().expand(2, -1)), ours(x, written_out))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_masked_attention_equals_pytorchs(queries, rows, heads, seed):
    """Each form by itself, and the one that the lengths choose. A masked row of the memory changes nothing."""
    torch.manual_seed(seed)
    ours, theirs = both(8, heads)
    x, memory = torch.randn(2, queries, 8).double(), torch.randn(2, rows, 8).double().requires_grad_()
    mask = torch.arange(rows) < torch.tensor([[1], [rows]])
    expected, _ = theirs(x, memory, memory, key_padding_mask=~mask)
    direction = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, memory, direction)
    made = [ours(x, memory, mask), ours.with_few_keys(x, memory, mask)]
    made.append(ours.out_proj(ours.mix_memory(ours.weights_by_head(x, memory, mask), memory)))
    with fast.switched(False):
        made.append(ours(x, memory, mask))
    for values in made:
        torch.testing.assert_close(values, expected)
        torch.testing.assert_close(torch.autograd.grad(values, memory, direction)[0], gradient)


@pytest.mark.parametrize(("queries", "rows", "few"), [(1, 30, "queries"), (30, 30, None), (30, 2, "keys")])
def test_dropout_of_attention_keeps_the_mean(queries, rows, few):
    """Dropped weights scale the values, their bias among them; the mean over many draws is the output without."""
    torch.manual_seed(0)
    ours, _ = both(8, 2)
    ours.dropout = 0.5
    x, memory = torch.randn(1, queries, 8).double(), torch.randn(1, rows, 8).double()
    assert ours.has_few_queries(x, memory) == (few == "queries") and ours.has_few_keys(x, memory) == (few == "keys")
    with torch.no_grad():
        drawn = ours(x.expand(2000, -1, -1), memory.expand(2000, -1, -1))
        assert drawn.std(0).min() > 0.01
        deviations = (drawn.mean(0) - ours.eval()(x, memory)[0]) / (drawn.std(0) / 2000**0.5)
        assert deviations.abs().max() < 5
        assert (ours.train().weights(x, memory) == 0).any()
