"""Source of images and segmentation masks in the panoptic format of COCO (Kirillov et al. 2019)."""

import dataclasses
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxformer import storage
from jaxformer.data.messages import Problems
from jaxformer.data.sources.detection import coco_content
from jaxformer.data.sources.sources import Source
from jaxformer.errors import InputError, shown

UNLABELLED = 255
"""Value of pixels that belong to no segment."""


@dataclasses.dataclass(frozen=True)
class CocoPanoptic(Source):
    """Images and the category of each pixel, in the panoptic format of COCO: a folder of images, a folder of PNG files
    whose colors are the numbers of segments, and a JSON file with the category of each segment.

    Examples have the columns `image`, which is a path, and `mask`, uint8 [height, width]: the index of the category of
    each pixel in `labels`, and 255 for pixels of no segment. Images without an annotation are left out.
    """

    images: str = "train2017"
    """Path of the folder that contains the images."""
    annotations: str = "annotations/panoptic_train2017.json"
    """Path of the JSON file that contains the annotations."""
    masks: str = "annotations/panoptic_train2017"
    """Path of the folder that contains the PNG files."""

    def open(self) -> Sequence[dict[str, Any]]:
        folder, path, masks = map(os.path.expanduser, (self.images, self.annotations, self.masks))
        content, problems = coco_content(path), Problems()
        categories = {category["id"]: index for index, category in enumerate(_sorted(content))}
        if len(categories) > UNLABELLED:
            raise InputError(f"{path}: {len(categories)} categories; expected at most {UNLABELLED}")
        names = {image["id"]: image["file_name"] for image in content["images"]}
        found = []
        for annotation in content["annotations"]:
            if problem := _wrong(annotation, names, categories):
                problems.add(f"{path}: {problem}")
                continue
            segments = {part["id"]: categories[part["category_id"]] for part in annotation["segments_info"]}
            image = f"{folder.rstrip('/')}/{names[annotation['image_id']]}"
            found.append((image, f"{masks.rstrip('/')}/{annotation['file_name']}", segments))
        problems.check()
        if not found:
            raise InputError(f"{path}: no annotations; expected at least one")
        return _Segmented(sorted(found, key=lambda one: one[0]))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the category ids."""
        return tuple(category["name"] for category in _sorted(coco_content(os.path.expanduser(self.annotations))))


class _Segmented(Sequence):
    """Sequence of examples {"image": path, "mask": array}. A mask is decoded when its example is read."""

    def __init__(self, found: list[tuple[str, str, dict[int, int]]]):
        """Stores, for each example, the paths of its image and of its PNG file, and the index of the category of each
        segment.
        """
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, path, segments = self.found[int(index)]
        return {"image": image, "mask": _decoded(path, segments)}

    def identity(self, index: int) -> dict[str, Any]:
        """Returns example `index` with the content of its image file instead of the path. Fingerprints of the data are
        computed from it, so that they do not change when the folders are moved.
        """
        example = self[index]
        return {"image": storage.read_bytes(example["image"]), "mask": example["mask"]}

    def place(self, index: int) -> str:
        """Returns the path of the image file of example `index`, for error messages."""
        return self.found[int(index)][0]


def _sorted(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(content["categories"], key=lambda category: category["id"])


def _wrong(annotation: Any, images: Mapping[Any, str], categories: Mapping[Any, int]) -> str | None:
    """Returns a description of what is wrong with an annotation, or None if it is valid. The keys of `images` and
    `categories` are the known ids.
    """
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    if not isinstance(number, int | str) or number not in images:
        return f"an annotation of image {number!r}: the file has no such image"
    where = f"the annotation of image {number!r}"
    if not isinstance(annotation.get("file_name"), str) or not isinstance(annotation.get("segments_info"), list):
        return f"{where}: expected file_name and segments_info; is this a file of boxes?"
    for segment in annotation["segments_info"]:
        if not isinstance(segment, dict) or type(segment.get("id")) is not int:
            return f"{where}: {shown(segment)}: expected a segment with an integer id"
        category = segment.get("category_id")
        if not isinstance(category, int | str) or category not in categories:
            return f"{where}: segment {segment['id']}: category_id={category!r}: the file has no such category"
    return None


def _decoded(path: str, segments: Mapping[int, int]) -> np.ndarray:
    """Decodes a PNG file to a mask of labels, uint8 [height, width].

    Args:
      path: path of the file. The number of the segment of a pixel is red + 256 · green + 256² · blue, and 0 for none.
      segments: label of each segment.

    Raises:
      InputError: If the file cannot be decoded, or has a segment that is not in `segments`.
    """
    try:
        with Image.open(io.BytesIO(storage.read_bytes(path))) as picture:
            if picture.mode != "RGB":
                raise InputError(f"{path}: a mask of mode {picture.mode}; expected RGB, with a color per segment")
            colors = np.asarray(picture).astype(np.int64)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    numbers, places = np.unique(colors @ np.array([1, 256, 256**2]), return_inverse=True)
    if unknown := [number for number in numbers.tolist() if number and number not in segments]:
        raise InputError(f"{path}: pixels of segment {unknown[0]}, which its annotation does not list")
    labels = np.array([segments.get(number, UNLABELLED) for number in numbers.tolist()], np.uint8)
    return labels[places.reshape(colors.shape[:2])]
