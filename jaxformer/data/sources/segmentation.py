"""Source of images and segmentation masks in two parallel folders, the layout of ADE20K."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from jaxformer import storage
from jaxformer.data.sources.pictures import ENDINGS
from jaxformer.data.sources.sources import Source
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class MaskFolders(Source):
    """Images and their segmentation masks, in two folders. The mask of the image `a/b.jpg` is the file `a/b.png` in the
    mask folder. Examples have the columns `image` and `mask`, which are paths.
    """

    images: str
    """Folder of the images. Images may be in subfolders."""
    masks: str
    """Folder of the masks, with the same subfolders and file names as `images`, except for the extension."""

    def open(self) -> Sequence[dict[str, Any]]:
        images, masks = (_files(folder) for folder in (self.images, self.masks))
        if not images:
            raise InputError(f"{self.images}: this folder holds no image; expected files such as street.jpg")
        if lacking := [stem for stem in images if stem not in masks]:
            wanted = os.path.join(self.masks, f"{lacking[0]}.png")
            more = f" ({len(lacking)} images have none)" if len(lacking) > 1 else ""
            raise InputError(f"{images[lacking[0]]}: has no mask; expected {wanted}{more}")
        return _Pairs([(images[stem], masks[stem]) for stem in sorted(images)])


class _Pairs(Sequence):
    """Sequence of examples {"image": path, "mask": path}."""

    scan = True

    def __init__(self, found: list[tuple[str, str]]):
        self.found = found

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, mask = self.found[int(index)]
        return {"image": image, "mask": mask}

    def identity(self, index: int) -> dict[str, Any]:
        """Returns example `index` with the contents of its files instead of the paths. Fingerprints of the data are
        computed from it, so that they do not change when the folders are moved.
        """
        return {name: storage.read_bytes(path) for name, path in self[index].items()}

    def place(self, index: int) -> str:
        """Returns the path of the image file of example `index`, for error messages."""
        return self.found[index][0]


def _files(folder: str) -> dict[str, str]:
    """Finds the images in a folder and its subfolders. Returns a dict that maps their relative paths, without
    extension, to their full paths.
    """
    home, found = os.path.expanduser(folder), {}
    if not os.path.isdir(home):
        raise InputError(f"{folder}: no such folder; give a folder of images")
    for path, below, names in os.walk(home):
        below.sort()
        for name in sorted(names):
            if name.lower().endswith(ENDINGS):
                relative = os.path.relpath(os.path.join(path, name), home)
                found[os.path.splitext(relative)[0]] = os.path.join(path, name)
    return found
