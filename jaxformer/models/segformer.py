"""SegFormer for semantic segmentation: an encoder of four stages, whose patches overlap, and a decoder of linear layers
(Xie et al. 2021).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.mix_transformer import MixMlp, OverlappingPatches, ReducedAttention, square
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import check_geometry, normalise
from jaxformer.layers.resizing import resized
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.segmenter import SegmentationOutput
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata

PATCHES = ((7, 4), (3, 2), (3, 2), (3, 2))
"""Height (equal to the width) and stride of the patches of each stage, in pixels for the first stage and in positions
of the stage before for all others.
"""
STAGES = ("stage_1", "stage_2", "stage_3", "stage_4")


def segformer_stage(width: int, depth: int, heads: int, reduction: int, **fields: Any) -> Transformer:
    """Returns the stack of Transformer blocks of one of the four encoder stages.

    Args:
      width: size of the hidden vectors.
      depth: number of blocks.
      heads: number of attention heads.
      reduction: height and width of the square patches of positions that are merged before keys and values are
        computed. With 1, positions are not merged.
      fields: values of other fields of `Transformer`.
    """
    given: dict[str, Any] = {"norm": LayerNorm(1e-5), "dropout": 0.0, "attention_dropout": 0.0, "mlp": MixMlp()}
    return Transformer(width, depth, heads, ReducedAttention(reduction=reduction), **given | fields)


class FixedBatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) over the last axis, whose mean and variance are fixed. Its scale and bias are
    trained.
    """

    epsilon: float = 1e-5
    """Number added to the variance for numerical stability."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros, ones = (metadata.with_axes(init, "d") for init in (nn.initializers.zeros, nn.initializers.ones))
        width = (x.shape[-1],)
        scale, bias = self.param("scale", ones, width), self.param("bias", zeros, width)
        mean, variance = (
            jax.lax.stop_gradient(self.param(name, init, width)) for name, init in (("mean", zeros), ("variance", ones))
        )
        y = (x.astype(jnp.float32) - mean) * jax.lax.rsqrt(variance + self.epsilon) * scale + bias
        return y.astype(x.dtype)


class SegFormer(Model):
    """SegFormer for square images, such as windows of larger pictures. `SegFormer(labels=...)` is SegFormer-B0."""

    stage_1: Transformer = segformer_stage(32, 2, 1, 8)
    """Transformer blocks of the first encoder stage, at a quarter of the image resolution."""
    stage_2: Transformer = segformer_stage(64, 2, 2, 4)
    """Transformer blocks of the second encoder stage, at an eighth of the image resolution."""
    stage_3: Transformer = segformer_stage(160, 2, 5, 2)
    """Transformer blocks of the third encoder stage, at a sixteenth of the image resolution."""
    stage_4: Transformer = segformer_stage(256, 2, 8, 1)
    """Transformer blocks of the fourth encoder stage, at a thirty-second of the image resolution."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids."""
    decoder_width: int = 256
    """Size of the hidden vectors in the decoder."""
    image: int = 512
    """Height and width of the images in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    head_dropout: float = 0.1
    """Dropout rate of the input of the last linear layer."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    is_segmentation_model: ClassVar[bool] = True
    """Marks a segmentation model: its logits classify the positions of a grid over the image, not the whole image."""
    patch: ClassVar[int] = 32
    """Factor by which the four stages together reduce the height and width of an image."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected at least two names")
        side = self.image
        for (_, stride), (name, stack) in zip(PATCHES, self.stacks().items(), strict=True):
            side //= stride
            reduction = stack.attention.reduction
            if side % reduction:
                problem = f"expected a divisor of {side}, the side of its positions"
                raise InputError(f"model.{name}.attention.reduction={reduction}: {problem}")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the input name `images` to the specification of its array: axes, data type and
        meaning.
        """
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of Transformer blocks of the four stages, keyed by the paths of their parameters."""
        return {name: getattr(self, name) for name in STAGES}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, the width `x` and the number of channels `n` of the images, keyed by these axis
        letters.
        """
        return {"y": self.image, "x": self.image, "n": self.channels}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only the decoder. A warm start may use a pretrained model with other values
        in these fields.
        """
        return "labels", "decoder_width", "head_dropout"

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """First path components of the parameters that belong to the encoder. A warm start fails if the pretrained
        model lacks any of them.
        """
        return (*STAGES, *(f"{name}_patches" for name in STAGES))

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its pixel statistics and its dropout before the last layer have
        standard values, so that models which differ only in these count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,), head_dropout=0.0)

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of images."""
        flops, side, channels, inner = 0.0, self.image, self.channels, self.decoder_width
        for (size, stride), stack in zip(PATCHES, self.stacks().values(), strict=True):
            side //= stride
            tokens, keys = side**2, (side // stack.attention.reduction) ** 2
            flops += linear_flops(tokens, size**2 * channels, stack.width) + linear_flops(tokens, stack.width, inner)
            whole = stack_flops(stack, tokens)
            saved = 4.0 * (tokens - keys) * (stack.width**2 + tokens * stack.width)
            reducing = 2.0 * tokens * stack.width**2 if stack.attention.reduction > 1 else 0.0
            flops += whole + stack.depth * (reducing - saved)
            channels = stack.width
        grid = (self.image // 4) ** 2
        return sizes["b"] * (flops + linear_flops(grid, 4 * inner, inner) + linear_flops(grid, inner, len(self.labels)))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> SegmentationOutput:
        """Computes class logits on a grid over the image, which has a quarter of the image resolution.

        Args:
          images: square images, uint8 [batch, height, width, channels], or floats that are already normalized.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        x, means, levels, inner = normalise(images, self.mean, self.std), {}, [], self.decoder_width
        for (size, stride), (name, stack) in zip(PATCHES, self.stacks().items(), strict=True):
            x = OverlappingPatches(stack.width, size, stride, stack.dtype, name=f"{name}_patches")(x)
            output = stack(x, BlockInputs(train=train))
            means, x = added(means, output.means), square(output.hidden)
            project = Linear("bpd,di->bpi", (stack.width, inner), dtype=stack.dtype, name=f"{name}_projection")
            levels.append(square(project(output.hidden)))
        grid = levels[0].shape[1:3]
        joined = jnp.concatenate([resized(level, grid) for level in reversed(levels)], axis=-1)
        dtype = self.compute_dtype
        fused = Linear("byxi,id->byxd", (4 * inner, inner), False, dtype, name="fuse")(joined)
        y = nn.relu(FixedBatchNorm(name="fuse_norm")(fused))
        y = Dropout(self.head_dropout)(y, train)
        logits = Linear("byxd,dc->byxc", (inner, len(self.labels)), dtype=dtype, name="head")(y)
        return SegmentationOutput(output.hidden, logits=logits.astype(jnp.float32), means=means)
