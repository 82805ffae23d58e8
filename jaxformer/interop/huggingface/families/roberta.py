"""RoBERTa family (Liu et al. 2019): conversion from and to Hugging Face transformers. RoBERTa is BERT with position ids
that start after the padding id.
"""

from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bert import BRIDGE, encoder, encoder_fields, heads
from jaxformer.interop.huggingface.families.family import MARKS, Family
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.models.bert import Bert

EMBEDDINGS, LAYER = "roberta.embeddings", "roberta.encoder.layer.{l}"

TABLE = Table(
    (
        ParamMapping("embeddings/token", f"{EMBEDDINGS}.word_embeddings.weight", copies=("lm_head.decoder.weight",)),
        ParamMapping("embeddings/position", f"{EMBEDDINGS}.position_embeddings.weight"),
        ParamMapping("embeddings/token_type", f"{EMBEDDINGS}.token_type_embeddings.weight"),
        *norm("embeddings/norm", f"{EMBEDDINGS}.LayerNorm"),
        *attention(
            "transformer/blocks/attention",
            f"{LAYER}.attention.self.query",
            f"{LAYER}.attention.self.key",
            f"{LAYER}.attention.self.value",
            f"{LAYER}.attention.output.dense",
        ),
        *norm("transformer/blocks/attention_norm", f"{LAYER}.attention.output.LayerNorm"),
        *linear("transformer/blocks/mlp/up", f"{LAYER}.intermediate.dense"),
        *linear("transformer/blocks/mlp/down", f"{LAYER}.output.dense"),
        *norm("transformer/blocks/mlp_norm", f"{LAYER}.output.LayerNorm"),
        *linear("pooler", "roberta.pooler.dense"),
        *linear("masked_lm/dense", "lm_head.dense"),
        *norm("masked_lm/norm", "lm_head.layer_norm"),
        ParamMapping("masked_lm/bias", "lm_head.bias", copies=("lm_head.decoder.bias",)),
    ),
    known={f"{EMBEDDINGS}.position_ids": "0, 1, 2, ..."},
    prefix="roberta.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Bert:
    """Builds the model for a RoBERTa config. `names` are the names of the stored tensors, which determine the heads of
    the model.
    """
    reader.must("position_embedding_type", "absolute")
    reader.must("tie_word_embeddings", True)
    found = heads(names, pooler="pooler.dense.weight", masked_lm="lm_head.dense.weight")
    if "masked_lm" in found:
        reader.must("hidden_act", "gelu")  # The head supports no other activation.
    offset = reader.get("pad_token_id", 1) + 1
    rows = reader.integer("max_position_embeddings", 512)
    if rows <= offset:
        raise reader.error("max_position_embeddings", rows, f"more than {offset}, the row of the first position")
    return Bert(
        encoder(reader),
        vocab=reader.integer("vocab_size"),
        max_length=rows - offset,
        token_types=reader.integer("type_vocab_size", 2),
        position_offset=offset,
        prediction_heads=found,
    )


def describe(model: Bert) -> dict[str, Any]:
    """Converts the model to a RoBERTa config."""
    if model.position_offset < 1:
        raise InputError(
            "model.position_offset: expected at least 1, because RoBERTa's positions start after the padding id"
        )
    return {
        "architectures": ["RobertaForMaskedLM" if "masked_lm" in model.prediction_heads else "RobertaModel"],
        "position_embedding_type": "absolute",
        "type_vocab_size": model.token_types,
        "max_position_embeddings": model.max_length + model.position_offset,
        "pad_token_id": model.position_offset - 1,
    } | encoder_fields(model)


FAMILY = Family(
    model_type="roberta",
    architectures=("RobertaForMaskedLM", "RobertaModel"),
    module=Bert,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("RobertaModel",),
    special_tokens=(*MARKS, "bos", "eos"),
    layout="encoder",
    bridge=BRIDGE,
    own_pad=True,
)
