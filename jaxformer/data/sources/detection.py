"""Sources of images with object boxes: COCO JSON files and Pascal VOC folders."""

import dataclasses
import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer import storage
from jaxformer.data.messages import Problems
from jaxformer.data.sources import files
from jaxformer.data.sources.sources import Source
from jaxformer.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class CocoDetection(Source):
    """Images and object boxes in the format of COCO (Lin et al. 2014): a folder of images, and a JSON file of
    annotations.

    Examples have the columns `image`, `width`, `height` and `objects`, which contains the lists `bbox` (left, upper,
    right and lower edge in pixels), `label`, `is_crowd` and `area`. Images without objects are included.
    """

    images: str = "train2017"
    """Path of the folder that contains the images."""
    annotations: str = "annotations/instances_train2017.json"
    """Path of the JSON file that contains the annotations."""

    def open(self) -> Sequence[dict[str, Any]]:
        folder, path = (os.path.expanduser(part) for part in (self.images, self.annotations))
        content = coco_content(path)
        problems = Problems()
        names = {category["id"]: category["name"] for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        objects: dict[Any, list[Mapping]] = {number: [] for number in images}
        for annotation in content["annotations"]:
            if problem := _wrong(annotation, images, names):
                problems.add(f"{path}: annotation {annotation.get('id', '?')}: {problem}")
            else:
                objects[annotation["image_id"]].append(annotation)
        problems.check()
        if not images:
            raise InputError(f"{path}: no images; expected at least one")
        order = sorted(images)
        return Annotated(path, [_coco_example(folder, images[number], objects[number], names) for number in order])

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names, in the order of the category ids."""
        content = coco_content(os.path.expanduser(self.annotations))
        return tuple(category["name"] for category in sorted(content["categories"], key=lambda one: one["id"]))


@dataclasses.dataclass(frozen=True)
class VocDetection(Source):
    """Images and object boxes in the format of Pascal VOC (Everingham et al. 2010): the folders `JPEGImages` and
    `Annotations`, with one XML file per image.

    Examples have the columns `image`, `width`, `height` and `objects`, which contains the lists `bbox` (left, upper,
    right and lower edge in pixels) and `label`. Images without objects are included.
    """

    path: str = "VOC2012"
    """Path of the folder that contains `JPEGImages` and `Annotations`."""
    split: str | None = None
    """Name of a file in `ImageSets/Main` that lists the images to read, such as `train`. If None, all images that have
    an XML file are read.
    """
    difficult: bool = False
    """Whether to include objects that are marked as difficult in the XML files."""

    def open(self) -> Sequence[dict[str, Any]]:
        home = os.path.expanduser(self.path).rstrip("/")
        names = self._names(home)
        problems, examples = Problems(), []
        for name in names:
            try:
                examples.append(_voc_example(home, name, self.difficult))
            except InputError as error:
                problems.add(str(error))
        problems.check()
        return Annotated(f"{home}/Annotations", examples)

    def _names(self, home: str) -> list[str]:
        if self.split is not None:
            listed = files.decoded(f"{home}/ImageSets/Main/{self.split}.txt").split("\n")
            names = [line.split()[0] for line in listed if line.strip()]
        else:
            names = [os.path.basename(path)[:-4] for path in storage.matching(f"{home}/Annotations/*.xml")]
        if not names:
            raise InputError(f"{home}: no images; expected XML files in Annotations, such as Annotations/1.xml")
        return sorted(names)


class Annotated(Sequence):
    """Sequence of examples of an object detection data set: each is a dict with the path of an image, and the boxes and
    labels of its objects.
    """

    scan = True

    def __init__(self, where: str, examples: list[dict[str, Any]]):
        """Stores the examples. `where` is the file or folder that contains the boxes of the examples, for messages."""
        self.where, self.examples = where, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.examples[int(index)]

    def place(self, index: int) -> str:
        """Returns the location of example `index` for error messages: the file or folder that contains the boxes, and
        the path of the image.
        """
        return f"{self.where}: image {self.examples[int(index)]['image']}"

    def identity(self, index: int) -> dict[str, Any]:
        """Returns example `index` with the content of its image file instead of the path. Fingerprints of the data are
        computed from it, so that they do not change when the folder is moved.
        """
        example = self.examples[int(index)]
        try:
            return {**example, "image": storage.read_bytes(example["image"])}
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{reason}; expected the image that the boxes belong to") from error


def coco_content(path: str) -> dict[str, Any]:
    """Reads a COCO JSON file, and returns its parsed content. Raises InputError if it lacks `images`, `annotations`,
    `categories` or a required key.
    """
    try:
        content = json.loads(files.decoded(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error.msg} at character {error.pos})") from error
    needed = {"images": ("id", "file_name", "width", "height"), "annotations": (), "categories": ("id", "name")}
    for name, keys in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InputError(f"{path}: has no list {name!r}; expected a COCO file with {', '.join(needed)}")
        for number, entry in enumerate(content[name]):
            if missing := [key for key in keys if not isinstance(entry, dict) or key not in entry]:
                raise InputError(f"{path}: {name}[{number}] has no {missing[0]!r}; expected {', '.join(keys)}")
    return content


def _wrong(annotation: Mapping[str, Any], images: Mapping, names: Mapping) -> str | None:
    """Returns a description of what is wrong with an annotation of a COCO file, or None if it is valid. `images` and
    `names` are dicts whose keys are the known image ids and category ids.
    """
    if annotation.get("image_id") not in images:
        return f"image_id={annotation.get('image_id')!r}: the file has no such image"
    if annotation.get("category_id") not in names:
        return f"category_id={annotation.get('category_id')!r}: the file has no such category"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(type(value) in (int, float) for value in box):
        return f"bbox={shown(box)}: expected left and upper edge, width and height"
    return None


def _coco_example(folder: str, image: Mapping, annotations: Sequence[Mapping], names: Mapping) -> dict[str, Any]:
    boxes = [annotation["bbox"] for annotation in annotations]
    objects = {
        "bbox": [[left, upper, left + width, upper + height] for left, upper, width, height in boxes],
        "label": [names[annotation["category_id"]] for annotation in annotations],
        "is_crowd": [bool(annotation.get("iscrowd", 0)) for annotation in annotations],
        "area": [annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3]) for annotation in annotations],
    }
    path = f"{folder.rstrip('/')}/{image['file_name']}"
    return {"image": path, "width": image["width"], "height": image["height"], "objects": objects}


def _voc_example(home: str, name: str, difficult: bool) -> dict[str, Any]:
    path = f"{home}/Annotations/{name}.xml"
    try:
        root = ElementTree.fromstring(files.decoded(path))
    except ElementTree.ParseError as error:
        raise InputError(f"{path}: not valid XML ({error})") from error
    boxes, labels = [], []
    for number, one in enumerate(root.iter("object"), 1):
        if not difficult and one.findtext("difficult", "0").strip() == "1":
            continue
        where = f"{path}: object {number}"
        corner = [_number(one, f"bndbox/{edge}", where) for edge in ("xmin", "ymin", "xmax", "ymax")]
        # Pixels are counted from 1, and the last one belongs to the box.
        boxes.append([corner[0] - 1, corner[1] - 1, corner[2], corner[3]])
        labels.append(_text(one, "name", where))
    sizes = [int(_number(root, f"size/{side}", path)) for side in ("width", "height")]
    image = f"{home}/JPEGImages/{root.findtext('filename', '').strip() or name + '.jpg'}"
    return {"image": image, "width": sizes[0], "height": sizes[1], "objects": {"bbox": boxes, "label": labels}}


def _text(element: ElementTree.Element, tag: str, where: str) -> str:
    found = (element.findtext(tag) or "").strip()
    if not found:
        raise InputError(f"{where}: has no <{tag.replace('/', '><')}>; expected one")
    return found


def _number(element: ElementTree.Element, tag: str, where: str) -> float:
    found = _text(element, tag, where)
    try:
        return float(found)
    except ValueError:
        raise InputError(f"{where}: <{tag.replace('/', '><')}> is {shown(found)}; expected a number") from None
