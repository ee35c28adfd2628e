"""The bitwise test of finiteness against numpy's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.storage.finite import BLOCK, all_finite


@given(
    st.sampled_from(["float16", "float32", "float64", "uint8"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0, max_side=4))
    )
)
def test_as_numpy(values):
    assert all_finite(values) == np.isfinite(values).all()


def test_past_a_block():
    values = np.zeros(3 * BLOCK + 5, "float16")
    for n in (0, BLOCK - 1, BLOCK, 3 * BLOCK, len(values) - 1):
        values[n] = np.inf
        assert not all_finite(values)
        values[n] = 0
    assert all_finite(values)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_every_kind_in_every_place(dtype, bad):
    values = np.full((3, 4), np.finfo(dtype).max, dtype)
    assert all_finite(values) and all_finite(-values) and all_finite(values.T)
    for n in range(12):
        wrong = values.copy()
        wrong.flat[n] = bad
        assert not all_finite(wrong) and not all_finite(wrong.T)
