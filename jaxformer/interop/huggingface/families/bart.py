"""BART family (Lewis et al. 2020): conversion from and to Hugging Face transformers."""

from collections.abc import Collection
from typing import Any

from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families import marian
from jaxformer.interop.huggingface.families.family import MARKS, Family
from jaxformer.interop.huggingface.families.rows import norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.models.bart import Bart


def _entry(side: str) -> list[ParamMapping]:
    table = ParamMapping(f"{side}_entry/position", f"model.{side}.embed_positions.weight")
    return [table, *norm(f"{side}_entry/norm", f"model.{side}.layernorm_embedding")]


TABLE = Table(
    (
        *marian.shared_rows(),
        *_entry("encoder"),
        *marian.stack_rows("encoder"),
        *_entry("decoder"),
        *marian.stack_rows("decoder"),
    ),
    known={"model.encoder.version": "fairseq's", "model.decoder.version": "fairseq's"},
)


def build(reader: ConfigReader, names: Collection[str]) -> Bart:
    """Builds the JAX model for a BART config. `names` are the names of the stored tensors, which determine whether the
    output layer has a bias.
    """
    reader.must("normalize_embedding", True)
    reader.must("static_position_embeddings", False)
    reader.must("extra_pos_embeddings", 2)
    return Bart(
        *marian.stacks(reader),
        vocab=reader.integer("vocab_size", 50_265),
        max_length=reader.integer("max_position_embeddings", 1024),
        scale_embeddings=reader.flag("scale_embedding", False),
        tie_embeddings=reader.flag("tie_word_embeddings", True),
        head_bias="final_logits_bias" in names,
    )


def describe(model: Bart) -> dict[str, Any]:
    """Converts a JAX model to a BART config."""
    return {"architectures": ["BartForConditionalGeneration"]} | marian.fields(model)


BRIDGE = marian.EncoderDecoderBridge(decoder_start="eos_token_id")  # As in the paper.
FAMILY = Family(
    model_type="bart",
    architectures=("BartForConditionalGeneration",),
    module=Bart,
    build=build,
    describe=describe,
    table=TABLE,
    special_tokens=(*MARKS, "bos", "eos"),
    layout="ended",
    bridge=BRIDGE,
)
