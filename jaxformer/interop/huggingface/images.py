"""Reads and writes the image preprocessing settings of a model: preprocessor_config.json of a Hugging Face folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxformer.data.fields.image import ImageField
from jaxformer.data.transforms.image import Fit, Resample
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.folders import CONFIG, read_json, write_json
from jaxformer.models.base import Model

PREPROCESSOR = "preprocessor_config.json"
NESTED = "processor_config.json"
"""File of newer Hugging Face folders. Its field `image_processor` contains the settings that are otherwise in
preprocessor_config.json.
"""
RESAMPLING: Mapping[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Maps numbers of Pillow's resampling filters to the filter names."""
CLIP_PIXELS = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET_PIXELS = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
SQUARE = {"resample": 2, "size": {"height": 224, "width": 224}, "image_mean": (0.5,), "image_std": (0.5,)}
CROPPED = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3}
PADDED = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "resample": 2, "do_pad": True, **IMAGENET_PIXELS}
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": SQUARE,
    "DeiTImageProcessor": {**SQUARE, **CROPPED, "size": {"height": 256, "width": 256}},
    "BitImageProcessor": {**CROPPED, "size": {"shortest_edge": 224}, **CLIP_PIXELS},
    "CLIPImageProcessor": {**CROPPED, "size": {"shortest_edge": 224}, **CLIP_PIXELS},
    "SiglipImageProcessor": {**SQUARE, "resample": 3},
    "SegformerImageProcessor": {**SQUARE, "size": {"height": 512, "width": 512}, **IMAGENET_PIXELS},
    "VideoMAEImageProcessor": {**SQUARE, **CROPPED, "size": {"shortest_edge": 224}, "resample": 2},
    "VivitImageProcessor": {
        **{**SQUARE, **CROPPED, "size": {"shortest_edge": 256}, "resample": 2},
        **{"rescale_factor": 1 / 127.5, "offset": True},
    },
    "DetrImageProcessor": PADDED,
    "YolosImageProcessor": PADDED,
}
"""Maps the supported image processor classes of the transformers library to the defaults of their fields."""
BY_MODEL = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "segformer": "SegformerImageProcessor",
    "videomae": "VideoMAEImageProcessor",
    "vivit": "VivitImageProcessor",
    "detr": "DetrImageProcessor",
    "yolos": "YolosImageProcessor",
}
"""Maps model types to their default image processor class."""
BY_SHORTER_SIDE = ("BitImageProcessor", "CLIPImageProcessor", "VideoMAEImageProcessor", "VivitImageProcessor")
"""Image processor classes for which a single number in the config field `size` is the length of the shorter side. For
other classes, it is both height and width.
"""
STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
"""Names of preprocessor_config.json fields that switch preprocessing steps on or off. The value null means off."""
CLIP_PROCESSORS = {name: BY_MODEL[name] for name in ("videomae", "vivit")}
"""Maps the model types of video models to the image processor class that exports write to preprocessor_config.json."""
DETECTION_PROCESSORS = ("DetrImageProcessor", "YolosImageProcessor")
"""Image processor classes of object detection, which keep the aspect ratio and pad images."""
IGNORED_DETECTION_FIELDS = ("format", "do_convert_annotations", "max_size", "pad_and_return_pixel_mask")
"""Names of config fields of object detection image processors that are ignored: they do not change the pixels of images
without annotations, or are old fields that others have replaced.
"""
ANY_SIZE = ("dinov2", "dinov2_with_registers", "detr", "yolos")
"""Model types that accept images of any size. Models of other types accept only the image size in their config."""
IGNORED = (
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "_valid_processor_keys",
    "data_format",
    "do_reduce_labels",
)
"""Names of preprocessor_config.json fields that do not change the pixels. `data_format` affects only the layout of the
arrays that the transformers library returns.
"""
UNUSED = ("do_pad", "do_thumbnail", "do_flip_channel_order", "do_align_long_axis", "device")
"""Names of preprocessor_config.json fields that must be false or missing, because their features are not supported."""


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Image preprocessing settings of a folder."""

    size: int
    """Height and width of the model input in pixels."""
    edge: int
    """Length in pixels to which the sides selected by `fit` are resized. Afterwards, the centre of `size` × `size`
    pixels is cropped, unless the image is padded.

    """
    fit: Fit
    """How images are fitted to a square: `stretch` resizes both sides to `edge` pixels, `crop` resizes the shorter
    side, `none` does not resize, and `pad` keeps the aspect ratio and pads with black pixels.
    """
    resample: Resample
    """Interpolation filter for resizing."""
    mean: tuple[float, ...]
    """Mean that is subtracted from pixels in [0, 1], per channel or for all channels."""
    std: tuple[float, ...]
    """Standard deviation by which pixels are divided after the mean is subtracted, per channel or for all channels."""
    shortest: int | None = None
    """Only used if `fit` is `pad`: length in pixels to which the shorter side is resized, unless the longer side would
    exceed `size`.
    """

    @property
    def field(self) -> dict[str, Any]:
        """Arguments for an `ImageField` with these settings."""
        shortest = {} if self.shortest is None else {"shortest": self.shortest}
        crop = self.size / self.edge
        return {"size": self.size, "crop": crop, "fit": self.fit, "resample": self.resample, **shortest}


def with_pixels(model: Model, folder: Path) -> Model:
    """Returns the model with its pixel mean and standard deviation set to those of a folder's image processor. Models
    without images are unchanged.

    Raises:
      InputError: If `read_preparation` raises it, or the mean and standard deviation do not fit the model.
    """
    name = model.pixel_input
    if name is None:
        return model
    preparation = read_preparation(folder, model)
    if preparation is None:
        return model
    try:
        return model.map_part(name, lambda part: dataclasses.replace(part, mean=preparation.mean, std=preparation.std))
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def read_preparation(folder: Path, model: Any) -> Preparation | None:
    """Reads the image preprocessing settings of a Hugging Face folder. Returns None if the folder has no image
    processor.

    The arrays that images are converted to with these settings equal those of the image processors in the transformers
    library that use Pillow and NumPy. The processors that use torchvision may differ slightly.

    Raises:
      InputError: If a field is not supported.
    """
    path, said = _read(folder)
    if said is None:
        return None
    _, model = model.part(model.pixel_input)
    reader = ConfigReader(said, str(path))
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = _class_of(reader, config.get("model_type"))
    defaults = PROCESSORS[kind]
    given = {name: False if value is None and name in STEPS else value for name, value in said.items()}
    reader = ConfigReader(
        {**defaults, **{name: value for name, value in given.items() if value is not None}}, str(path)
    )
    for name in (*IGNORED, *UNUSED):
        reader.get(name)
    for name in UNUSED:
        if name != "do_pad" or kind not in DETECTION_PROCESSORS:
            reader.must(name, False)
    reader.must("input_data_format", None, "channels_last")
    if reader.flag("do_convert_rgb", model.channels == 3) and model.channels != 3:
        raise reader.error("do_convert_rgb", True, f"false, as the model takes {model.channels} channel")
    shortest = None
    for name in IGNORED_DETECTION_FIELDS if kind in DETECTION_PROCESSORS else ():
        reader.get(name)
    if kind in DETECTION_PROCESSORS and set(reader.get("size")) == {"shortest_edge", "longest_edge"}:
        size, shortest = _padded_sizes(reader, model)
        edge, fit = size, "pad"
    else:
        size, edge, fit = _sizes(reader, model, kind)
    if size != model.image and config.get("model_type") not in ANY_SIZE:
        raise InputError(f"{path}: makes images of {size} × {size}; the model's image_size is {model.image}")
    if size % model.patch:
        raise InputError(f"{path}: makes images of {size} × {size}, which are not whole patches of {model.patch}")
    resample = reader.get("resample")
    if resample not in RESAMPLING or isinstance(resample, bool):
        raise reader.error("resample", resample, f"one of {', '.join(f'{n} ({s})' for n, s in RESAMPLING.items())}")
    mean, std = _pixels(reader)
    reader.finish()
    return Preparation(size, edge, fit, RESAMPLING[resample], mean, std, shortest)


def _read(folder: Path) -> tuple[Path, dict[str, Any] | None]:
    """Reads the image processor settings of a folder from the same file as the transformers library. Returns the path
    of the file, and a dict of its fields, or None if there is no such file.
    """
    nested = folder / NESTED
    if nested.is_file() and isinstance(said := read_json(nested).get("image_processor"), dict):
        return nested, said
    path = folder / PREPROCESSOR
    return path, read_json(path) if path.is_file() else None


def _class_of(reader: ConfigReader, model_type: str | None) -> str:
    """Returns the name of the image processor class that the settings name, or else the default class of the model
    type.
    """
    field = "image_processor_type" if "image_processor_type" in reader else "feature_extractor_type"
    named = reader.get(field)
    if named is None:
        named = BY_MODEL.get(model_type or "", "ViTImageProcessor")
    kind = str(named).replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in PROCESSORS:
        raise reader.error(field, named, f"one of {', '.join(PROCESSORS)}")
    return kind


def _sizes(reader: ConfigReader, model: Any, kind: str) -> tuple[int, int, Fit]:
    """Returns the size of the model input in pixels, the length in pixels to which sides are resized, and how images
    are fitted to a square (see `Preparation.fit`).

    Args:
      reader: Image preprocessing settings.
      model: Imported model.
      kind: Name of the image processor class.
    """
    resized, cropped = reader.flag("do_resize", True), reader.flag("do_center_crop", False)
    square = reader.flag("default_to_square", kind not in BY_SHORTER_SIDE)
    fit, edge = _length(reader, "size", square)
    reader.get("crop_size")
    size = _length(reader, "crop_size", True)[1] if cropped else edge
    if not resized:
        fit, edge = "none", size if cropped else model.image
        size = edge
    elif not cropped and fit == "crop":
        raise reader.error("do_center_crop", False, f"true, because size={reader.get('size')} does not produce squares")
    elif size > edge:
        raise reader.error(
            "crop_size", reader.get("crop_size"), f"at most {edge}, the value of size={reader.get('size')}"
        )
    return size, edge, fit


def _padded_sizes(reader: ConfigReader, model: Any) -> tuple[int, int]:
    """Returns the size of the padded model input, and the length of the shorter side of an image before padding, both
    in pixels.

    If `pad_size` is not set, the transformers library pads the images of a batch only to the size of the largest one.
    This function returns the largest possible size, so that all batches have the same shape.
    """
    reader.must("do_resize", True)
    reader.must("do_pad", True)
    reader.must("do_center_crop", False)
    lengths = reader.get("size")
    shortest, longest = lengths["shortest_edge"], lengths["longest_edge"]
    padded = reader.get("pad_size") or {"height": longest, "width": longest}
    if padded["height"] != padded["width"] or padded["height"] < longest:
        raise reader.error("pad_size", padded, f"equal height and width of at least {longest}")
    size = -(-padded["height"] // model.patch) * model.patch
    return size, min(shortest, size)


def _length(reader: ConfigReader, name: str, square: bool) -> tuple[Fit, int]:
    """Parses the field `name`, which contains an image size. Returns a pair: "stretch" if the size applies to both
    sides or "crop" if it applies to the shorter side, and the length in pixels.

    A single number is the length of both sides if `square`, and otherwise the length of the shorter side.
    """
    value = reader.get(name)
    if type(value) is int:
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    if isinstance(value, list) and len(value) == 2:
        value = dict(zip(("height", "width"), value, strict=True))
    lengths = list(value.values()) if isinstance(value, dict) else []
    if all(type(length) is int and length > 0 for length in lengths):
        if isinstance(value, dict) and set(value) == {"shortest_edge"} and name == "size":
            return "crop", lengths[0]
        if isinstance(value, dict) and set(value) == {"height", "width"} and lengths[0] == lengths[1]:
            return "stretch", lengths[0]
    shortest = ", or with shortest_edge only" if name == "size" else ""
    raise reader.error(name, reader.get(name), f"a number, or a dict with equal height and width{shortest}")


def _pixels(reader: ConfigReader) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation for normalising pixels in [0, 1]. They include the rescale factor of the
    settings if it differs from 1 / 255.
    """
    factor = reader.number("rescale_factor", 1 / 255)
    if not reader.flag("do_rescale", True):
        factor = 1.0
    elif factor <= 0:
        raise reader.error("rescale_factor", factor, "a number above 0")
    mean, std = _numbers(reader, "image_mean"), _numbers(reader, "image_std")
    if not reader.flag("do_normalize", True):
        mean, std = (0.0,), (1.0,)
    if reader.flag("offset", False):  # Only ViViT's processor has it: 1 is subtracted after rescaling.
        if not reader.flag("do_rescale", True):
            raise reader.error("offset", True, "false with do_rescale=false")
        mean = tuple(value + 1 for value in mean)
    if not all(value > 0 for value in std):
        raise reader.error("image_std", reader.get("image_std"), "numbers above 0")
    scale = 1.0 if factor == 1 / 255 else 255 * factor
    return tuple(value / scale for value in mean), tuple(value / scale for value in std)


