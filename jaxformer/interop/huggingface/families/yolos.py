"""YOLOS family (Fang et al. 2021): conversion from and to Hugging Face transformers."""

from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.detr import BRIDGE, WEIGHTS
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.families.vit import blocks, embeddings, encoder, encoder_fields
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.models.yolos import Yolos

TABLE = Table(
    (
        *embeddings("vit.embeddings"),
        ParamMapping("embeddings/detection_tokens", "vit.embeddings.detection_tokens", "1 t d -> t d"),
        *blocks("transformer/blocks", "vit.encoder.layer.{l}"),
        *norm("transformer/norm", "vit.layernorm"),
        *(
            row
            for number in range(3)
            for row in linear(f"head/layer{number}", f"class_labels_classifier.layers.{number}")
        ),
        *(row for number in range(3) for row in linear(f"box/layer{number}", f"bbox_predictor.layers.{number}")),
    ),
)


def build(reader: ConfigReader, names: Collection[str]) -> Yolos:
    """Builds the model for a YolosConfig."""
    del names
    if reader.flag("use_mid_position_embeddings", True):
        raise reader.error("use_mid_position_embeddings", True, "false: positions are only added to the input")
    reader.must("auxiliary_loss", False)
    for name, default in WEIGHTS.items():
        reader.number(name, default)
    sizes = reader.get("image_size", [512, 864])
    sizes = [sizes, sizes] if isinstance(sizes, int) else list(sizes)
    channels = reader.integer("num_channels", 3)
    pixels: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)} if channels != 3 else {}
    try:
        return Yolos(
            transformer=encoder(reader),
            labels=read_labels(reader),
            queries=reader.integer("num_detection_tokens", 100),
            image=sizes[0],
            image_width=sizes[1],
            patch=reader.integer("patch_size", 16),
            channels=channels,
            **pixels,
        )
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def describe(model: Yolos) -> dict[str, Any]:
    """Converts the model to a YolosConfig."""
    return {
        "architectures": ["YolosForObjectDetection"],
        "image_size": [model.image, model.image_width or model.image],
        "patch_size": model.patch,
        "num_channels": model.channels,
        "qkv_bias": True,
        "num_detection_tokens": model.queries,
        "use_mid_position_embeddings": False,
        "auxiliary_loss": False,
        **label_fields(model.labels),
        **encoder_fields(model.transformer),
    }


FAMILY = Family(
    model_type="yolos",
    architectures=("YolosForObjectDetection",),
    module=Yolos,
    build=build,
    describe=describe,
    table=TABLE,
    bridge=BRIDGE,
)
