"""Backbones: networks that convert images to feature maps, the input of a Transformer encoder.

Each backbone has the properties `stride` (height and width in pixels that one position of the feature map represents),
`multiple` (image heights and widths must be multiples of this) and `channels` (size of the feature vectors), and a
method `flops`.
"""

import flax.linen as nn
import jax

from jaxformer.errors import InputError
from jaxformer.layers.convolution import Convolution, FrozenBatchNorm, conv_flops, max_pool, strided
from jaxformer.layers.linear import DType
from jaxformer.layers.norms import LayerNorm

REDUCTION = 4
"""Number of output channels of a bottleneck block, divided by the number of channels of its 3 × 3 convolution."""


class ResNet(nn.Module):
    """Residual network (He et al. 2016) without its classifier. `ResNet()` is ResNet-50.

    The statistics, scales and biases of its batch norms are not trained, so it should be initialized from a pretrained
    model: from random weights it does not train well.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Number of blocks in each stage."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """Number of output channels of each stage."""
    stem: int = 64
    """Number of output channels of the first convolution."""
    bottleneck: bool = True
    """Whether each block has three convolutions with kernel sizes 1, 3 and 1 (the first two with fewer channels), as in
    ResNet-50. If False, each block has two convolutions with kernel size 3, as in ResNet-18 and ResNet-34.
    """
    dtype: DType = "auto"
    """Data type to compute in. `auto` is bfloat16 on accelerators and float32 on CPU."""

    def __post_init__(self):
        super().__post_init__()
        if len(self.depths) != len(self.widths) or not self.depths or min(*self.depths, *self.widths, self.stem) < 1:
            raise InputError(
                f"backbone.depths={self.depths} and backbone.widths={self.widths}: expected as many numbers, at least 1"
            )

    @property
    def stride(self) -> int:
        """Height and width in pixels that one position of the feature map represents."""
        return 2 ** (len(self.depths) + 1)

    @property
    def multiple(self) -> int:
        """Number that image heights and widths must be multiples of. It is 1: images may have any size."""
        return 1

    @property
    def channels(self) -> int:
        """Number of channels of the feature map."""
        return self.widths[-1]

    def flops(self, height: int, width: int, channels: int) -> float:
        """Returns the FLOPs of all convolutions for one image with `height` × `width` pixels and `channels` color
        channels.
        """
        height, width = strided(height, 2), strided(width, 2)
        flops = conv_flops(height, width, 7, channels, self.stem)
        height, width, inputs = strided(height, 2), strided(width, 2), self.stem
        for stage, (depth, outputs) in enumerate(zip(self.depths, self.widths, strict=True)):
            wide, high = width, height
            if stage:
                height, width = strided(height, 2), strided(width, 2)
            for block in range(depth):
                if block == 0 and (stage or inputs != outputs):
                    flops += conv_flops(height, width, 1, inputs, outputs)
                if self.bottleneck:
                    inner = outputs // REDUCTION
                    area = (high, wide) if block == 0 else (height, width)
                    flops += conv_flops(*area, 1, inputs, inner) + conv_flops(height, width, 3, inner, inner)
                    flops += conv_flops(height, width, 1, inner, outputs)
                else:
                    flops += conv_flops(height, width, 3, inputs, outputs)
                    flops += conv_flops(height, width, 3, outputs, outputs)
                inputs = outputs
        return flops

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the feature map, the output of the last stage. Maps images [batch, height, width, channels] to
        [batch, height / stride, width / stride, `self.channels`].
        """
        x = Convolution(self.stem, 7, 2, dtype=self.dtype, name="stem")(images)
        x = max_pool(jax.nn.relu(FrozenBatchNorm(name="stem_norm")(x)))
        for stage, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            for block in range(depth):
                stride = 2 if stage and not block else 1
                name = f"stage{stage}_block{block}"
                x = ResidualBlock(width, stride, self.bottleneck, self.dtype, name=name)(x)
        return x


