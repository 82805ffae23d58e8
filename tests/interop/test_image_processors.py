"""Images prepared as transformers' image processors prepare them, pixel by pixel, and fields that are refused.

transformers has two implementations of each processor; these tests compare with the one by Pillow, which it chooses
where torchvision is not installed.
"""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image

from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.images import ImageTask
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.images import (
    DETECTION_PROCESSORS,
    PROCESSORS,
    RESAMPLING,
    read_preparation,
    with_pixels,
    write_preprocessor,
)
from jaxformer.layers.patches import normalise
from jaxformer.layers.transformer import Transformer
from jaxformer.models.vit import Vit

VIT = Vit(Transformer(8, 1, 2), image=24, patch=4)
SIZES = ((31, 17), (17, 31), (40, 40), (24, 24), (300, 25), (5, 90))
"""Widths and heights of pictures."""
SQUARE, SHORTEST, CROP = {"height": 24, "width": 24}, {"shortest_edge": 30}, {"height": 24, "width": 24}
VIT_FIELDS = {"image_processor_type": "ViTImageProcessor", "size": SQUARE}
BIT_FIELDS = {"image_processor_type": "BitImageProcessor", "size": SHORTEST, "crop_size": CROP}
DEIT_FIELDS = {"image_processor_type": "DeiTImageProcessor", "size": {"height": 29, "width": 29}, "crop_size": 24}
FILES = {
    "vit": VIT_FIELDS,
    "an old vit": {"feature_extractor_type": "ViTFeatureExtractor", "size": 24, "resample": 2},
    "a vit of an old generation": {"size": 24, "do_resize": True, "image_mean": [0.4, 0.5, 0.6]},
    "a fast processor": {**VIT_FIELDS, "image_processor_type": "ViTImageProcessorFast", "default_to_square": True},
    "deit": DEIT_FIELDS,
    "an odd crop": {**DEIT_FIELDS, "size": 33, "crop_size": [24, 24]},
    "bit": BIT_FIELDS,
    "bit by numbers": {**BIT_FIELDS, "size": 27, "crop_size": 24},
    "clip": {**BIT_FIELDS, "image_processor_type": "CLIPImageProcessor"},
    "vit by its shorter side": {**VIT_FIELDS, "size": SHORTEST, "do_center_crop": True, "crop_size": CROP},
    "nulls": {**VIT_FIELDS, "do_center_crop": None, "do_rescale": None, "do_convert_rgb": None, "do_pad": False},
    "nothing but sizes": {**VIT_FIELDS, "do_normalize": None},
    "no rescaling": {**VIT_FIELDS, "do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0, 50.0, 40.0]},
    "another factor": {**BIT_FIELDS, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3},
    "no normalising": {**VIT_FIELDS, "do_normalize": False},
    "neither": {**VIT_FIELDS, "do_normalize": False, "do_rescale": False},
    **{f"filter {number}": {**BIT_FIELDS, "resample": number} for number in RESAMPLING},
}


def write(folder, fields, name="preprocessor_config.json", **config):
    (folder / name).write_text(json.dumps(fields))
    (folder / "config.json").write_text(json.dumps({"model_type": "vit", **config}))


def pictures(least=1):
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        noise = rng.integers(0, 256, (height, width, 3), np.uint8)
        if min(width, height) >= least:
            # Smooth and noisy parts: filters differ in both.
            yield Image.fromarray(noise).resize((width, height), box=(0, 0, width / 2, height))


def ours(folder, picture):
    """Pixels [height, width, channels] as the model gets them."""
    task = ImageTask(ImageField(**read_preparation(folder, VIT).field))
    model = with_pixels(VIT, folder)
    return np.asarray(normalise(jnp.asarray(task.prepare_requests([picture])[0].pixels), model.mean, model.std))


def theirs(folder, picture):
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert type(processor).__name__.endswith(("Pil", "VivitImageProcessor"))  # ViViT has one implementation.
    pixels = np.asarray(processor(picture)["pixel_values"][0])
    return np.moveaxis(pixels[0] if pixels.ndim == 4 else pixels, 0, -1)  # The only frame of a clip.


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_transformers(name, tmp_path):
    write(tmp_path, FILES[name])
    for picture in pictures():
        expected = theirs(tmp_path, picture)
        scale = max(1, np.abs(expected).max())
        np.testing.assert_allclose(ours(tmp_path, picture) / scale, expected / scale, atol=1e-6)


def test_without_resizing_the_middle_is_seen(tmp_path):
    write(tmp_path, {**BIT_FIELDS, "do_resize": False})
    for picture in pictures(least=24):
        np.testing.assert_allclose(ours(tmp_path, picture), theirs(tmp_path, picture), atol=1e-5)
    small = next(pictures())
    with pytest.raises(InputError, match=r"^image 1: 31 × 17 pixels: expected 24 × 24 or more with fit=none$"):
        ours(tmp_path, small)
    write(tmp_path, {**VIT_FIELDS, "do_resize": False})
    exact = small.resize((24, 24))
    np.testing.assert_allclose(ours(tmp_path, exact), theirs(tmp_path, exact), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in PROCESSORS if kind not in DETECTION_PROCESSORS])
