"""The keys that each mask lets a query see, and its parts, which equal those of the whole mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.layers.masks import Mask

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0], [3, 3, 4, 4, 4, 4]])
# Prefixes begin their segment, the whole row or a document.
IN_PREFIX = {
    "prefix": np.array([[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]], bool),
    "prefix in segments": np.array([[1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 0]], bool),
}
MASKS = {
    "all": Mask(),
    "segments": Mask.of_segments(SEGMENTS, SEGMENTS),
    "causal": Mask.causal(6),
    "causal in segments": Mask.causal(6, SEGMENTS),
    "prefix": Mask.prefix(IN_PREFIX["prefix"]),
    "prefix in segments": Mask.prefix(IN_PREFIX["prefix in segments"], SEGMENTS),
}
each_mask = pytest.mark.parametrize("name", MASKS)


def sees(name, row, query, key):
    """The law in words, for one query and one key of a row."""
    seen = True
    if "segments" in name:
        seen = SEGMENTS[row, query] == SEGMENTS[row, key]
    if "causal" in name:
        seen = seen and key <= query
    if "prefix" in name:
        seen = seen and (key <= query or bool(IN_PREFIX[name][row, key]))
    return seen


def whole(mask, rows=2, queries=6, keys=6):
    dense = mask.dense()
    return np.broadcast_to(True if dense is None else dense, (rows, 1, queries, keys))


@each_mask
def test_a_query_sees_what_the_law_says(name):
    expected = [[[sees(name, row, query, key) for key in range(6)] for query in range(6)] for row in range(2)]
    np.testing.assert_array_equal(whole(MASKS[name])[:, 0], np.array(expected))


def test_padding_and_documents_see_themselves_only():
    expected = [[1, 1, 1, 0, 0, 0]] * 3 + [[0, 0, 0, 1, 1, 0]] * 2 + [[0, 0, 0, 0, 0, 1]]
    np.testing.assert_array_equal(whole(MASKS["segments"])[0, 0], np.array(expected, bool))


def test_a_prefix_sees_itself_both_ways_and_nothing_after_it():
    expected = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(whole(MASKS["prefix in segments"])[0, 0, :3], np.array(expected, bool))


def test_a_memory_is_seen_by_its_own_segment():
    mask = Mask.of_segments(np.array([[1, 2, 0]]), np.array([[2, 1, 1, 0]]))
    expected = [[0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(mask.dense()[0, 0], np.array(expected, bool))


def test_without_segments_and_orders_there_is_no_matrix():
    assert Mask().dense() is None


@each_mask
@pytest.mark.parametrize("queries", [slice(0, 6), slice(0, 2), slice(1, 4), slice(5, 6)], ids=str)
def test_a_part_is_a_part_of_the_whole(name, queries):
    for keys in (slice(0, 6), slice(0, queries.stop), slice(2, 5)):
        part = MASKS[name].part(queries, keys)
        shape = queries.stop - queries.start, keys.stop - keys.start
        np.testing.assert_array_equal(whole(part, 2, *shape), whole(MASKS[name])[:, :, queries, keys])


@each_mask
def test_the_mask_at_some_positions_has_their_rows(name):
    at = np.array([[0, 5, 2, 2], [4, 1, 3, 0]])
    expected = np.take_along_axis(whole(MASKS[name]), at[:, None, :, None], axis=2)
    np.testing.assert_array_equal(whole(MASKS[name].at(at), 2, 4), expected)


@each_mask
def test_who_promises_that_no_query_sees_a_later_key_keeps_it(name):
    mask = MASKS[name]
    assert mask.in_order == ("causal" in name)
    later = np.triu(np.ones((6, 6), bool), 1)
    if mask.in_order:
        assert not whole(mask)[..., later].any()
    # Rows of chosen positions, or from the middle, are in no order any more.
    assert not mask.at(np.zeros((2, 3), int)).in_order
    assert not mask.part(slice(2, 4), slice(0, 6)).in_order


def test_a_mask_passes_through_jit_as_arrays_with_its_promise():
    mask = jax.jit(lambda segments: Mask.causal(6, segments))(jnp.asarray(SEGMENTS))
    assert mask.in_order
    np.testing.assert_array_equal(mask.dense(), MASKS["causal in segments"].dense())
