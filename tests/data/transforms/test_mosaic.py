"""Mosaics: four images and their masks meet in a point."""

import numpy as np
import pytest

from jaxformer.data.transforms.mosaic import CENTER, combined, moved_boxes, quarters

SIZE = 20


@pytest.mark.parametrize("seed", range(5))
def test_images_meet_in_a_point_and_keep_the_corners_at_it(seed):
    images = [np.full((SIZE, SIZE), number, np.uint8) for number in range(1, 5)]
    for image, corner in zip(images, ((-1, -1), (-1, 0), (0, -1), (0, 0)), strict=True):
        image[corner] = 9
    places = quarters([(SIZE, SIZE)] * 4, SIZE, np.random.default_rng(seed))
    found = combined(images, places)
    x, y = places[3].left, places[3].upper
    assert CENTER[0] * SIZE <= min(x, y) and max(x, y) <= CENTER[1] * SIZE
    assert (found[y - 1 : y + 1, x - 1 : x + 1] == 9).all()
    assert [found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]] == [1, 2, 3, 4]
    assert np.bincount(found.ravel())[1:5].sum() == SIZE**2 - 4


def test_pixels_that_no_image_covers_are_filled():
    places = quarters([(4, 4)] * 4, SIZE, np.random.default_rng(0))
    found = combined([np.ones((SIZE, SIZE), np.uint8)] * 4, places, fill=255)
    assert (found == 1).sum() == 64 and (found == 255).sum() == SIZE**2 - 64


def test_boxes_are_clipped_and_left_out_if_little_of_them_is_visible():
    place = quarters([(SIZE, SIZE)] * 4, SIZE, np.random.default_rng(0))[0]
    boxes = np.array([(0, 0, SIZE, SIZE), (SIZE - 4, SIZE - 4, SIZE, SIZE), (0, 0, 2, 2)])
    moved, visible = moved_boxes(boxes, place)
    assert visible.tolist()[1:] == [True, False]
    np.testing.assert_array_equal(moved[0], (0, 0, place.right, place.lower))
    np.testing.assert_array_equal(moved[1], (place.right - 4, place.lower - 4, place.right, place.lower))
