"""Parts that models of object detection share: their base class, their output and their heads."""

from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import flax.struct
import jax

from jaxformer.layers.linear import DType, Linear
from jaxformer.models.base import InputSpec, Model, ModelOutput

PIXEL_MASK = InputSpec("byx", "1 for pixels of the image, 0 for padding", optional=True)


@flax.struct.dataclass
class DetectionOutput(ModelOutput):
    """Output of an object detection model: a box and class logits for each prediction. The last logit means no object.

    `hidden` is the output of the last stack. It ends with one vector per prediction.
    """

    logits: jax.Array | None = None
    """Class logits, [batch, predictions, labels + 1]."""
    boxes: jax.Array | None = None
    """Center x, center y, width and height of each box as fractions of the image without its padding,
    [batch, predictions, 4].
    """
    layer_logits: jax.Array | None = None
    """Class logits of every layer, including the last one, [layers, batch, predictions, labels + 1]. None unless
    requested.
    """
    layer_boxes: jax.Array | None = None
    """Boxes of every layer, [layers, batch, predictions, 4]. None unless requested."""

    exported: ClassVar[tuple[str, ...]] = ("logits", "boxes")


class DetectionModel(Model):
    """Base class of models of object detection: each image has a fixed number of predictions.

    A subclass has the fields `labels`, `queries`, `channels`, `mean` and `std`, and a field or property `patch`. Its
    call has the argument `all_layers`, and returns a `DetectionOutput`.
    """

    if TYPE_CHECKING:
        labels: tuple[str, ...]
        queries: int
        channels: int

        @property
        def patch(self) -> int:
            """Number that the height and the width of images must be multiples of."""
            ...


class Mlp3(nn.Module):
    """Head of three linear layers with ReLU between them: [..., embed] → [..., outputs]."""

    outputs: int
    """Number of outputs."""
    dtype: DType = "auto"
    """Type to compute in."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        for number in range(2):
            x = jax.nn.relu(Linear("bmi,id->bmd", (width, width), dtype=self.dtype, name=f"layer{number}")(x))
        return Linear("bmd,dc->bmc", (width, self.outputs), dtype=self.dtype, name="layer2")(x)


def head_flops(width: int, outputs: int) -> float:
    """Returns the FLOPs of an `Mlp3` per prediction."""
    return 4.0 * width * width + 2.0 * width * outputs
