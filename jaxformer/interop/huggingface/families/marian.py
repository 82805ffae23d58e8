"""Marian (Junczys-Dowmunt et al. 2018): the encoder–decoder of the paper, with one vocabulary and a biased head."""

from collections.abc import Collection
from typing import Any

import numpy as np

from jaxformer.interop.huggingface.config_reader import Settings
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.table import Row, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.encoder_decoder import EncoderDecoder


def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """The table that is computed here, [positions, width]."""
    positions, width = shape
    angles = np.arange(positions)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def stack_rows(side: str) -> list[Row]:
    """The blocks of an encoder or a decoder, as Marian and BART have them."""
    layer, ours = f"model.{side}.layers.{{l}}", f"{side}/blocks"

    def maps(kind):
        return (f"{layer}.{kind}.{part}" for part in ("q_proj", "k_proj", "v_proj", "out_proj"))

    rows = attention(f"{ours}/attention", *maps("self_attn")) + norm(
        f"{ours}/attention_norm", f"{layer}.self_attn_layer_norm"
    )
    if side == "decoder":
        rows += attention(f"{ours}/cross_attention", *maps("encoder_attn"))
        rows += norm(f"{ours}/cross_attention_norm", f"{layer}.encoder_attn_layer_norm")
    rows += linear(f"{ours}/mlp/up", f"{layer}.fc1") + linear(f"{ours}/mlp/down", f"{layer}.fc2")
    return rows + norm(f"{ours}/mlp_norm", f"{layer}.final_layer_norm")


def shared_rows() -> list[Row]:
    """Embeddings and head, as Marian and BART have them."""
    tied = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return [
        Row("embeddings/token", "model.shared.weight", copies=tied),
        Row("bias", "final_logits_bias", "1 v -> v"),
        Row("head", "lm_head.weight"),
    ]


POSITIONS = "model.{side}.embed_positions.weight"
TABLE = Table(
    (*shared_rows(), *stack_rows("encoder"), *stack_rows("decoder")),
    known={POSITIONS.format(side=side): sinusoids for side in ("encoder", "decoder")},
)


def build(settings: Settings, names: Collection[str]) -> EncoderDecoder:
    """Our Marian."""
    vocab = settings.integer("vocab_size", 58_101)
    settings.must("decoder_vocab_size", vocab)
    settings.must("share_encoder_decoder_embeddings", True)
    settings.must("static_position_embeddings", True)
    settings.must("normalize_embedding", False)
    return EncoderDecoder(
        **stacks(settings),
        vocab=vocab,
        max_length=settings.integer("max_position_embeddings", 1024),
        scale_embeddings=settings.flag("scale_embedding", False),
        tie_embeddings=settings.flag("tie_word_embeddings", True),
        head_bias="final_logits_bias" in names,
    )


def stacks(settings: Settings) -> dict[str, Transformer]:
    """Both stacks of Marian's and BART's config."""
    for name in ("normalize_before", "add_final_layer_norm", "add_bias_logits"):
        settings.must(name, False)
    settings.get("num_hidden_layers")  # The encoder's, again.
    for name in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        settings.only_training(name)

    def make(side):
        return stack(
            settings,
            width=settings.integer("d_model", 1024),
            depth=settings.integer(f"{side}_layers", 12),
            heads=settings.integer(f"{side}_attention_heads", 16),
            mlp=Mlp(
                settings.integer(f"{side}_ffn_dim", 4096), settings.choice("activation_function", ACTIVATIONS, "gelu")
            ),
            norm=LayerNorm(1e-5),
            norm_position="after",
            dropout=settings.rate("dropout", 0.1),
            attention_dropout=settings.rate("attention_dropout"),
        )

    return {"encoder": make("encoder"), "decoder": make("decoder")}


def describe(model: EncoderDecoder) -> dict[str, Any]:
    """Their config of our Marian."""
    return {
        "architectures": ["MarianMTModel"],
        "share_encoder_decoder_embeddings": True,
        "decoder_vocab_size": model.vocab,
        "static_position_embeddings": True,
    } | fields(model)


def fields(model: EncoderDecoder) -> dict[str, Any]:
    """What Marian's and BART's config have in common."""
    sides = {}
    for side, part in (("encoder", model.encoder), ("decoder", model.decoder)):
        sides |= {
            f"{side}_layers": part.depth,
            f"{side}_attention_heads": part.heads,
            f"{side}_ffn_dim": part.mlp.inner(part.width),
        }
    stack = model.encoder
    return sides | {
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_length,
        "d_model": stack.width,
        "activation_function": NAMES[stack.mlp.activation],
        "dropout": stack.dropout,
        "attention_dropout": stack.attention_dropout,
        "activation_dropout": 0.0,
        "scale_embedding": model.scale_embeddings,
        "tie_word_embeddings": model.tie_embeddings,
        "normalize_before": False,
    }


FAMILY = Family("marian", ("MarianMTModel",), EncoderDecoder, build, describe, TABLE)
