"""HiFi-GAN vocoders of SpeechT5 (Kong et al. 2020): conversion from and to Hugging Face transformers."""

from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.rows import linear
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.models.hifi_gan import HifiGan

BLOCKS = 3
"""Number of residual blocks after each transposed convolution, which all published models have. Checkpoints number all
blocks of a model consecutively.
"""
LEVELS, DILATIONS = 8, 5
"""Maximum numbers of transposed convolutions, and of dilations of a residual block, of models that can be converted."""
_KERNEL = "d i w -> w i d"


def _rows() -> tuple[ParamMapping, ...]:
    rows = [ParamMapping("mean", "mean"), ParamMapping("scale", "scale")]
    rows += linear("first", "conv_pre", _KERNEL) + linear("last", "conv_post", _KERNEL)
    for level in range(LEVELS):
        rows += linear(f"up_{level}", f"upsampler.{level}", "i d w -> w i d")
        for number in range(BLOCKS):
            for index in range(DILATIONS):
                for ours, theirs in (("dilated", "convs1"), ("plain", "convs2")):
                    name = f"resblocks.{level * BLOCKS + number}.{theirs}.{index}"
                    rows += linear(f"block_{level}_{number}_{ours}_{index}", name, _KERNEL)
    return tuple(rows)


def build(reader: ConfigReader, names: Collection[str]) -> HifiGan:
    """Builds the model for a SpeechT5HifiGan config."""
    del names

    def numbers(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = reader.get(name, list(default))
        if not value or not all(type(number) is int and number > 0 for number in value):
            raise reader.error(name, value, "a list of whole numbers above 0")
        return tuple(value)

    dilations = reader.get("resblock_dilation_sizes", [[1, 3, 5]] * BLOCKS)
    if len(numbers("resblock_kernel_sizes", (3, 7, 11))) != BLOCKS:
        raise reader.error("resblock_kernel_sizes", reader.get("resblock_kernel_sizes"), f"{BLOCKS} numbers")
    with reader.located():
        return HifiGan(
            mels=reader.integer("model_in_dim", 80),
            channels=reader.integer("upsample_initial_channel", 512),
            strides=numbers("upsample_rates", (4, 4, 4, 4)),
            kernels=numbers("upsample_kernel_sizes", (8, 8, 8, 8)),
            block_kernels=numbers("resblock_kernel_sizes", (3, 7, 11)),
            dilations=tuple(tuple(part) for part in dilations),
            slope=reader.number("leaky_relu_slope", 0.1),
            normalize=reader.flag("normalize_before", True),
            rate=reader.integer("sampling_rate", 16_000),
        )


def describe(model: HifiGan) -> dict[str, Any]:
    """Converts the model to a SpeechT5HifiGan config."""
    return {
        "architectures": ["SpeechT5HifiGan"],
        "model_in_dim": model.mels,
        "upsample_initial_channel": model.channels,
        "upsample_rates": list(model.strides),
        "upsample_kernel_sizes": list(model.kernels),
        "resblock_kernel_sizes": list(model.block_kernels),
        "resblock_dilation_sizes": [list(part) for part in model.dilations],
        "leaky_relu_slope": model.slope,
        "normalize_before": model.normalize,
        "sampling_rate": model.rate,
    }


class VocoderBridge(Bridge):
    """Says how a vocoder is used. It is not a run, because it reads no text."""

    def objective(self, source: Source, model: HifiGan) -> Any:
        """Raises InputError, which names the option of `predict` that takes the folder of a vocoder."""
        raise InputError(f"{source.home}: a vocoder; give this folder to `jaxformer predict RUN TEXT --vocoder FOLDER`")


FAMILY = Family(
    model_type="hifigan",
    architectures=("SpeechT5HifiGan",),
    module=HifiGan,
    build=build,
    describe=describe,
    table=Table(_rows()),
    bridge=VocoderBridge(),
    auto_classes={"SpeechT5HifiGan": ("SpeechT5HifiGan", None)},
)
