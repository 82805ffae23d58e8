"""T5 family (Raffel et al. 2020) in versions 1.0, 1.1 and Flan, and mT5 family (Xue et al. 2021): conversion from and
to Hugging Face transformers.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.marian import EncoderDecoderBridge
from jaxformer.interop.huggingface.families.rows import attention, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import RelativePositions
from jaxformer.layers.transformer import Transformer
from jaxformer.models.t5 import T5


def _attention(ours: str, theirs: str) -> list[ParamMapping]:
    return attention(ours, *(f"{theirs}.{part}" for part in "qkvo"))


def _mlp(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the MLP to tensors of a Hugging Face checkpoint.

    In the checkpoint, a gated MLP has `wi_0` (the gate) and `wi_1` (our `up`); other MLPs have `wi` (our `up`).
    """
    gate, up = f"{ours}/gate/kernel", f"{ours}/up/kernel"
    return [
        ParamMapping(gate, f"{theirs}.wi_0.weight", "f d -> d f"),
        ParamMapping(up, f"{theirs}.wi_1.weight", "f d -> d f", requires=gate),
        ParamMapping(up, f"{theirs}.wi.weight", "f d -> d f", excludes=gate),
        ParamMapping(f"{ours}/down/kernel", f"{theirs}.wo.weight", "f d -> d f"),
    ]


def _stack(side: str) -> list[ParamMapping]:
    layer, ours = f"{side}.block.{{l}}.layer", f"{side}/blocks"
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    rows = [
        ParamMapping(f"{side}/position_embedding/bias", table),
        *_attention(f"{ours}/attention", f"{layer}.0.SelfAttention"),
        *norm(f"{ours}/attention_norm", f"{layer}.0.layer_norm"),
    ]
    last = 1
    if side == "decoder":
        rows += _attention(f"{ours}/cross_attention", f"{layer}.1.EncDecAttention")
        rows += norm(f"{ours}/cross_attention_norm", f"{layer}.1.layer_norm")
        last = 2
    rows += _mlp(f"{ours}/mlp", f"{layer}.{last}.DenseReluDense")
    rows += norm(f"{ours}/mlp_norm", f"{layer}.{last}.layer_norm")
    return rows + norm(f"{side}/norm", f"{side}.final_layer_norm")


TABLE = Table(
    (
        ParamMapping(
            "embeddings/token",
            "shared.weight",
            copies=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
        ),
        *_stack("encoder"),
        *_stack("decoder"),
        # transformers 5 omits a head that equals the embeddings. Exports include it, because older versions need it.
        ParamMapping("head", "lm_head.weight", tied_to="shared.weight"),
    ),
    known={"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": "never used"},
)


def build_t5(reader: ConfigReader, names: Collection[str]) -> T5:
    """Builds the model for a T5 config.

    T5 v1.0 has tied embeddings and scaled decoder outputs; v1.1 has neither.
    """
    # transformers 5 always writes tie_word_embeddings=true; scale_decoder_outputs has its former meaning.
    tie_embeddings = reader.flag("tie_word_embeddings", True)
    return _build(reader, tie_embeddings=reader.flag("scale_decoder_outputs", tie_embeddings), form="relu")


def build_mt5(reader: ConfigReader, names: Collection[str]) -> T5:
    """Builds the model for an mT5 config, which never scales decoder outputs, even if `tie_word_embeddings` is set."""
    reader.get("tie_word_embeddings")
    return _build(reader, tie_embeddings=False, form="gated-gelu")


def _build(reader: ConfigReader, tie_embeddings: bool, form: str) -> T5:
    depth = reader.integer("num_layers", 6)
    forms = {name: (Mlp, act) for name, act in ACTIVATIONS.items()}
    forms |= {f"gated-{name}": (GatedMlp, act) for name, act in ACTIVATIONS.items()}
    forms["gated-gelu"] = (GatedMlp, "gelu_tanh")  # In T5 this name means the tanh approximation.
    kind, act = reader.choice("feed_forward_proj", forms, form)
    for name in ("dense_act_fn", "is_gated_act", "scale_decoder_outputs"):
        reader.get(name)  # Implied by the fields above, or constant.
    sizes = {
        "width": reader.integer("d_model", 512),
        "heads": reader.integer("num_heads", 8),
        "attention": Attention(head_dim=reader.integer("d_kv", 64), bias=False, scale_scores=False),
        "mlp": kind(reader.integer("d_ff", 2048), act, bias=False),
        "norm": RMSNorm(reader.number("layer_norm_epsilon", 1e-6)),
        "dropout": (rate := reader.rate("dropout_rate", 0.1)),
        "attention_dropout": rate,
    }
    buckets = reader.integer("relative_attention_num_buckets", 32)
    longest = reader.integer("relative_attention_max_distance", 128)

    def make(depth: int, bidirectional: bool) -> Transformer:
        position_ids = RelativePositions(buckets, longest, bidirectional)
        return stack(reader, depth=depth, position_embedding=position_ids, **sizes)

    return T5(
        make(depth, True),
        make(reader.integer("num_decoder_layers", depth), False),
        vocab=reader.integer("vocab_size", 32_128),
        max_length=reader.integer("n_positions", 512),
        tie_embeddings=tie_embeddings,
    )


def describe_t5(model: T5) -> dict[str, Any]:
    """Converts the model to a T5 config."""
    return {"architectures": ["T5ForConditionalGeneration"]} | _fields(model)


def describe_mt5(model: T5) -> dict[str, Any]:
    """Converts the model to an mT5 config."""
    return {"architectures": ["MT5ForConditionalGeneration"]} | _fields(model)


def _fields(model: T5) -> dict[str, Any]:
    stack, positions = model.encoder, model.encoder.position_embedding
    if not isinstance(positions, RelativePositions):
        raise InputError("model.encoder.position_embedding: expected RelativePositions")
    act = NAMES[stack.mlp.activation]
    if isinstance(stack.mlp, GatedMlp):
        act = {"gelu_new": "gated-gelu", "relu": "gated-relu", "silu": "gated-silu"}[act]
    return {
        "is_encoder_decoder": True,
        "vocab_size": model.vocab,
        "n_positions": model.max_length,
        "d_model": stack.width,
        "d_kv": stack.attention.sizes(stack.heads, stack.width)[1],
        "d_ff": stack.mlp.inner(stack.width),
        "num_layers": stack.depth,
        "num_decoder_layers": model.decoder.depth,
        "num_heads": stack.heads,
        "relative_attention_num_buckets": positions.buckets,
        "relative_attention_max_distance": positions.longest,
        "dropout_rate": stack.dropout,
        "layer_norm_epsilon": stack.norm.epsilon,
        "feed_forward_proj": act,
        # transformers before 5 scales if the first field is set, 5.0 if the second one is.
        "tie_word_embeddings": model.tie_embeddings,
        "scale_decoder_outputs": model.tie_embeddings,
    }


BRIDGE = EncoderDecoderBridge()
T5_FAMILY = Family(
    model_type="t5",
    architectures=("T5ForConditionalGeneration",),
    module=T5,
    build=build_t5,
    describe=describe_t5,
    table=TABLE,
    special_tokens=("pad", "unk", "eos"),
    layout="ended",
    bridge=BRIDGE,
)
MT5_FAMILY = dataclasses.replace(
    T5_FAMILY,
    model_type="mt5",
    architectures=("MT5ForConditionalGeneration",),
    build=build_mt5,
    describe=describe_mt5,
)
