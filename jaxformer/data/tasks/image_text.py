"""Image-text task: pairs of images and texts that describe them, for two-tower models (Radford et al. 2021)."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TypeGuard

from jaxformer.data.fields.image import ImageField, Prepared
from jaxformer.data.fields.text import TextField
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.composed import FieldTask


@dataclasses.dataclass(frozen=True)
class ImageTextPairs(FieldTask):
    """Pairs of an image and a text that describes it.

    Batch rows: `images` uint8 [batch, size, size, channels]; `tokens` int32 [batch, length]; `weights` float32 [batch,
    1], 1 for each pair. The data pipeline adds `segments` (1 at text tokens, 0 at padding) and `position_ids`.
    """

    image: ImageField = ImageField()
    """How the image of a pair is read, resized and augmented."""
    text: TextField = TextField()
    """How the text of a pair is read and tokenized."""

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[Prepared | str]:
        """Prepares the arguments of the `predict` command: decodes, resizes and crops images as in evaluation, and
        returns texts unchanged.

        A string is an image if it is the path of a file or ends with an image file extension. Other strings are texts.

        Raises:
          InputError: If an image does not exist or cannot be decoded.
        """
        return [one if is_text(one) else self.image.prepare([one])[0] for one in requests]


def is_text(request: pictures.ImageLike) -> TypeGuard[str]:
    """Returns whether an argument of the `predict` command is a text. A string is an image if it is the path of a file
    or ends with an image file extension, and otherwise a text. Other values are images.
    """
    if not isinstance(request, str):
        return False
    return not (request.lower().endswith(pictures.ENDINGS) or os.path.isfile(request))
