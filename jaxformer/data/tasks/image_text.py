"""Images with texts that describe them: the data of two-tower models (Radford et al. 2021)."""

import dataclasses
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

    def prepare_requests(self, requests: Sequence[pictures.ImageLike]) -> list[Prepared]:
        """Images in files or in memory, prepared as for evaluation; InputError if one cannot be decoded."""
        return self.image.prepare(requests)
