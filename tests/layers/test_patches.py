import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxformer.errors import InputError
from jaxformer.layers.patches import (
    check_images,
    interpolate,
    normalise,
    patchify,
    sinusoidal_2d,
    unpatchify,
)
from jaxformer.layers.residual import ResidualBranch


def test_patches_are_squares_row_by_row_and_put_together_again():
    images = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    patches = np.asarray(patchify(images, 2))
    assert patches.shape == (2, 6, 2, 2, 3)
    np.testing.assert_array_equal(patches[1, 4], images[1, 2:4, 2:4])
    np.testing.assert_array_equal(unpatchify(patches, 3), images)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (2, 2), (3, 9)])
def test_positions_are_interpolated_as_pytorch_does(rows, columns):
    table = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    square = torch.from_numpy(table).reshape(1, 3, 3, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, (rows, columns), mode="bicubic", align_corners=False)
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(interpolate(jnp.asarray(table), rows, columns), expected, atol=1e-5)


def test_a_grid_of_its_own_size_is_not_interpolated():
    table = jnp.arange(12.0).reshape(4, 3)
    assert interpolate(table, 2, 2) is table


def test_sinusoids_encode_columns_in_the_first_half_and_rows_in_the_second():
    grid = np.asarray(sinusoidal_2d(2, 3, 8)).reshape(2, 3, 8)
    np.testing.assert_array_equal(grid[0, :, :4], grid[1, :, :4])
    np.testing.assert_array_equal(grid[:, 0, 4:], grid[:, 2, 4:])
    np.testing.assert_allclose(grid[0, 2, :4], [np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)], atol=1e-6)
    assert len(np.unique(grid.reshape(6, 8), axis=0)) == 6
    with pytest.raises(ValueError, match="width 6 is not divisible by 4"):
        sinusoidal_2d(2, 2, 6)


def test_pixels_are_normalised_and_floats_are_taken_as_they_are():
    image = np.array([[[0, 255], [51, 102]]], np.uint8)
    np.testing.assert_allclose(normalise(image, (0.5, 0.2), (0.5, 0.4)), [[[-1, 2], [-0.6, 0.5]]], atol=1e-6)
    floats = np.full((1, 1, 2), 7.0)
    np.testing.assert_array_equal(normalise(floats, (0.5,), (0.5,)), floats)


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ((30, 30, 3), "data.task.image.size=30 is not a multiple of model.patch=16; 32 would be"),
        ((32, 32, 1), "data.task.image.channels=1 differs from model.channels=3"),
    ],
)
def test_images_that_a_model_cannot_read(shape, line):
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        check_images(shape, 16, 3)


def test_a_path_is_dropped_for_a_whole_example_more_often_the_deeper_and_never_in_evaluation():
    module, y = ResidualBranch(drop_path=0.5), jnp.ones((2000, 2, 3))

    def kept(depth, train=True):
        return np.asarray(module.apply({}, y, depth, train, rngs={"dropout": jax.random.key(0)}))

    np.testing.assert_array_equal(kept(1.0, train=False), y)
    np.testing.assert_array_equal(kept(0.0), y)
    for depth, rate in ((0.5, 0.25), (1.0, 0.5)):
        rows = kept(depth)
        assert (rows == rows[:, :1, :1]).all()
        assert abs((rows[:, 0, 0] == 0).mean() - rate) < 0.04
        assert abs(rows.mean() - 1) < 0.08  # What stays makes up for it.


def test_layer_scale_is_a_factor_for_each_dimension():
    module, y = ResidualBranch(layer_scale=0.1), jnp.ones((1, 2, 3))
    variables = module.init(jax.random.key(0), y)
    np.testing.assert_allclose(module.apply(variables, y), 0.1 * np.ones((1, 2, 3)))
    scaled = module.apply({"params": {"scale": jnp.arange(3.0)}}, y)
    np.testing.assert_array_equal(scaled[0, 0], [0, 1, 2])
    with pytest.raises(InputError, match=re.escape("residual.drop_path=1.0: expected 0 or more, below 1")):
        ResidualBranch(drop_path=1.0)
