"""LLaMA family (Touvron et al. 2023) and families with the same structure: conversion from and to Hugging Face
transformers.

The others are Mistral (Jiang et al. 2023) and Qwen3 (Yang et al. 2025).
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import flax.linen as nn

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.gpt2 import BRIDGE
from jaxformer.interop.huggingface.families.rows import gated_mlp, llama_attention, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import HeadRMSNorm, RMSNorm
from jaxformer.layers.positions import Rotary, Scaling
from jaxformer.models.gpt import Gpt

LAYER, OURS = "model.layers.{l}", "transformer/blocks"


def llama_table(mlp: Iterable[ParamMapping], others: tuple[Table, ...] = ()) -> Table:
    """Returns the table of a LLaMA-like family, which maps parameters to tensors of Hugging Face checkpoints.

    Args:
      mlp: Parameter mappings of the MLPs.
      others: Tables of other layouts of the same tensors, which imports accept.
    """
    return Table(
        (
            ParamMapping("embeddings/token", "model.embed_tokens.weight", copies=("lm_head.weight",)),
            *norm(f"{OURS}/attention_norm", f"{LAYER}.input_layernorm"),
            *llama_attention(f"{OURS}/attention", f"{LAYER}.self_attn"),
            *norm(f"{OURS}/mlp_norm", f"{LAYER}.post_attention_layernorm"),
            *mlp,
            *norm("transformer/norm", "model.norm"),
            ParamMapping("head", "lm_head.weight"),
        ),
        known={
            f"{LAYER}.self_attn.rotary_emb.inv_freq": "computed from the config",
            "model.rotary_emb.inv_freq": "too",
        },
        prefix="model.",
        others=others,
    )


TABLE = llama_table(gated_mlp(f"{OURS}/mlp", f"{LAYER}.mlp"))

ROPE = {
    "factor": "factor",
    "original_max_position_embeddings": "pretrained",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
}
"""Maps Hugging Face config fields that scale rotary position embeddings to fields of `Rotary`."""
SCALINGS: Mapping[Scaling, tuple[str, ...]] = {"none": (), "linear": ("factor",), "llama3": tuple(ROPE)}
"""Maps supported scaling types of rotary position embeddings to the config fields that each type requires."""


def build_llama(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a LLaMA config."""
    bias = reader.flag("attention_bias", False)
    return build_decoder(reader, dense_mlp(reader, reader.flag("mlp_bias", False)), bias=bias, groups=None)


