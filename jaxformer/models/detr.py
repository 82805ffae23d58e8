"""DETR: an encoder–decoder that detects objects by set prediction (Carion et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.backbones import ResNet
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.image_positions import masked_positions, shrunk_mask
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import check_geometry, normalise
from jaxformer.layers.positions import Placement
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec
from jaxformer.models.detection import PIXEL_MASK, DetectionModel, DetectionOutput, Mlp3, head_flops
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata

BASE = Transformer(
    256,
    6,
    8,
    mlp=Mlp(2048, "relu"),
    norm=LayerNorm(1e-5),
    norm_position="after",
    attention_dropout=0.0,
)
"""Stack of Transformer blocks with the sizes of the DETR paper, for the encoder and for the decoder."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Detr(DetectionModel):
    """DETR model for object detection. `Detr(labels=...)` has the sizes of DETR-R50.

    A backbone, such as a ResNet, converts an image to a feature map. The encoder attends to the positions of the
    feature map. The decoder refines a fixed number of vectors, one per prediction, which attend to each other and to
    the encoder output.
    """

    backbone: nn.Module = ResNet()
    """Network that converts images to feature maps: a `ResNet`, whose weights should be pretrained, or a
    `PatchBackbone`, which can be trained from random weights and makes the encoder a Vision Transformer.
    """
    encoder: Transformer = BASE
    """Transformer blocks that attend to the positions of the feature map."""
    decoder: Transformer = BASE
    """Transformer blocks over one vector per prediction. They also attend to the encoder output."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their indices, without the class for no object."""
    queries: int = 100
    """Number of predictions per image."""
    image: int = 800
    """Height and width in pixels of the images that exported programs take and that `jaxformer plan` assumes. The model
    itself takes images of any size.
    """
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_geometry(self.image, 1, self.channels, self.mean, self.std)
        if not self.labels:
            raise InputError("model.labels=(): expected at least one label name")
        if self.queries < 1:
            raise InputError(f"model.queries={self.queries}: expected at least 1")
        if self.encoder.width != self.decoder.width or self.encoder.width % 4:
            raise InputError(
                f"model.encoder.width={self.encoder.width}, model.decoder.width={self.decoder.width}: expected the "
                "same multiple of 4"
            )
        if self.decoder.norm_position != "after":
            position = self.decoder.norm_position
            raise InputError(f"model.decoder.norm_position={position}: expected after, because every layer has outputs")

    @property
    def patch(self) -> int:
        """The height and the width of images must be multiples of this number of pixels."""
        return self.backbone.multiple

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the input names `images` and `pixel_mask` to the specifications of the arrays."""
        return {"images": IMAGES, "pixel_mask": PIXEL_MASK}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of encoder and decoder blocks, keyed by the paths of their parameters."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, the width `x` and the number of channels `n` of the images, keyed by these axis
        letters.
        """
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of images."""
        width, side = self.encoder.width, -(-self.image // self.backbone.stride)
        flops = self.backbone.flops(self.image, self.image, self.channels)
        flops += linear_flops(side**2, self.backbone.channels, width)
        flops += stack_flops(self.encoder, side**2) + stack_flops(self.decoder, self.queries, memory=side**2)
        flops += self.queries * (linear_flops(width, len(self.labels) + 1) + head_flops(width, 4))
        return sizes["b"] * flops

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """First path components of the parameters that belong to the backbone and the encoder. A warm start fails if
        the pretrained model lacks any of them.
        """
        return "backbone", "input", "encoder"

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only the predictions or the image size. A warm start may use a pretrained
        model with other values in these fields.
        """
        return "labels", "queries", "image"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its image size, pixel statistics and backbone data type have
        standard values, so that models which differ only in these count as equal.
        """
        backbone = dataclasses.replace(self.backbone, dtype="auto")
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,), image=800, backbone=backbone)

    @nn.compact
    def __call__(
        self, images: jax.Array, pixel_mask: jax.Array | None = None, train: bool = False, all_layers: bool = False
    ) -> DetectionOutput:
        """Predicts the boxes and labels of objects in images.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          pixel_mask: 1 for pixels of the image, 0 for padding at the right and at the bottom, [batch, height, width].
            Boxes are relative to the image without padding. If None, there is no padding.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          all_layers: whether to also return the predictions from the output of each decoder block.
        """
        pixels = normalise(images, self.mean, self.std)
        if pixel_mask is not None:
            pixels = pixels * pixel_mask[..., None].astype(pixels.dtype)
        memory = self._encode(pixels, pixel_mask, train)
        width = self.decoder.width
        init = metadata.with_axes(nn.initializers.normal(1.0), "_d")
        queries = self.param("queries", init, (self.queries, width))[None]
        start = jnp.zeros((images.shape[0], self.queries, width), memory.hidden.dtype)
        mask = None
        if memory.segments is not None:
            mask = Mask.of_segments(jnp.ones(start.shape[:2], jnp.int32), memory.segments)
        given = BlockInputs(
            placement=Placement(query_added=queries, key_added=queries),
            memory=memory.hidden,
            memory_mask=mask,
            memory_placement=Placement(query_added=queries, key_added=memory.positions),
            train=train,
            return_layers=all_layers,
        )
        output = self.decoder(start, given)
        layers = output.hidden[None] if output.layers is None else output.layers
        hidden = self.decoder.norm.clone(parent=self, name="decoder_norm")(layers)
        logits, boxes = self._predict(hidden)
        return DetectionOutput(
            hidden=hidden[-1],
            logits=logits[-1],
            boxes=boxes[-1],
            layer_logits=logits if all_layers else None,
            layer_boxes=boxes if all_layers else None,
            means=added(memory.means, output.means),
        )

    def _encode(self, pixels: jax.Array, pixel_mask: jax.Array | None, train: bool) -> "Encoded":
        """Runs the backbone and the encoder on normalized pixels."""
        config, features = self.encoder, self.backbone(pixels)
        batch, height, width, channels = features.shape
        shape, segments = (1, height, width), None
        if pixel_mask is not None:
            mask = shrunk_mask(pixel_mask, height, width).astype(jnp.int32)
            segments = mask.reshape(batch, -1)
        else:
            mask = jnp.ones(shape, jnp.int32)
        x = Linear("bpn,nd->bpd", (channels, config.width), dtype=config.dtype, name="input")(
            features.reshape(batch, -1, channels)
        )
        x = Dropout(config.dropout)(x, train)
        positions = masked_positions(mask, config.width)
        given = BlockInputs(
            mask=None if segments is None else Mask.of_segments(segments, segments),
            placement=Placement(query_added=positions, key_added=positions),
            train=train,
        )
        output = config(x, given)
        return Encoded(output.hidden, segments, positions, output.means)

    def _predict(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Applies the class head and the box head to the outputs of decoder blocks, [layers, batch, predictions,
        embed].

        Returns the class logits, [layers, batch, predictions, labels + 1], and the boxes, [layers, batch, predictions,
        4].
        """
        width, dtype = self.decoder.width, self.decoder.dtype
        head = Linear("bmd,dc->bmc", (width, len(self.labels) + 1), dtype=dtype, name="head")
        boxes = jax.nn.sigmoid(Mlp3(4, dtype, name="box")(hidden).astype(jnp.float32))
        return head(hidden).astype(jnp.float32), boxes


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Output of the DETR encoder, with the mask and the positions that the decoder needs to attend to it."""

    hidden: jax.Array
    """Output vectors, one per position of the feature map, [batch, positions, embed]."""
    segments: jax.Array | None
    """1 for positions of the image, 0 for padding, integers [batch, positions]. None if there is no padding."""
    positions: jax.Array
    """Sinusoidal position embeddings, [batch or 1, positions, embed]."""
    means: dict
    """Auxiliary losses and metrics of the encoder, as weighted means keyed by name."""
