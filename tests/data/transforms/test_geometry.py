"""Points, boxes and masks follow what Pillow does to an image."""

import numpy as np
import pytest
from PIL import Image

from jaxformer.data.fields.image import ImageField
from jaxformer.data.transforms import geometry
from jaxformer.data.transforms.geometry import boxes_after, mask_after, points_after
from jaxformer.data.transforms.image import OPERATIONS, Augmentation, operation_geometry, pixels

POINTS = np.array([(30, 24), (70, 30), (44, 60), (66, 66)])
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def drawn(point, radius=3, width=96, height=88):
    """A black picture with a white square around a point."""
    array = np.zeros((height, width), np.uint8)
    array[point[1] - radius : point[1] + radius, point[0] - radius : point[0] + radius] = 255
    return Image.fromarray(array)


def centre(image):
    """The centre of the light in an image, (x, y)."""
    weights = np.asarray(image, np.float64).reshape(image.shape[:2])
    y, x = np.indices(weights.shape) + 0.5
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


@pytest.mark.parametrize("level", [-0.9, 0.4])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_points_follow_each_operation(name, level):
    for point in POINTS:
        changed = pixels(OPERATIONS[name](drawn(point), level))
        if changed.sum() < 0.9 * 36 * 255:
            continue  # Moved out of the picture, at least in part.
        expected = points_after(point[None], operation_geometry(name, level, 96, 88))[0]
        np.testing.assert_allclose(centre(changed), expected, atol=0.6)


def test_other_operations_move_nothing():
    for name in set(OPERATIONS) - set(GEOMETRIC):
        np.testing.assert_array_equal(points_after(POINTS, operation_geometry(name, 0.9, 96, 88)), POINTS)


@pytest.mark.parametrize("seed", range(8))
def test_points_follow_an_augmentation(seed):
    augmentation = Augmentation(scale=(0.5, 0.9), operations=2, among=GEOMETRIC, magnitude=4.0)
    seen = 0
    for point in POINTS:
        image, moved = augmentation(drawn(point), 80, "bilinear", np.random.default_rng(seed))
        expected = points_after(point[None], moved)[0]
        if (expected > 8).all() and (expected < 72).all() and image.any():
            np.testing.assert_allclose(centre(image), expected, atol=1.0)
            seen += 1
    assert seen


@pytest.mark.parametrize("fit, crop", [("crop", 0.8), ("stretch", 1.0), ("none", 1.0)])
@pytest.mark.parametrize("width, height", [(96, 88), (88, 120)])
def test_points_follow_an_image_that_is_not_augmented(fit, crop, width, height):
    field = ImageField(64, 1, fit=fit, crop=crop)
    point = np.array([width // 2 + 5, height // 2 - 4])
    image, moved = field.view(drawn(point, 3, width, height), np.random.default_rng(0))
    assert (moved.width, moved.height) == image.shape[:2] == (64, 64)
    np.testing.assert_allclose(centre(image), points_after(point[None], moved)[0], atol=0.3)


def test_transforms_follow_each_other():
    crop = geometry.resized_box((10, 20, 50, 40), 80, 80)
    both = crop.then(geometry.flip(80, 80))
    assert points_after([[10, 20], [50, 40], [30, 30]], both).tolist() == [[80, 0], [0, 80], [40, 40]]


def test_boxes_are_clipped_and_marked_when_outside():
    boxes = [[0, 0, 20, 30], [30, 22, 45, 60], [60, 0, 80, 10]]
    found, inside = boxes_after(boxes, geometry.resized_box((10, 20, 50, 40), 80, 20))
    assert inside.tolist() == [True, True, False]
    assert found[:2].tolist() == [[0, 0, 20, 10], [40, 2, 70, 20]]


def test_a_box_of_a_rotated_image_contains_the_rotated_object():
    picture = np.zeros((60, 60), np.uint8)
    picture[20:30, 15:45] = 255
    rotated = np.asarray(Image.fromarray(picture).rotate(30, Image.Resampling.NEAREST))
    (box,), _ = boxes_after([[15, 20, 45, 30]], geometry.rotation(30, 60, 60))
    rows, columns = np.nonzero(rotated)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    np.testing.assert_allclose(box, edges, atol=1.5)


def test_a_mask_follows_as_pillow_transforms_it():
    mask = np.random.default_rng(0).integers(1, 9, (40, 50), np.uint8)
    picture = Image.fromarray(mask)
    np.testing.assert_array_equal(mask_after(mask, geometry.flip(50, 40)), mask[:, ::-1])
    rotated = picture.rotate(20, Image.Resampling.NEAREST)
    assert np.mean(mask_after(mask, geometry.rotation(20, 50, 40)) == np.asarray(rotated)) > 0.99
    sheared = picture.transform((50, 40), Image.Transform.AFFINE, (1, 0.21, 0, 0, 1, 0), Image.Resampling.NEAREST)
    found = mask_after(mask, geometry.affine((1, 0.21, 0, 0, 1, 0), 50, 40))
    assert np.mean(found == np.asarray(sheared)) > 0.99
    halved = picture.resize((25, 20), Image.Resampling.NEAREST)
    assert mask_after(mask, geometry.resized_box((0, 0, 50, 40), 25, 20)).shape == np.asarray(halved).shape
    cut = mask_after(mask.astype(np.int64), geometry.resized_box((-5, 0, 45, 40), 50, 40), fill=-1)
    assert cut.dtype == np.int64 and (cut[:, :5] == -1).all() and np.array_equal(cut[:, 5:], mask[:, :45])
