"""ViViT family with joint attention over space and time (Arnab et al. 2021): conversion from and to Hugging Face
transformers.

The transformers library has no class for the other variant in the paper, which has a factorised encoder.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, Family, stack
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.families.video_mae import (
    AUTO_CLASSES,
    ClipBridge,
    clip_sizes,
    tubelet_embeddings,
)
from jaxformer.interop.huggingface.families.vit import blocks, embeddings, encoder_fields
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.video_vit import VideoVit

GELU_FAST = {"gelu_fast": "gelu_tanh"}
"""Maps the activation function that only this family has in the transformers library to its name in jaxformer.
`gelu_fast` is the same function as `gelu_new`.
"""
ROWS = (
    *tubelet_embeddings("vivit.embeddings"),
    *embeddings("vivit.embeddings")[2:],
    *blocks("transformer/blocks", "vivit.encoder.layer.{l}"),
    *norm("transformer/norm", "vivit.layernorm"),
    *linear("head", "classifier"),
)
IN_MEMORY_NAMES = {
    "encoder.layer": "layers",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
"""Maps parts of tensor names in checkpoint files to the corresponding parts in models that version 5 of the
transformers library has loaded into memory.
"""


def _with_in_memory_name(row: ParamMapping) -> ParamMapping:
    """Returns a copy of a parameter mapping. Its tensor has the name that it has in memory in version 5 of the
    transformers library, instead of the name in checkpoint files.
    """
    name = row.theirs
    for stored, in_memory in IN_MEMORY_NAMES.items():
        name = name.replace(stored, in_memory)
    return dataclasses.replace(row, theirs=name)


TABLE = Table(ROWS, prefix="vivit.", others=(Table(tuple(map(_with_in_memory_name, ROWS)), prefix="vivit."),))


def build(reader: ConfigReader, names: Collection[str]) -> VideoVit:
    """Builds the model for a ViViT config. It is a classifier if `names`, the names of the stored tensors, include a
    classification head.
    """
    reader.must("qkv_bias", True)
    width = reader.integer("hidden_size", 768)
    for name in ("pooler_act", "pooler_output_size"):  # Only used by a VivitModel, which is not supported.
        reader.get(name)
    transformer = stack(
        reader,
        width=width,
        depth=reader.integer("num_hidden_layers", 12),
        heads=reader.integer("num_attention_heads", 12),
        mlp=Mlp(
            reader.integer("intermediate_size", 3072),
            reader.choice("hidden_act", ACTIVATIONS | GELU_FAST, "gelu_fast"),
        ),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-6)),
        dropout=reader.rate("hidden_dropout_prob"),
        attention_dropout=reader.rate("attention_probs_dropout_prob"),
    )
    tubelet = reader.get("tubelet_size", [2, 16, 16])
    sizes = list(tubelet) if isinstance(tubelet, list | tuple) else []
    if len(sizes) != 3 or sizes[1] != sizes[2] or not all(type(size) is int and size > 0 for size in sizes):
        raise reader.error("tubelet_size", tubelet, "a number of frames, and twice the same number of pixels")
    try:
        return VideoVit(
            transformer,
            read_labels(reader) if "classifier.weight" in names else (),
            image=reader.integer("image_size", 224),
            frames=reader.integer("num_frames", 32),
            patch=sizes[1],
            tubelet=sizes[0],
            channels=reader.integer("num_channels", 3),
        )
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def describe(model: VideoVit) -> dict[str, Any]:
    """Converts the model to a ViViT config."""
    if not model.labels:
        raise InputError("model.labels=(): expected labels, because a VivitModel has a pooler")
    return {
        "architectures": ["VivitForVideoClassification"],
        **label_fields(model.labels),
        **clip_sizes(model),
        "tubelet_size": [model.tubelet, model.patch, model.patch],
        "qkv_bias": True,
        **encoder_fields(model.transformer),
    }


FAMILY = Family(
    model_type="vivit",
    architectures=("VivitForVideoClassification",),
    module=VideoVit,
    build=build,
    describe=describe,
    table=TABLE,
    bridge=ClipBridge(),
    auto_classes=AUTO_CLASSES,
)