def build_mistral(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a Mistral config: a LLaMA without biases.

    Attention windows shorter than the maximum length are not supported.
    """
    without_window(reader)
    return build_decoder(reader, dense_mlp(reader), groups=8, max_length=131_072)


def without_window(reader: ConfigReader) -> None:
    """Raises InputError if the attention window of a Mistral config is shorter than the maximum length, which is not
    supported.
    """
    longest, window = reader.integer("max_position_embeddings", 131_072), reader.get("sliding_window")
    if window is not None and window < longest:
        raise reader.error("sliding_window", window, f"null, or at least max_position_embeddings={longest}")


def build_qwen3(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a Qwen3 config: a LLaMA whose queries and keys are normalised per head."""
    return build_qwen(reader, dense_mlp(reader), groups=32, head_dim=128)


def build_qwen(reader: ConfigReader, mlp: nn.Module, groups: int, head_dim: int | None) -> Gpt:
    """Builds a Qwen3 model.

    Args:
      reader: config of the model.
      mlp: MLP of each block.
      groups: default number of key/value heads.
      head_dim: default size of a head. If None, width / heads.
    """
    reader.must("use_sliding_window", False)
    kinds = reader.get("layer_types", [])
    if any(kind != "full_attention" for kind in kinds):
        raise reader.error("layer_types", sorted(set(kinds)), "only full_attention")
    for name in ("sliding_window", "max_window_layers"):
        reader.get(name)  # No effect without use_sliding_window.
    norm, bias = HeadRMSNorm(reader.number("rms_norm_eps", 1e-6)), reader.flag("attention_bias", False)
    gpt = build_decoder(reader, mlp, groups, bias, head_dim, 32_768)
    attention = dataclasses.replace(gpt.transformer.attention, head_norm=norm)
    return gpt.replace_stacks(attention=attention)


def dense_mlp(reader: ConfigReader, bias: bool = False) -> GatedMlp:
    """Builds the gated MLP for a config without experts."""
    return GatedMlp(reader.integer("intermediate_size"), reader.choice("hidden_act", ACTIVATIONS, "silu"), bias)


def build_decoder(
    reader: ConfigReader,
    mlp: nn.Module,
    groups: int | None,
    bias: bool = False,
    head_dim: int | None = None,
    max_length: int = 2048,
) -> Gpt:
    """Builds a LLaMA-like decoder.

    Args:
      reader: config of the model.
      mlp: MLP of each block.
      groups: default number of key/value heads. If None, the number of query heads.
      bias: whether the linear layers of attention have biases.
      head_dim: default size of a head. If None, width / heads.
      max_length: default maximum length.
    """
    width, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    attention = Attention(
        kv_heads=reader.integer("num_key_value_heads", groups or heads),
        head_dim=reader.integer("head_dim", head_dim or max(1, width // heads)),
        bias=bias,
    )
    transformer = stack(
        reader,
        width=width,
        depth=reader.integer("num_hidden_layers"),
        heads=heads,
        attention=attention,
        mlp=mlp,
        norm=RMSNorm(reader.number("rms_norm_eps", 1e-6)),
        position_embedding=rotary(reader),
        dropout=0.0,
        attention_dropout=reader.rate("attention_dropout"),
    )
    return Gpt(
        transformer,
        vocab=reader.integer("vocab_size"),
        max_length=reader.integer("max_position_embeddings", max_length),
        tie_embeddings=reader.flag("tie_word_embeddings", False),
    )


def rotary(reader: ConfigReader) -> Rotary:
    """Reads the rotary position embeddings of a config, which may have the current or the older field names."""
    reader.must("partial_rotary_factor", 1.0)
    base = reader.number("rope_theta", 10_000.0)
    name = "rope_parameters" if "rope_parameters" in reader else "rope_scaling"
    rope = dict(reader.get("rope_scaling", {})) | dict(reader.get("rope_parameters", {}))
    return rotary_of(reader, name, {"rope_theta": base} | rope)


def rotary_of(reader: ConfigReader, name: str, rope: Mapping[str, Any]) -> Rotary:
    """Builds rotary position embeddings from config fields.

    Args:
      reader: Config of the model, for error messages.
      name: Name of the config field that contains `rope`, for error messages.
      rope: Maps `rope_theta`, `rope_type` and the fields that this type requires to their values.
    """
    rope = dict(rope)
    older = rope.pop("type", "default")
    said = rope.pop("rope_type", older)
    base = float(rope.pop("rope_theta"))
    kind: Scaling | None = next((name for name in SCALINGS if name == {"default": "none"}.get(said, said)), None)
    if kind is None:
        raise reader.error(f"{name}.rope_type", said, "default, linear or llama3")
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise reader.error(f"{name}.partial_rotary_factor", "below 1", "1")
    if kind != "llama3":
        rope.pop("original_max_position_embeddings", None)
    if set(rope) != set(SCALINGS[kind]):
        raise reader.error(name, rope, f"these fields for {kind}: {', '.join(SCALINGS[kind]) or 'none'}")
    return Rotary(base, kind, **{ROPE[field]: value for field, value in rope.items()})


def rotary_in(positions: nn.Module | None) -> Rotary:
    """Returns the given position embeddings of a block. Raises InputError if they are not rotary."""
    if not isinstance(positions, Rotary):
        kind = None if positions is None else type(positions).__name__
        raise InputError(f"model.transformer.position_embedding={kind}: expected Rotary")
    return positions


def rope_fields(positions: Rotary) -> dict[str, Any]:
    """Converts rotary position embeddings to the older config fields, which all versions of the transformers library
    can read.
    """
    scaling = {
        theirs: getattr(positions, ours) for theirs, ours in ROPE.items() if theirs in SCALINGS[positions.scaling]
    }
    kind = {"rope_type": positions.scaling, "type": positions.scaling}
    return {"rope_theta": positions.base, "rope_scaling": None if positions.scaling == "none" else kind | scaling}


def describe_decoder(model: Gpt) -> dict[str, Any]:
    """Converts a model to the config fields that LLaMA-like families share, except the fields of the MLP."""
    config = model.transformer
    groups, head_dim = config.attention.sizes(config.heads, config.width)
    return {
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "hidden_act": NAMES[config.mlp.activation],
        "rms_norm_eps": config.norm.epsilon,
        "attention_dropout": config.attention_dropout,
        "tie_word_embeddings": model.tie_embeddings,
        **rope_fields(rotary_in(config.position_embedding)),
    }


def _describe(architecture: str, **fields: Any):
    def describe(model: Gpt) -> dict[str, Any]:
        """Converts the model to the config of a LLaMA-like family."""
        config = model.transformer
        mine = {"architectures": [architecture], "intermediate_size": config.mlp.inner(config.width)}
        biases = {"attention_bias": config.attention.bias, "mlp_bias": config.mlp.bias}
        own = {name: biases.get(name, value) for name, value in fields.items()}
        return mine | describe_decoder(model) | own

    return describe


def _family(model_type: str, architecture: str, build, **fields: Any) -> Family:
    describe = _describe(architecture, **fields)
    return Family(model_type, (architecture,), Gpt, build, describe, TABLE, bridge=BRIDGE)


LLAMA = _family("llama", "LlamaForCausalLM", build_llama, attention_bias=None, mlp_bias=None)
MISTRAL = _family("mistral", "MistralForCausalLM", build_mistral, sliding_window=None)
QWEN3 = _family("qwen3", "Qwen3ForCausalLM", build_qwen3, attention_bias=None, use_sliding_window=False)
