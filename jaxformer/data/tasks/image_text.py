"""Images with texts that describe them: the data of two-tower models (Radford et al. 2021)."""

import dataclasses
import os
from collections.abc import Sequence

from jaxformer.data.fields.image import ImageField, Prepared
from jaxformer.data.fields.text import TextField
from jaxformer.data.sources import pictures
from jaxformer.data.tasks.composed import FieldTask


@dataclasses.dataclass(frozen=True)
class ImageTextPairs(FieldTask):
    """An image and a text that belong together.

    Rows: `images` uint8 [b, size, size, channels]; `tokens` int32 [b, length] with the lanes' `segments` (1 at the
    text's tokens, 0 is padding) and `position_ids`; `weights` float32 [b, 1], 1 for each pair.
    """

    image: ImageField = ImageField()
    """The image."""
    text: TextField = TextField()
    """The text."""

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[Prepared | str]:
        """Images prepared as for evaluation, and texts as they are.

        A string is an image if it is the path of a file, or has the ending of one and no file is there, which is an
        error; other strings are texts.

        Raises:
          InputError: an image cannot be decoded.
        """
        return [one if is_text(one) else self.image.prepare([one])[0] for one in requests]


def is_text(request: pictures.ImageLike) -> bool:
    """Whether a request is a text and not an image."""
    if not isinstance(request, str):
        return False
    return not (request.lower().endswith(pictures.ENDINGS) or os.path.isfile(request))
