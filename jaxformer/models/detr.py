"""DETR: an encoder–decoder that detects objects by set prediction (Carion et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.layers.backbones import ResNet
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.image_positions import masked_positions, point_positions, shrunk_mask
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
    groups: int = 1
    """Number of groups of queries in training. Each group predicts all objects and attends only to itself, so that a
    step trains the decoder on more matches (Chen et al. 2023, Group DETR). Predictions are those of the first group.
    """
    reference_points: bool = False
    """Whether each query has a learned point in the image: the query is the position of this point, and the center of
    its box is predicted relative to it (Zhu et al. 2021, §A.3; Wang et al. 2022, Anchor DETR). The points are spread
    evenly at first, so that queries specialise in fewer steps.
    """
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
        for name in ("queries", "groups"):
            fields.at_least(f"model.{name}", getattr(self, name), 1)
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
        """Returns the FLOPs of a forward pass in training, with all groups of queries. `sizes["b"]` is the number of
        images.
        """
        width, side = self.encoder.width, -(-self.image // self.backbone.stride)
        queries = self.queries * self.groups
        flops = self.backbone.flops(self.image, self.image, self.channels)
        flops += linear_flops(side**2, self.backbone.channels, width)
        flops += stack_flops(self.encoder, side**2) + stack_flops(self.decoder, queries, memory=side**2)
        flops += queries * (linear_flops(width, len(self.labels) + 1) + head_flops(width, 4))
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
        return "labels", "queries", "groups", "image"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its image size, pixel statistics, backbone data type and number of
        groups have standard values, so that models which differ only in these count as equal.
        """
        backbone = dataclasses.replace(self.backbone, dtype="auto")
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,), image=800, groups=1, backbone=backbone)

    @nn.compact
    def __call__(
        self, images: jax.Array, pixel_mask: jax.Array | None = None, train: bool = False, all_layers: bool = False
    ) -> DetectionOutput:
        """Predicts the boxes and labels of objects in images.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          pixel_mask: 1 for pixels of the image, 0 for padding at the right and at the bottom, [batch, height, width].
            Boxes are relative to the image without padding. If None, there is no padding.
          train: whether to apply dropout, which requires the rng stream `dropout`, and to return the predictions of all
            groups, one group after the other.
          all_layers: whether to also return the predictions from the output of each decoder block.
        """
        pixels = normalise(images, self.mean, self.std)
        if pixel_mask is not None:
            pixels = pixels * pixel_mask[..., None].astype(pixels.dtype)
        memory = self._encode(pixels, pixel_mask, train)
        queries, points = self._embed_queries(self.queries * (self.groups if train else 1))
        start = jnp.zeros((images.shape[0], *queries.shape[1:]), memory.hidden.dtype)
        groups = jnp.broadcast_to(1 + jnp.arange(start.shape[1]) // self.queries, start.shape[:2])
        memory_mask = None
        if memory.segments is not None:
            memory_mask = Mask.of_segments(jnp.ones_like(groups), memory.segments)
        given = BlockInputs(
            mask=Mask.of_segments(groups, groups) if start.shape[1] > self.queries else None,
            placement=Placement(query_added=queries, key_added=queries),
            memory=memory.hidden,
            memory_mask=memory_mask,
            memory_placement=Placement(query_added=queries, key_added=memory.positions),
            train=train,
            return_layers=all_layers,
        )
        output = self.decoder(start, given)
        layers = output.hidden[None] if output.layers is None else output.layers
        hidden = self.decoder.norm.clone(parent=self, name="decoder_norm")(layers)
        logits, boxes = self._predict(hidden, points)
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

    def _embed_queries(self, count: int) -> tuple[jax.Array, jax.Array | None]:
        """Returns the position embeddings of the first `count` queries, [1, count, embed], and the log-odds of their
        reference points, [count, 2]. The latter is None if they have none.
        """
        total, width = self.queries * self.groups, self.decoder.width
        init = nn.initializers.normal(0.02 if self.reference_points else 1.0)
        queries = self.param("queries", metadata.with_axes(init, "_d"), (total, width))[:count]
        if not self.reference_points:
            return queries[None], None
        points = self.param("points", metadata.with_axes(spread_points, "__"), (total, 2))[:count]
        return (queries + point_positions(jax.nn.sigmoid(points), width))[None], points

    def _predict(self, hidden: jax.Array, points: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Applies the class head and the box head to the outputs of decoder blocks, [layers, batch, predictions,
        embed]. `points` are the log-odds of the reference points, [predictions, 2], or None.

        Returns the class logits, [layers, batch, predictions, labels + 1], and the boxes, [layers, batch, predictions,
        4].
        """
        width, dtype = self.decoder.width, self.decoder.dtype
        head = Linear("bmd,dc->bmc", (width, len(self.labels) + 1), dtype=dtype, name="head")
        boxes = Mlp3(4, dtype, name="box")(hidden).astype(jnp.float32)
        if points is not None:  # They are added to the log-odds of the center.
            boxes = boxes + jnp.pad(points, ((0, 0), (0, 2)))
        return head(hidden).astype(jnp.float32), jax.nn.sigmoid(boxes)


def spread_points(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Initializer of reference points: the log-odds of points that are spread evenly in the image, [points, 2]. The
    first n are spread evenly too, for any n (Roberts 2018, the sequence R2). `key` is not used.
    """
    del key
    steps = np.arange(shape[0])[:, None] * np.array([0.7548776662466927, 0.5698402909980532])
    points = 0.05 + 0.9 * ((0.5 + steps) % 1)
    return jnp.asarray(np.log(points / (1 - points)), jnp.float32)


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
