"""GPT-2 family (Radford et al. 2019): conversion from and to Hugging Face transformers."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, mean_cross_entropy, text_length, text_sizes
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.generation_config import read_decoding
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.interop.huggingface.text.tokenizer_files import begins_texts
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.causal_lm import CausalLM

LAYER, OURS = "transformer.h.{l}", "transformer/blocks"
PARTS = [f"{OURS}/attention/{part}" for part in ("query", "key", "value")]

# Kernels are stored as [in, out]. Query, key and value kernels are one tensor.
TABLE = Table(
    (
        ParamMapping("embeddings/token", "transformer.wte.weight", copies=("lm_head.weight",)),
        ParamMapping("embeddings/position", "transformer.wpe.weight"),
        *norm(f"{OURS}/attention_norm", f"{LAYER}.ln_1"),
        ParamMapping(tuple(f"{part}/kernel" for part in PARTS), f"{LAYER}.attn.c_attn.weight", "d (n h k) -> n d h k"),
        ParamMapping(tuple(f"{part}/bias" for part in PARTS), f"{LAYER}.attn.c_attn.bias", "(n h k) -> n h k"),
        *linear(f"{OURS}/attention/output", f"{LAYER}.attn.c_proj", "(h k) d -> h k d"),
        *norm(f"{OURS}/mlp_norm", f"{LAYER}.ln_2"),
        *linear(f"{OURS}/mlp/up", f"{LAYER}.mlp.c_fc", ""),
        *linear(f"{OURS}/mlp/down", f"{LAYER}.mlp.c_proj", ""),
        *norm("transformer/norm", "transformer.ln_f"),
        ParamMapping("head", "lm_head.weight"),
    ),
    known={f"{LAYER}.attn.bias": "the causal mask", f"{LAYER}.attn.masked_bias": "the value of masked scores"},
    prefix="transformer.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Gpt:
    """Builds the model for a GPT-2 config."""
    del names
    for name, value in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        reader.must(name, value)
    reader.get("reorder_and_upcast_attn")  # Scores and softmax are always in float32.
    reader.get("n_ctx")  # Old name of n_positions.
    for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout"):
        reader.get(f"summary_{name}")  # Fields of an unsupported head.
    width = reader.integer("n_embd", 768)
    transformer = stack(
        reader,
        width=width,
        depth=reader.integer("n_layer", 12),
        heads=reader.integer("n_head", 12),
        mlp=Mlp(reader.integer("n_inner", 4 * width), reader.choice("activation_function", ACTIVATIONS, "gelu_new")),
        norm=LayerNorm(reader.number("layer_norm_epsilon", 1e-5)),
        dropout=reader.rate("resid_pdrop", 0.1, "embd_pdrop"),
        attention_dropout=reader.rate("attn_pdrop", 0.1),
    )
    return Gpt(
        transformer,
        vocab=reader.integer("vocab_size", 50_257),
        max_length=reader.integer("n_positions", 1024),
        tie_embeddings=reader.flag("tie_word_embeddings", True),
    )


def describe(model: Gpt) -> dict[str, Any]:
    """Converts the model to a GPT-2 config."""
    config = model.transformer
    return {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": model.vocab,
        "n_positions": model.max_length,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": config.heads,
        "n_inner": config.mlp.inner(config.width),
        "activation_function": NAMES[config.mlp.activation],
        "layer_norm_epsilon": config.norm.epsilon,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": model.tie_embeddings,
    }


class DecoderBridge(Bridge):
    """Chooses the training objective and the data task of an imported causal language model, and computes the labels
    and the loss of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: Gpt) -> Objective:
        """Returns a causal LM objective with the decoding settings of the imported folder."""
        folder, tokenizer = source.opened, source.require_tokenizer()
        decoding = read_decoding(folder, Decoding(), tokenizer)
        return CausalLM(decoding=decoding, beginning=begins_texts(tokenizer, folder.path))

    def task(self, source: Source, model: Gpt, objective: Any) -> Task:
        """Returns a next-token prediction task on texts."""
        return NextToken(text_length(model))

    def labels(self, model: Gpt, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the input tokens as label arguments of the corresponding class of the transformers library, for
        parity checks. The class shifts the labels, so that each prediction is compared with the next token.
        """
        return {"labels": np.where(rows["segments"] > 0, rows["tokens"], -100)}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the cross-entropy of the next tokens, in the same way as the transformers library."""
        return mean_cross_entropy(outputs["logits"][:, :-1], rows["tokens"][:, 1:], rows["segments"][:, 1:])

    def config_for_onnx(self, model: Gpt, objective: Any) -> dict[str, Any]:
        """Returns the config of the class `LlamaForCausalLM` of the transformers library, whose arguments and outputs
        match those of ONNX programs that are exported from decoders.
        """
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **text_sizes(model)}


BRIDGE = DecoderBridge()

FAMILY = Family(
    model_type="gpt2",
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    module=Gpt,
    build=build,
    describe=describe,
    table=TABLE,
    bridge=BRIDGE,
)
