"""DINOv2 family (Oquab et al. 2024), with and without registers (Darcet et al. 2024): conversion from and to Hugging
Face transformers.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.families.vit import BRIDGE, embeddings, geometry, image_model, self_attention
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Transformer
from jaxformer.models.vit import Vit

OURS = "transformer/blocks"
WITH = "Dinov2WithRegisters"
GATED = tuple(f"{OURS}/mlp/{part}" for part in ("gate", "up"))


def table(prefix: str) -> Table:
    """Returns the table that maps parameters to tensors of a Hugging Face checkpoint. `prefix` is the prefix of tensor
    names.
    """
    layer = f"{prefix}.encoder.layer.{{l}}"
    return Table(
        (
            *embeddings(f"{prefix}.embeddings"),
            ParamMapping("embeddings/registers", f"{prefix}.embeddings.register_tokens", "1 r d -> r d"),
            *self_attention(OURS, layer),
            *norm(f"{OURS}/attention_norm", f"{layer}.norm1"),
            *norm(f"{OURS}/mlp_norm", f"{layer}.norm2"),
            ParamMapping(f"{OURS}/attention_residual/scale", f"{layer}.layer_scale1.lambda1"),
            ParamMapping(f"{OURS}/mlp_residual/scale", f"{layer}.layer_scale2.lambda1"),
            *_mlp_rows(f"{layer}.mlp"),
            *norm("transformer/norm", f"{prefix}.layernorm"),
            *linear("head", "classifier"),
        ),
        known={f"{prefix}.embeddings.mask_token": "replaces masked patches in pretraining"},
        prefix=f"{prefix}.",
    )


def _mlp_rows(theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the MLPs to tensors of a Hugging Face checkpoint. The checkpoint
    stores the gate and up kernels of a gated MLP as one tensor.
    """
    gate = f"{GATED[0]}/kernel"
    kernel, bias = (tuple(f"{part}/{name}" for part in GATED) for name in ("kernel", "bias"))
    gated = [
        ParamMapping(kernel, f"{theirs}.weights_in.weight", "(n f) d -> n d f"),
        ParamMapping(bias, f"{theirs}.weights_in.bias", "(n f) -> n f"),
        *linear(f"{OURS}/mlp/down", f"{theirs}.weights_out"),
    ]
    plain = [*linear(f"{OURS}/mlp/up", f"{theirs}.fc1"), *linear(f"{OURS}/mlp/down", f"{theirs}.fc2")]
    return [
        *(dataclasses.replace(row, requires=gate) for row in gated),
        *(dataclasses.replace(row, excludes=gate) for row in plain),
    ]


def build(reader: ConfigReader, names: Collection[str]) -> Vit:
    """Builds the model for a DINOv2 config. The classifier reads the class token and the mean of the patches."""
    reader.must("qkv_bias", True)
    for name in ("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices", "stage_names"):
        reader.get(name)  # Only used by the backbone class, which returns block outputs.
    reader.get("use_mask_token")
    width = reader.integer("hidden_size", 768)
    transformer = stack(
        reader,
        width=width,
        depth=reader.integer("num_hidden_layers", 12),
        heads=reader.integer("num_attention_heads", 12),
        mlp=_mlp(reader, int(width * reader.number("mlp_ratio", 4))),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-6)),
        dropout=reader.rate("hidden_dropout_prob"),
        attention_dropout=reader.rate("attention_probs_dropout_prob"),
        residual=ResidualBranch(reader.number("layerscale_value", 1.0), reader.rate("drop_path_rate")),
    )
    labels = read_labels(reader) if "classifier.weight" in names else ()
    pooling = "first_and_mean" if labels else "first"
    registers = reader.integer("num_register_tokens", 4) if _has_registers(names) else 0
    return image_model(reader, Vit, transformer=transformer, labels=labels, pooling=pooling, registers=registers)


def _mlp(reader: ConfigReader, inner: int) -> Mlp | GatedMlp:
    activation = reader.choice("hidden_act", ACTIVATIONS, "gelu")
    if reader.flag("use_swiglu_ffn", False):
        # Two thirds of the width, rounded up to a multiple of 8, and always with SiLU.
        return GatedMlp((int(inner * 2 / 3) + 7) // 8 * 8, bias=True)
    return Mlp(inner, activation)


def _has_registers(names: Collection[str]) -> bool:
    return any(name.endswith("embeddings.register_tokens") for name in names)


def describe(model: Vit, name: str) -> dict[str, Any]:
    """Converts the model to a DINOv2 config. `name` is the start of the class name in the transformers library, such as
    `Dinov2`.
    """
    config = model.transformer
    if bool(model.registers) != (name == WITH):
        raise InputError(
            f"model.registers={model.registers}: expected {'at least one' if name == WITH else 'none'} for {name}"
        )
    if config.residual is None:
        raise InputError("model.transformer.residual=None: expected LayerScale, as in DINOv2")
    gated = isinstance(config.mlp, GatedMlp)
    registers = {"num_register_tokens": model.registers} if model.registers else {}
    return {
        "architectures": [f"{name}ForImageClassification" if model.labels else f"{name}Model"],
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": _ratio(config),
        "hidden_act": "gelu" if gated else NAMES[config.mlp.activation],
        "use_swiglu_ffn": gated,
        "use_mask_token": False,
        "layer_norm_eps": config.norm.epsilon,
        "layerscale_value": config.residual.layer_scale,
        "drop_path_rate": config.residual.drop_path,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        **registers,
        **(label_fields(model.labels) if model.labels else {}),
        **geometry(model),
    }


def _ratio(config: Transformer) -> int:
    """Returns the config field `mlp_ratio`: the ratio of the MLP width to the model width (for a gated MLP, 3/2 of this
    ratio), rounded to an integer.

    If `build` cannot restore the MLP width from it, the export fails later, when the rebuilt model is compared with the
    original.
    """
    inner = config.mlp.inner(config.width)
    return round((inner * 3 / 2 if isinstance(config.mlp, GatedMlp) else inner) / config.width)


def family(model_type: str, name: str) -> Family:
    """Builds the family of DINOv2, with or without registers. `name` is the start of its class names in the
    transformers library.
    """
    return Family(
        model_type=model_type,
        architectures=(f"{name}Model", f"{name}ForImageClassification"),
        module=Vit,
        build=build,
        describe=functools.partial(describe, name=name),
        table=table(model_type),
        headless_architectures=(f"{name}Model",),
        bridge=BRIDGE,
    )


FAMILY, WITH_REGISTERS = family("dinov2", "Dinov2"), family("dinov2_with_registers", WITH)
