"""DistilBERT family (Sanh et al. 2019), which is BERT without token types and pooler: conversion from and to Hugging
Face transformers.
"""

from collections.abc import Collection
from typing import Any

from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bert import BRIDGE, heads
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, MARKS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.bert import Bert

EMBEDDINGS, LAYER = "distilbert.embeddings", "distilbert.transformer.layer.{l}"

TABLE = Table(
    (
        ParamMapping("embeddings/token", f"{EMBEDDINGS}.word_embeddings.weight", copies=("vocab_projector.weight",)),
        ParamMapping("embeddings/position", f"{EMBEDDINGS}.position_embeddings.weight"),
        *norm("embeddings/norm", f"{EMBEDDINGS}.LayerNorm"),
        *attention(
            "transformer/blocks/attention",
            f"{LAYER}.attention.q_lin",
            f"{LAYER}.attention.k_lin",
            f"{LAYER}.attention.v_lin",
            f"{LAYER}.attention.out_lin",
        ),
        *norm("transformer/blocks/attention_norm", f"{LAYER}.sa_layer_norm"),
        *linear("transformer/blocks/mlp/up", f"{LAYER}.ffn.lin1"),
        *linear("transformer/blocks/mlp/down", f"{LAYER}.ffn.lin2"),
        *norm("transformer/blocks/mlp_norm", f"{LAYER}.output_layer_norm"),
        *linear("masked_lm/dense", "vocab_transform"),
        *norm("masked_lm/norm", "vocab_layer_norm"),
        ParamMapping("masked_lm/bias", "vocab_projector.bias"),
    ),
    known={f"{EMBEDDINGS}.position_ids": "0, 1, 2, ..."},
    prefix="distilbert.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Bert:
    """Builds the model for a DistilBERT config. The model has a masked-LM head if `names`, the names of the stored
    tensors, include one.
    """
    reader.must("tie_word_embeddings", True)
    for name in ("sinusoidal_pos_embds", "tie_weights_", "qa_dropout", "seq_classif_dropout"):
        reader.get(name)  # Initialisation, constants, and unsupported heads.
    width = reader.integer("dim", 768)
    transformer = stack(
        reader,
        width=width,
        depth=reader.integer("n_layers", 6),
        heads=reader.integer("n_heads", 12),
        mlp=Mlp(reader.integer("hidden_dim", 3072), reader.choice("activation", ACTIVATIONS, "gelu")),
        norm=LayerNorm(1e-12),
        norm_position="after",
        dropout=reader.rate("dropout", 0.1),
        attention_dropout=reader.rate("attention_dropout", 0.1),
    )
    return Bert(
        transformer,
        vocab=reader.integer("vocab_size", 30_522),
        max_length=reader.integer("max_position_embeddings", 512),
        token_types=0,
        prediction_heads=heads(names, pooler="pooler.dense.weight", masked_lm="vocab_transform.weight"),
    )


def describe(model: Bert) -> dict[str, Any]:
    """Converts the model to a DistilBERT config."""
    config = model.transformer
    return {
        "architectures": ["DistilBertForMaskedLM" if "masked_lm" in model.prediction_heads else "DistilBertModel"],
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_length,
        "dim": config.width,
        "n_layers": config.depth,
        "n_heads": config.heads,
        "hidden_dim": config.mlp.inner(config.width),
        "activation": NAMES[config.mlp.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "sinusoidal_pos_embds": False,
    }


FAMILY = Family(
    model_type="distilbert",
    architectures=("DistilBertForMaskedLM", "DistilBertModel"),
    module=Bert,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("DistilBertModel",),
    special_tokens=MARKS,
    layout="encoder",
    bridge=BRIDGE,
)
