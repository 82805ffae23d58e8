"""Rearranged arrays, and arrays that are made ahead of their use."""

import itertools

import numpy as np
import pytest

from jaxformer.interop.formats.stored import ahead
from jaxformer.interop.huggingface.parameters import STRIP, copy_into

SHAPE = (3, STRIP + 5, 2 * STRIP)


@pytest.mark.parametrize("ours", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("theirs", list(itertools.permutations(range(3))))
def test_a_copy_is_the_same_whatever_the_order_of_axes_in_memory(ours, theirs):
    def laid_out(order):
        return np.empty([SHAPE[axis] for axis in order], np.float32).transpose(np.argsort(order))

    target, source = laid_out(ours), laid_out(theirs)
    source[...] = np.arange(source.size).reshape(SHAPE)
    copy_into(target, source)
    np.testing.assert_array_equal(target, source)


def test_what_is_made_ahead_comes_in_order_and_none_is_left_out():
    assert list(ahead(iter(range(1, 20)))) == list(range(1, 20))


def test_an_error_comes_where_it_would_have_come():
    def items():
        yield 1
        raise ValueError("no more")

    made = ahead(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="no more"):
        next(made)
