"""Gemma 3 family of text models (Gemma Team 2025): conversion from and to Hugging Face transformers. Blocks with local
and global attention alternate.
"""

from collections.abc import Collection, Mapping
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, shortest_period, stack
from jaxformer.interop.huggingface.families.gpt2 import BRIDGE
from jaxformer.interop.huggingface.families.llama import rope_fields, rotary_in, rotary_of
from jaxformer.interop.huggingface.families.rows import gated_mlp, llama_attention, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import HeadRMSNorm, RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Variant
from jaxformer.models.gpt import Gpt

LAYER, OURS = "model.layers.{l}", "transformer/blocks"
GLOBAL, LOCAL = "full_attention", "sliding_attention"
"""Names of the two kinds of blocks in configs: with global attention, and with attention in a sliding window."""
BASES = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}
"""Default of the config field `rope_theta` for each kind of block."""
WINDOW = 4096
"""Default of the config field `sliding_window`, in tokens."""

TABLE = Table(
    (
        ParamMapping("embeddings/token", "model.embed_tokens.weight", copies=("lm_head.weight",)),
        *norm(f"{OURS}/attention_norm", f"{LAYER}.input_layernorm"),
        *llama_attention(f"{OURS}/attention", f"{LAYER}.self_attn"),
        *norm(f"{OURS}/attention_post_norm", f"{LAYER}.post_attention_layernorm"),
        *norm(f"{OURS}/mlp_norm", f"{LAYER}.pre_feedforward_layernorm"),
        *gated_mlp(f"{OURS}/mlp", f"{LAYER}.mlp"),
        *norm(f"{OURS}/mlp_post_norm", f"{LAYER}.post_feedforward_layernorm"),
        *norm("transformer/norm", "model.norm"),
        ParamMapping("head", "lm_head.weight"),
    ),
    prefix="model.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a Gemma 3 config: a LLaMA with two kinds of blocks (with global and with sliding-window
    attention), and with zero-centred norms before and after each layer.
    """
    reader.must("use_bidirectional_attention", False)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        reader.must(name, None)
    reader.get("cache_implementation")  # Cache layout of transformers, in configs on the hub.
    epsilon = reader.number("rms_norm_eps", 1e-6)
    attention = Attention(
        kv_heads=reader.integer("num_key_value_heads", 4),
        head_dim=reader.integer("head_dim", 256),
        query_pre_attn_scalar=reader.integer("query_pre_attn_scalar", 256),
        bias=reader.flag("attention_bias", False),
        head_norm=HeadRMSNorm(epsilon, zero_centered=True),
    )
    depth, window = reader.integer("num_hidden_layers", 26), reader.integer("sliding_window", WINDOW)
    kinds = _kinds(reader, depth)
    positions = _positions(reader)
    variants = {GLOBAL: Variant(), LOCAL: Variant(attention.clone(window=window), None, positions[LOCAL])}
    transformer = stack(
        reader,
        width=reader.integer("hidden_size", 2304),
        depth=depth,
        heads=reader.integer("num_attention_heads", 8),
        attention=attention,
        mlp=GatedMlp(
            reader.integer("intermediate_size", 9216),
            reader.choice("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        ),
        norm=RMSNorm(epsilon, zero_centered=True),
        norm_position="both",
        position_embedding=positions[GLOBAL],
        period=tuple(variants[kind] for kind in kinds[: shortest_period(kinds)]),
        dropout=0.0,
        attention_dropout=reader.rate("attention_dropout"),
    )
    return Gpt(
        transformer,
        vocab=reader.integer("vocab_size", 262_208),
        max_length=reader.integer("max_position_embeddings", 131_072),
        tie_embeddings=reader.flag("tie_word_embeddings", True),
        scale_embeddings=True,
    )


def _kinds(reader: ConfigReader, depth: int) -> list[str]:
    """Returns the kind of each block: with global or with local attention.

    Configs list the kinds (`layer_types`) or, in older files, give a period n: every n-th block is global.
    """
    size = reader.integer("sliding_window_pattern", 6)
    reader.get("_sliding_window_pattern")  # Written in addition to `layer_types`, but never read.
    kinds = reader.get("layer_types")
    if kinds is None:
        return [LOCAL if (number + 1) % size else GLOBAL for number in range(depth)]
    if not isinstance(kinds, list) or len(kinds) != depth or set(kinds) - BASES.keys():
        raise reader.error("layer_types", kinds, f"a list of {depth} kinds, {GLOBAL} or {LOCAL}")
    return kinds


def _positions(reader: ConfigReader) -> dict[str, Rotary]:
    """Returns a dict that maps each kind of block to its rotary position embeddings. Reads the config fields of version
    5 and of older versions of the transformers library.
    """
    given = reader.get("rope_parameters", {})
    if not isinstance(given, Mapping) or given.keys() - BASES.keys():
        raise reader.error("rope_parameters", given, f"an object with {GLOBAL} and {LOCAL}")
    older = {
        GLOBAL: {"rope_theta": reader.number("rope_theta", BASES[GLOBAL])},
        LOCAL: {"rope_theta": reader.number("rope_local_base_freq", BASES[LOCAL])},
    }
    newer = {kind: dict(given.get(kind) or {}) for kind in BASES}
    newer[GLOBAL] |= reader.get("rope_scaling", {})
    return {kind: rotary_of(reader, f"rope_parameters.{kind}", older[kind] | newer[kind]) for kind in BASES}


def describe(model: Gpt) -> dict[str, Any]:
    """Converts a Gemma model to a Gemma 3 config. The rotary fields have names that all versions of the transformers
    library can read.
    """
    config = model.transformer
    if config.width % config.heads:  # Required although the head size is independent of the width.
        expected = "expected a number that divides the width, as Gemma3TextConfig requires"
        raise InputError(f"model.transformer.heads={config.heads}: {expected}")
    blocks = [config.variant(number) for number in range(config.depth)]
    kinds = [GLOBAL if block.attention.window is None else LOCAL for block in blocks]
    of_kind = dict(zip(kinds, blocks, strict=True))
    attention = blocks[0].attention
    groups, head_dim = attention.sizes(config.heads, config.width)
    rotary = {
        kind: rotary_in(of_kind[kind].position_embedding) if kind in of_kind else Rotary(BASES[kind]) for kind in BASES
    }
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "query_pre_attn_scalar": attention.query_pre_attn_scalar or head_dim,
        "intermediate_size": config.mlp.inner(config.width),
        # Other programs accept only this name of the approximation in a Gemma.
        "hidden_activation": {"gelu_tanh": "gelu_pytorch_tanh"}.get(
            config.mlp.activation, NAMES[config.mlp.activation]
        ),
        "rms_norm_eps": config.norm.epsilon,
        "attention_bias": attention.bias,
        "attention_dropout": config.attention_dropout,
        "layer_types": kinds,
        "sliding_window": of_kind[LOCAL].attention.window if LOCAL in of_kind else WINDOW,
        "rope_local_base_freq": rotary[LOCAL].base,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": model.tie_embeddings,
        **rope_fields(rotary[GLOBAL]),
    }


FAMILY = Family("gemma3_text", ("Gemma3ForCausalLM",), Gpt, build, describe, TABLE, bridge=BRIDGE)
