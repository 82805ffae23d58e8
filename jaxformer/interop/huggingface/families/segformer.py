"""SegFormer family (Xie et al. 2021): conversion from and to Hugging Face transformers."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.segmentation import SegmentedImages
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.families.vit import ImageBridge, image_field
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mix_transformer import MixMlp
from jaxformer.models.segformer import PATCHES, STAGES, SegFormer, segformer_stage
from jaxformer.objectives.semantic_segmentation import SemanticSegmentation
from jaxformer.runs.run import Run

CONVOLUTION, HEAD = "d n y x -> y x n d", "decode_head"


def _stage(number: int) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the stage with index `number` (0 to 3) to tensors of a Hugging Face
    checkpoint. A stage has patch embeddings, blocks, a norm, and a projection in the decoder head.
    """
    ours, encoder = STAGES[number], "segformer.encoder"
    blocks, theirs = f"{ours}/blocks", f"{encoder}.block.{number}.{{l}}"
    query, key, value = (f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
    return [
        *linear(f"{ours}_patches/patch", f"{encoder}.patch_embeddings.{number}.proj", CONVOLUTION),
        *norm(f"{ours}_patches/norm", f"{encoder}.patch_embeddings.{number}.layer_norm"),
        *norm(f"{blocks}/attention_norm", f"{theirs}.layer_norm_1"),
        *attention(f"{blocks}/attention", query, key, value, f"{theirs}.attention.output.dense"),
        *linear(f"{blocks}/attention/reduction", f"{theirs}.attention.self.sr", CONVOLUTION),
        *norm(f"{blocks}/attention/reduction_norm", f"{theirs}.attention.self.layer_norm"),
        *norm(f"{blocks}/mlp_norm", f"{theirs}.layer_norm_2"),
        *linear(f"{blocks}/mlp/up", f"{theirs}.mlp.dense1"),
        ParamMapping(f"{blocks}/mlp/mix_kernel", f"{theirs}.mlp.dwconv.dwconv.weight", "f 1 y x -> y x f"),
        ParamMapping(f"{blocks}/mlp/mix_bias", f"{theirs}.mlp.dwconv.dwconv.bias"),
        *linear(f"{blocks}/mlp/down", f"{theirs}.mlp.dense2"),
        *norm(f"{ours}/norm", f"{encoder}.layer_norm.{number}"),
        *linear(f"{ours}_projection", f"{HEAD}.linear_c.{number}.proj"),
    ]


ROWS = (
    *(row for number in range(4) for row in _stage(number)),
    ParamMapping("fuse/kernel", f"{HEAD}.linear_fuse.weight", "d i 1 1 -> i d"),
    *norm("fuse_norm", f"{HEAD}.batch_norm"),
    ParamMapping("fuse_norm/mean", f"{HEAD}.batch_norm.running_mean"),
    ParamMapping("fuse_norm/variance", f"{HEAD}.batch_norm.running_var"),
    *linear("head", f"{HEAD}.classifier", "c d 1 1 -> d c"),
)
IN_MEMORY_NAMES = {
    "encoder.patch_embeddings.{}.": "stages.{}.patch_embeddings.",
    "encoder.block.{}.": "stages.{}.blocks.",
    "encoder.layer_norm.{}.": "stages.{}.layer_norm.",
    f"{HEAD}.linear_c.{{}}.": f"{HEAD}.linear_projections.{{}}.",
}
"""Maps parts of tensor names in checkpoint files to the corresponding parts in models that version 5 of the
transformers library has loaded into memory. `{}` is the number of a stage.
"""
IN_MEMORY_PARTS = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
    "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
    "attention.output.dense": "attention.o_proj",
    "mlp.dense1": "mlp.fc1",
    "mlp.dense2": "mlp.fc2",
    "layer_norm_1": "layernorm_before",
    "layer_norm_2": "layernorm_after",
}


def _with_in_memory_name(row: ParamMapping) -> ParamMapping:
    """Returns a copy of a parameter mapping. Its tensor has the name that it has in memory in version 5 of the
    transformers library, instead of the name in checkpoint files.
    """
    name = row.theirs
    for stored, in_memory in IN_MEMORY_NAMES.items():
        for number in range(4):
            name = name.replace(stored.format(number), in_memory.format(number))
    for stored, in_memory in IN_MEMORY_PARTS.items():
        name = name.replace(stored, in_memory)
    return dataclasses.replace(row, theirs=name)


KNOWN = {f"{HEAD}.batch_norm.num_batches_tracked": "counts the batches of training"}
TABLE = Table(ROWS, known=KNOWN, others=(Table(tuple(map(_with_in_memory_name, ROWS)), known=KNOWN),))


