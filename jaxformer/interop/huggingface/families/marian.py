"""Marian family (Junczys-Dowmunt et al. 2018): conversion from and to Hugging Face transformers.

Marian models have the architecture of the original Transformer (Vaswani et al. 2017). Their encoder and decoder share
one vocabulary, and the output layer has a bias.
"""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, mean_cross_entropy, text_length
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, sizes_of_sides, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.generation_config import read_decoding, start_token
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.interop.huggingface.text.tokenizer_files import begins_texts
from jaxformer.interop.huggingface.text_forms import marian_run
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.runs.run import Run


def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Computes sinusoidal position embeddings of shape [positions, embed]."""
    positions, width = shape
    angles = np.arange(positions)[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def stack_rows(side: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the blocks in an encoder or decoder of Marian or BART to tensors of a
    Hugging Face checkpoint. `side` is "encoder" or "decoder".
    """
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


def shared_rows() -> list[ParamMapping]:
    """Returns the mappings from the parameters of the token embeddings and the output layer to tensors of a Hugging
    Face checkpoint. Marian and BART have the same ones.
    """
    tied = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return [
        ParamMapping("embeddings/token", "model.shared.weight", copies=tied),
        ParamMapping("bias", "final_logits_bias", "1 v -> v"),
        ParamMapping("head", "lm_head.weight"),
    ]


POSITIONS = "model.{side}.embed_positions.weight"
TABLE = Table(
    (*shared_rows(), *stack_rows("encoder"), *stack_rows("decoder")),
    known={POSITIONS.format(side=side): sinusoids for side in ("encoder", "decoder")},
)


def build(reader: ConfigReader, names: Collection[str]) -> EncoderDecoder:
    """Builds the model for a Marian config."""
    vocab = reader.integer("vocab_size", 58_101)
    reader.must("decoder_vocab_size", vocab)
    reader.must("share_encoder_decoder_embeddings", True)
    reader.must("static_position_embeddings", True)
    reader.must("normalize_embedding", False)
    return EncoderDecoder(
        *stacks(reader),
        vocab=vocab,
        max_length=reader.integer("max_position_embeddings", 1024),
        scale_embeddings=reader.flag("scale_embedding", False),
        tie_embeddings=reader.flag("tie_word_embeddings", True),
        head_bias="final_logits_bias" in names,
    )


def stacks(reader: ConfigReader) -> tuple[Transformer, Transformer]:
    """Builds the encoder and the decoder for a Marian or BART config."""
    for name in ("normalize_before", "add_final_layer_norm", "add_bias_logits"):
        reader.must(name, False)
    reader.get("num_hidden_layers")  # Same value as encoder_layers.
    for name in ("activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        reader.only_training(name)

    def make(side):
        return stack(
            reader,
            width=reader.integer("d_model", 1024),
            depth=reader.integer(f"{side}_layers", 12),
            heads=reader.integer(f"{side}_attention_heads", 16),
            mlp=Mlp(reader.integer(f"{side}_ffn_dim", 4096), reader.choice("activation_function", ACTIVATIONS, "gelu")),
            norm=LayerNorm(1e-5),
            norm_position="after",
            dropout=reader.rate("dropout", 0.1),
            attention_dropout=reader.rate("attention_dropout"),
        )

    return make("encoder"), make("decoder")


def describe(model: EncoderDecoder) -> dict[str, Any]:
    """Converts the model to a Marian config."""
    return {
        "architectures": ["MarianMTModel"],
        "share_encoder_decoder_embeddings": True,
        "decoder_vocab_size": model.vocab,
        "static_position_embeddings": True,
    } | fields(model)


def fields(model: EncoderDecoder) -> dict[str, Any]:
    """Converts a model to the config fields that Marian and BART share."""
    stack = model.encoder
    return sizes_of_sides(model) | {
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


class EncoderDecoderBridge(Bridge):
    """Chooses the training objective and the data task of an imported text encoder–decoder. For the certificate, which
    compares a model with its class in the transformers library, it also computes the labels that this class takes, and
    its loss.
    """

    arguments: ClassVar[Mapping[str, str]] = {
        "inputs": "input_ids",
        "input_segments": "attention_mask",
        "tokens": "decoder_input_ids",
    }

    def __init__(self, decoder_start: str = "pad_token_id"):
        """Sets `decoder_start`, the name of the config field that contains the id of the decoder start token."""
        self.decoder_start = decoder_start

    def objective(self, source: Source, model: EncoderDecoder) -> Objective:
        """Returns a sequence-to-sequence objective with the decoding settings of the imported folder."""
        folder, tokenizer = source.opened, source.require_tokenizer()
        return Seq2SeqLM(
            decoding=read_decoding(folder, Decoding(max_new_tokens=128), tokenizer),
            start=start_token(folder, tokenizer),
            beginning=begins_texts(tokenizer, folder.path),
        )

    def task(self, source: Source, model: EncoderDecoder, objective: Any) -> Task:
        """Returns a text-to-text task."""
        return TextToText(text_length(model), text_length(model))

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns the config.json fields with the special token ids of the tokenizer, including the decoder start
        token.
        """
        start = tokens[self.decoder_start]
        return {**tokens, **({} if start is None else {"decoder_start_token_id": start})}

    def labels(self, model: EncoderDecoder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the target tokens in `rows` as label arguments of the corresponding class of the transformers
        library, for parity checks. Padding has the label -100, which the class ignores.
        """
        return {"labels": np.where(rows["segments"] > 0, rows["targets"], -100)}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the cross-entropy of the targets, in the same way as the transformers library."""
        return mean_cross_entropy(outputs["logits"], rows["targets"], rows["segments"])

    def config_for_onnx(self, model: EncoderDecoder, objective: Any) -> dict[str, Any]:
        """Returns the config of the class `T5ForConditionalGeneration` of the transformers library, whose arguments and
        outputs match those of ONNX programs that are exported from encoder–decoders.
        """
        encoder, decoder = model.stacks().values()
        _, head_dim = decoder.attention.sizes(decoder.heads, decoder.width)
        return {
            "model_type": "t5",
            "architectures": ["T5ForConditionalGeneration"],
            "vocab_size": model.require_text_limits().vocab,
            "d_model": encoder.width,
            "num_layers": encoder.depth,
            "num_heads": decoder.heads,
            "num_decoder_layers": decoder.depth,
            "d_kv": head_dim,
            "is_encoder_decoder": True,
        }


class MarianBridge(EncoderDecoderBridge):
    """Chooses the training objective and the data task of an imported `EncoderDecoder`. A model whose first decoder
    input is a zero vector is exported like a Marian model, in which padding is the last token id.
    """

    def to_exportable_form(self, run: Run) -> Run:
        """Returns an equivalent run without unused token ids. If the first decoder input of the model is a zero vector,
        padding becomes the last token id.
        """
        run = super().to_exportable_form(run)
        return marian_run(run) if run.tokenizer is not None and run.model.zero_start else run


FAMILY = Family(
    model_type="marian",
    architectures=("MarianMTModel",),
    module=EncoderDecoder,
    build=build,
    describe=describe,
    table=TABLE,
    special_tokens=("pad", "unk", "eos"),
    layout="ended",
    bridge=MarianBridge(),
)