class ResidualBlock(nn.Module):
    """Residual block of a `ResNet`: convolutions with frozen batch norms and a residual connection. The first 3 × 3
    convolution has the stride of the block.
    """

    width: int
    """Number of output channels."""
    stride: int = 1
    """Stride of the block: distance between neighboring output positions, in input positions."""
    bottleneck: bool = True
    """Whether the block has three convolutions, of sizes 1, 3 and 1, instead of two of size 3. See `ResNet.bottleneck`.
    """
    dtype: DType = "auto"
    """Data type to compute in. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernels = [(3, self.width, self.stride), (3, self.width, 1)]
        if self.bottleneck:
            inner = self.width // REDUCTION
            kernels = [(1, inner, 1), (3, inner, self.stride), (1, self.width, 1)]
        y = x
        for number, (size, width, stride) in enumerate(kernels):
            y = Convolution(width, size, stride, dtype=self.dtype, name=f"conv{number}")(y)
            y = FrozenBatchNorm(name=f"norm{number}")(y)
            if number < len(kernels) - 1:
                y = jax.nn.relu(y)
        if self.stride > 1 or x.shape[-1] != self.width:
            x = Convolution(self.width, 1, self.stride, dtype=self.dtype, name="shortcut")(x)
            x = FrozenBatchNorm(name="shortcut_norm")(x)
        return jax.nn.relu(x + y)


class PatchBackbone(nn.Module):
    """Divides images into patches and embeds them. An encoder with this backbone is a Vision Transformer (Dosovitskiy
    et al. 2021).

    Unlike `ResNet`, it trains well from random weights, in particular if convolutions precede the patches (`stem`; Xiao
    et al. 2021).
    """

    width: int = 256
    """Number of channels of the feature map."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    stem: tuple[int, ...] = ()
    """Number of output channels of each convolution that is applied before the division into patches. Each convolution
    halves height and width, and the patches of its output are smaller by the same factor.
    """
    dtype: DType = "auto"
    """Data type to compute in. `auto` is bfloat16 on accelerators and float32 on CPU."""

    def __post_init__(self):
        super().__post_init__()
        if self.width < 1 or self.patch < 1 or self.patch % 2 ** len(self.stem):
            raise InputError(
                f"backbone.patch={self.patch}: expected a multiple of {2 ** len(self.stem)}, because of the strides of "
                f"backbone.stem={self.stem}"
            )

    @property
    def stride(self) -> int:
        """Height and width in pixels that one position of the feature map represents."""
        return self.patch

    @property
    def multiple(self) -> int:
        """Number that image heights and widths must be multiples of: the patch size."""
        return self.patch

    @property
    def channels(self) -> int:
        """Number of channels of the feature map."""
        return self.width

    def flops(self, height: int, width: int, channels: int) -> float:
        """Returns the FLOPs of all convolutions for one image with `height` × `width` pixels and `channels` color
        channels.
        """
        flops = 0.0
        for outputs in self.stem:
            height, width = strided(height, 2), strided(width, 2)
            flops += conv_flops(height, width, 3, channels, outputs)
            channels = outputs
        size = self.patch // 2 ** len(self.stem)
        return flops + conv_flops(height // size, width // size, size, channels, self.width)

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Computes the feature map: maps images [batch, height, width, channels] to patch embeddings [batch, height /
        patch, width / patch, `self.width`].
        """
        x = images
        for number, width in enumerate(self.stem):
            x = Convolution(width, 3, 2, bias=True, dtype=self.dtype, name=f"stem{number}")(x)
            x = jax.nn.gelu(LayerNorm(name=f"stem{number}_norm")(x))
        size = self.patch // 2 ** len(self.stem)
        batch, height, width, channels = x.shape
        if height % size or width % size:
            raise ValueError(f"images of {images.shape[1]} × {images.shape[2]}: expected multiples of {self.patch}")
        rows = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
        flat = rows.reshape(batch, height // size, width // size, size * size * channels)
        return Convolution(self.width, 1, bias=True, dtype=self.dtype, name="patch")(flat)
