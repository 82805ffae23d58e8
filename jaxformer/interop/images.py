"""How images are prepared for a model: the preprocessor_config.json of a Hugging Face folder."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn

from jaxformer.errors import InputError
from jaxformer.interop.folders import read_json, write_json
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit

PREPROCESSOR = "preprocessor_config.json"
IMAGE_MODELS = (Vit, MaskedAutoencoder)
RESAMPLING = {"bilinear": 2, "bicubic": 3}
"""Pillow's numbers."""


def with_pixels(model: nn.Module, folder: Path) -> nn.Module:
    """The model with the mean and deviation of pixels that a folder says; other models as they are.

    Raises:
      InputError: they are not numbers above 0, or not as many as the model has channels.
    """
    path = folder / PREPROCESSOR
    if not isinstance(model, IMAGE_MODELS) or not path.is_file():
        return model
    said = read_json(path)
    if not said.get("do_normalize", True):
        said |= {"image_mean": [0.0], "image_std": [1.0]}
    fields = {}
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        value = said.get(theirs)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int | float) for number in numbers):
            raise InputError(f"{path}: {theirs}={value!r}: expected numbers")
        fields[ours] = tuple(map(float, numbers))
    try:
        return dataclasses.replace(model, **fields)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_preparation(folder: Path) -> dict[str, Any]:
    """Fields of an image task that prepare images as a folder says: `crop`, `fit` and `resample`."""
    path = folder / PREPROCESSOR
    said = read_json(path) if path.is_file() else {}
    size, cut = said.get("size"), said.get("crop_size")
    numbers = {number: name for name, number in RESAMPLING.items()}
    fields: dict[str, Any] = {"resample": numbers.get(said.get("resample"), "bicubic"), "fit": "crop", "crop": 1.0}
    if isinstance(size, dict) and "shortest_edge" in size:
        if said.get("do_center_crop") and isinstance(cut, dict):
            fields["crop"] = min(1.0, cut["height"] / size["shortest_edge"])
    elif size is not None:
        fields["fit"] = "stretch"
    return fields


def write_preprocessor(folder: Path, model: nn.Module, crop: float = 1.0, fit: str = "crop", resample: str = "bicubic"):
    """Writes how images are prepared: `crop`, `fit` and `resample` as an image task has them."""
    sizes: dict[str, Any] = {"do_center_crop": False, "size": {"height": model.image, "width": model.image}}
    if fit == "crop":
        sizes = {
            "do_center_crop": True,
            "size": {"shortest_edge": round(model.image / crop)},
            "crop_size": {"height": model.image, "width": model.image},
        }
    value = {
        "image_processor_type": "BitImageProcessor" if fit == "crop" else "ViTImageProcessor",
        "do_convert_rgb": model.channels == 3,
        "do_resize": True,
        "resample": RESAMPLING[resample],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.mean) * (model.channels if len(model.mean) == 1 else 1),
        "image_std": list(model.std) * (model.channels if len(model.std) == 1 else 1),
    }
    write_json(folder / PREPROCESSOR, value | sizes)