def test_a_file_that_says_only_its_class_means_the_class_of_transformers(kind, tmp_path):
    write(tmp_path, {"image_processor_type": kind})
    large = Vit(VIT.transformer, image=512 if "Segformer" in kind else 224, patch=16)
    picture = next(pictures())
    task = ImageTask(ImageField(**read_preparation(tmp_path, large).field))
    model = with_pixels(large, tmp_path)
    found = normalise(jnp.asarray(task.prepare_requests([picture])[0].pixels), model.mean, model.std)
    np.testing.assert_allclose(found, theirs(tmp_path, picture), atol=1e-5)


def test_a_processors_config_has_the_same_fields_inside(tmp_path):
    write(tmp_path, {"image_processor": DEIT_FIELDS, "processor_class": "x"}, "processor_config.json")
    write(tmp_path, VIT_FIELDS)  # The other file counts before this one.
    for picture in pictures():
        np.testing.assert_allclose(ours(tmp_path, picture), theirs(tmp_path, picture), atol=1e-5)
    write(tmp_path, {"processor_class": "x"}, "processor_config.json")
    assert read_preparation(tmp_path, VIT).fit == "stretch" and read_preparation(tmp_path, VIT).edge == 24


@pytest.mark.parametrize(
    "task",
    [
        ImageField(24),
        ImageField(24, crop=24 / 27, resample="bilinear"),
        ImageField(24, fit="stretch", resample="lanczos"),
        ImageField(24, fit="stretch", crop=24 / 31),
    ],
)
def test_what_a_task_does_is_written_for_transformers_and_read_again(task, tmp_path):
    write(tmp_path, {})
    model = Vit(VIT.transformer, image=24, patch=4, mean=(0.4, 0.5, 0.6), std=(0.2,))
    write_preprocessor(tmp_path, model, task)
    assert ImageField(**read_preparation(tmp_path, model).field) == task
    for picture in pictures():
        mine = normalise(jnp.asarray(task.prepare([picture])[0].pixels), model.mean, model.std)
        np.testing.assert_allclose(mine, theirs(tmp_path, picture), atol=1e-5)


def test_dinov2_takes_images_of_another_size_than_its_positions(tmp_path):
    write(tmp_path, {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}, model_type="dinov2")
    preparation = read_preparation(tmp_path, VIT)
    assert (preparation.size, preparation.edge, preparation.fit) == (16, 20, "crop")
    assert preparation.mean[0] == 0.48145466  # BitImageProcessor's, as the file names no class.


REFUSED = [
    ({"image_processor_type": "ConvNextImageProcessor"}, "image_processor_type='ConvNextImageProcessor' is not suppo"),
    ({"size": {"longest_edge": 24}}, "size={'longest_edge': 24} is not supported; expected a number, or a dict with"),
    ({"size": {"height": 24, "width": 20}}, "size={'height': 24, 'width': 20} is not supported"),
    ({"size": "24"}, "size='24' is not supported"),
    ({"size": {"shortest_edge": 24}}, "do_center_crop=False is not supported; expected true, because size="),
    ({"size": 20, "crop_size": 24, "do_center_crop": True}, "crop_size=24 is not supported; expected at most 20"),
    ({"size": 32}, "makes images of 32 × 32; the model's image_size is 24"),
    ({"resample": 7}, "resample=7 is not supported; expected one of 0 (nearest), 1 (lanczos), 2 (bilinear)"),
    ({"do_pad": True}, "do_pad=True is not supported; expected False"),
    ({"crop_pct": 0.9}, "unsupported fields for this model family: crop_pct=0.9"),
    ({"do_rescale": "yes"}, "do_rescale='yes' is not supported; expected true or false"),
    ({"rescale_factor": 0}, "rescale_factor=0.0 is not supported; expected a number above 0"),
    ({"image_std": [0.0, 1.0, 1.0]}, "image_std=[0.0, 1.0, 1.0] is not supported; expected numbers above 0"),
    ({"image_mean": ["a"]}, "image_mean=['a'] is not supported; expected numbers"),
]


@pytest.mark.parametrize(("fields", "line"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(fields, line, tmp_path):
    write(tmp_path, VIT_FIELDS | fields)
    with pytest.raises(InputError, match=re.escape(line)) as caught:
        read_preparation(tmp_path, VIT)
    assert str(caught.value).startswith(str(tmp_path / "preprocessor_config.json")) and "\n" not in str(caught.value)


def test_a_model_of_grey_images_refuses_a_conversion_to_colours(tmp_path):
    write(tmp_path, {**VIT_FIELDS, "do_convert_rgb": True})
    grey = Vit(VIT.transformer, image=24, patch=4, channels=1)
    with pytest.raises(InputError, match="do_convert_rgb=True is not supported; expected false, as the model takes 1"):
        read_preparation(tmp_path, grey)


def test_a_task_of_another_size_than_the_model_is_not_exported(tmp_path):
    write(tmp_path, {})
    with pytest.raises(
        InputError, match=r"data.task.image.size=32 differs from model.image=24: vit in transformers accepts"
    ):
        write_preprocessor(tmp_path, VIT, ImageField(32))