def _numbers(reader: ConfigReader, name: str) -> tuple[float, ...]:
    value = reader.get(name)
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise reader.error(name, value, "numbers")
    return tuple(map(float, numbers))


def write_preprocessor(folder: Path, model: Any, image: ImageField | None = None) -> None:
    """Writes the image preprocessing settings to a Hugging Face folder, without augmentation. `image` is the data field
    with the settings. If it is None, images are resized and cropped (for object detection, padded) to the image size of
    the model.

    Raises:
      InputError: If the class of the transformers library accepts only another image size, or does not pad images as
        `image` does.
    """
    _, model = model.part(model.pixel_input)
    model_type: str = read_json(folder / CONFIG).get("model_type") or ""
    fit = "pad" if BY_MODEL.get(model_type) in DETECTION_PROCESSORS else "crop"
    image = image or ImageField(model.image, model.channels, fit=fit)
    if image.size != model.image and model_type not in ANY_SIZE:
        problem = f"data.task.image.size={image.size} differs from model.image={model.image}"
        raise InputError(
            f"{problem}: {model_type} in transformers accepts only images of {model.image} × {model.image}"
        )
    if BY_MODEL.get(model_type) in DETECTION_PROCESSORS:
        write_json(folder / PREPROCESSOR, _detection_processor(BY_MODEL[model_type], image) | _normalization(model))
        return
    if image.fit == "pad":
        raise InputError(f"data.task.image.fit=pad: {model_type} in transformers does not pad images; expected another")
    crops = image.fit != "stretch" or image.edge != image.size
    value = {
        "image_processor_type": CLIP_PROCESSORS.get(model_type) or _processor_for(image, crops),
        **({"offset": False} if model_type == "vivit" else {}),
        "do_convert_rgb": model.channels == 3,
        "do_resize": image.fit != "none",
        "size": {"height": image.edge, "width": image.edge}
        if image.fit == "stretch"
        else {"shortest_edge": image.edge},
        "resample": {name: number for number, name in RESAMPLING.items()}[image.resample],
        "do_center_crop": crops,
        **({"crop_size": {"height": image.size, "width": image.size}} if crops else {}),
        **_normalization(model),
    }
    write_json(folder / PREPROCESSOR, value)


def _normalization(model: Any) -> dict[str, Any]:
    """Returns the image processor fields that rescale pixels to [0, 1], and normalise them with the mean and standard
    deviation of the model.
    """
    return {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.mean) * (model.channels if len(model.mean) == 1 else 1),
        "image_std": list(model.std) * (model.channels if len(model.std) == 1 else 1),
    }


def _detection_processor(kind: str, image: ImageField) -> dict[str, Any]:
    """Returns the image processor fields of an object detection model, except those of `_normalization`. `kind` is the
    name of the image processor class.
    """
    square = {"height": image.size, "width": image.size}
    padded = image.fit == "pad"
    limits = {"shortest_edge": image.shortest or image.size, "longest_edge": image.size}
    return {
        "image_processor_type": kind,
        "format": "coco_detection",
        "do_resize": True,
        "size": limits if padded else square,
        "resample": {name: number for number, name in RESAMPLING.items()}[image.resample],
        "do_pad": padded,
        **({"pad_size": square} if padded else {}),
    }


def _processor_for(image: ImageField, crops: bool) -> str:
    if image.fit == "stretch":
        return "DeiTImageProcessor" if crops else "ViTImageProcessor"
    return "BitImageProcessor"
