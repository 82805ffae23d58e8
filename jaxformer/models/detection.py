"""Base class, output and heads that all object detection models share."""

from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import flax.struct
import jax

from jaxformer.layers.linear import DType, Linear
from jaxformer.models.base import InputSpec, Model, ModelOutput

PIXEL_MASK = InputSpec("byx", "1 for pixels of the image, 0 for padding", optional=True)


@flax.struct.dataclass
class DetectionOutput(ModelOutput):
    """Output of an object detection model, which predicts a fixed number of boxes and the class of each. The last class
    means no object.

    `hidden` is the output of the last stack of Transformer blocks. Its last vectors are those of the predictions, in
    order.
    """

    logits: jax.Array | None = None
    """Class logits of each prediction, [batch, predictions, labels + 1]."""
    boxes: jax.Array | None = None
    """Predicted boxes, [batch, predictions, 4]: center x, center y, width and height as fractions of the image without
    its padding.
    """
    layer_logits: jax.Array | None = None
    """Class logits predicted from the output of each decoder block, including the last one, [layers, batch,
    predictions, labels + 1]. None unless requested.
    """
    layer_boxes: jax.Array | None = None
    """Boxes predicted from the output of each decoder block, [layers, batch, predictions, 4]. None unless requested."""

    exported: ClassVar[tuple[str, ...]] = ("logits", "boxes")


class DetectionModel(Model):
    """Base class of object detection models, which make a fixed number of predictions per image.

    A subclass has the fields `labels`, `queries`, `channels`, `mean` and `std`, and a field or property `patch`. Its
    call has the argument `all_layers`, and returns a `DetectionOutput`.
    """

    if TYPE_CHECKING:
        labels: tuple[str, ...]
        queries: int
        channels: int

        @property
        def patch(self) -> int:
            """The height and the width of images must be multiples of this number of pixels."""
            ...


class Mlp3(nn.Module):
    """Prediction head of three linear layers with ReLU between them: [..., embed] → [..., outputs]."""

    outputs: int
    """Number of values to predict, such as the 4 coordinates of a box."""
    dtype: DType = "auto"
    """Data type of the computation."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        for number in range(2):
            x = jax.nn.relu(Linear("bmi,id->bmd", (width, width), dtype=self.dtype, name=f"layer{number}")(x))
        return Linear("bmd,dc->bmc", (width, self.outputs), dtype=self.dtype, name="layer2")(x)


def head_flops(width: int, outputs: int) -> float:
    """Returns the FLOPs of an `Mlp3` head for one prediction. `width` is the size of its input vector."""
    return 4.0 * width * width + 2.0 * width * outputs