def build(reader: ConfigReader, names: Collection[str]) -> SegFormer:
    """Builds the model for a SegFormer config."""
    del names
    reader.must("num_encoder_blocks", 4)
    for name, values in (("patch_sizes", 0), ("strides", 1)):
        reader.must(name, [patch[values] for patch in PATCHES])
    reader.must("reshape_last_stage", True)
    reader.must("semantic_loss_ignore_index", 255)
    reader.get("layer_norm_eps")  # Not used by transformers: the norms have PyTorch's default.
    reader.only_training("drop_path_rate")
    lists = {
        name: reader.get(name, default)
        for name, default in (
            ("hidden_sizes", [32, 64, 160, 256]),
            ("depths", [2, 2, 2, 2]),
            ("num_attention_heads", [1, 2, 5, 8]),
            ("sr_ratios", [8, 4, 2, 1]),
            ("mlp_ratios", [4, 4, 4, 4]),
        )
    }
    for name, values in lists.items():
        whole = isinstance(values, list | tuple) and len(values) == 4 and all(type(value) is int for value in values)
        if not whole or min(values) < 1:
            raise reader.error(name, values, "four whole numbers above 0")
    activation = reader.choice("hidden_act", ACTIVATIONS, "gelu")
    dropout, attention_dropout = reader.rate("hidden_dropout_prob"), reader.rate("attention_probs_dropout_prob")
    stages: dict[str, Any] = {
        name: segformer_stage(
            width,
            depth,
            heads,
            reduction,
            mlp=MixMlp(width * ratio, activation),
            dropout=dropout,
            attention_dropout=attention_dropout,
        )
        for name, width, depth, heads, reduction, ratio in zip(STAGES, *lists.values(), strict=True)
    }
    try:
        return SegFormer(
            **stages,
            labels=read_labels(reader),
            decoder_width=reader.integer("decoder_hidden_size", 256),
            image=reader.integer("image_size", 512),
            channels=reader.integer("num_channels", 3),
            head_dropout=reader.rate("classifier_dropout_prob", 0.1),
        )
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def describe(model: SegFormer) -> dict[str, Any]:
    """Converts the model to a SegFormer config. The transformers library ignores the field `image_size`, because its
    SegFormer accepts images of any size.
    """
    stages = list(model.stacks().values())
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        **label_fields(model.labels),
        "image_size": model.image,
        "num_channels": model.channels,
        "num_encoder_blocks": 4,
        "patch_sizes": [size for size, _ in PATCHES],
        "strides": [stride for _, stride in PATCHES],
        "hidden_sizes": [stack.width for stack in stages],
        "depths": [stack.depth for stack in stages],
        "num_attention_heads": [stack.heads for stack in stages],
        "sr_ratios": [stack.attention.reduction for stack in stages],
        "mlp_ratios": [stack.mlp.inner(stack.width) // stack.width for stack in stages],
        "hidden_act": NAMES[stages[0].mlp.activation],
        "hidden_dropout_prob": stages[0].dropout,
        "attention_probs_dropout_prob": stages[0].attention_dropout,
        "classifier_dropout_prob": model.head_dropout,
        "drop_path_rate": 0.0,
        "decoder_hidden_size": model.decoder_width,
    }


class SegFormerBridge(ImageBridge):
    """Chooses the training objective and the data task of an imported segmentation model, and converts its outputs to
    those of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: SegFormer) -> Objective:
        """Returns the segmentation objective."""
        return SemanticSegmentation()

    def task(self, source: Source, model: SegFormer, objective: Any) -> Task:
        """Returns a task of images with segmentation masks. The images are preprocessed as the imported folder
        specifies.
        """
        return SegmentedImages(image_field(source, model), labels=model.labels)

    def to_exportable_form(self, run: Run) -> Run:
        """Returns the run unchanged, because its parameters already have the layout of Hugging Face checkpoints."""
        return run

    def outputs(self, model: SegFormer, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the logits under their name in the transformers library, with axes [batch, labels, height, width]."""
        return {"logits": jnp.moveaxis(output.logits, -1, 1)}

    def config_for_onnx(self, model: SegFormer, objective: Any) -> dict[str, Any]:
        """Returns the config of the SegFormer class of the transformers library, whose arguments and outputs match
        those of the model.
        """
        return {"model_type": "segformer", **describe(model)}


FAMILY = Family(
    model_type="segformer",
    architectures=("SegformerForSemanticSegmentation",),
    module=SegFormer,
    build=build,
    describe=describe,
    table=TABLE,
    bridge=SegFormerBridge(),
    auto_classes={"ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "image-segmentation")},
)
