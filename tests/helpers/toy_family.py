"""A model family that the library does not know: a decoder with parameter names of its own, and its Hugging Face form.

It is written as a user would write one, with nothing but the contract of models and a `Family`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families import gpt2
from jaxformer.interop.huggingface.families.family import Family
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.linear import LMHead, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, LMOutput, Model, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata


@flax.struct.dataclass
class ToyOutput(LMOutput):
    """The output of the toy."""


class Toy(Model):
    """A decoder with one stack, `body`, and tables `words` and `places`."""

    body: Transformer = Transformer(16, 2, 2, mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5))
    vocab: int | None = None
    max_length: int = 32

    def inputs(self) -> dict[str, InputSpec]:
        return {"tokens": TOKENS, "segments": SEGMENTS, "position_ids": POSITION_IDS}

    def stacks(self) -> dict[str, Transformer]:
        return {"body": self.body}

    def token_inputs(self) -> dict[str, TokenInput]:
        return {"tokens": TokenInput(self.vocab, self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        head = linear_flops(sizes["t"], self.body.width, self.vocab)
        return sizes["b"] * (stack_flops(self.body, sizes["t"], causal=True) + head)

    @property
    def is_generative(self) -> bool:
        return True

    @property
    def interop(self) -> str:
        return __name__

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        return "words", "places", "body"

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> ToyOutput:
        init, width = truncated_normal(0.02), self.body.width
        words = self.param("words", metadata.with_axes(init, "vd"), (self.vocab, width))
        places = self.param("places", metadata.with_axes(init, "_d"), (self.max_length, width))
        index = jnp.arange(tokens.shape[1]) if position_ids is None else position_ids
        x = (words[tokens] + places[index]).astype("float32")
        mask = Mask.causal(tokens.shape[1], segments)
        output = self.body(x, BlockInputs(mask=mask, position_ids=position_ids, train=train), cache)
        return ToyOutput(hidden=output.hidden, lm_head=LMHead(words), cache=output.cache, means=output.means)

    def new_cache(self, rows: int, slots: int) -> Cache:
        return self.body.new_cache(rows, slots)


LAYER, OURS = "transformer.h.{l}", "body/blocks"
PARTS = [f"{OURS}/attention/{part}" for part in ("query", "key", "value")]
TABLE = Table(
    (
        ParamMapping("words", "transformer.wte.weight", copies=("lm_head.weight",)),
        ParamMapping("places", "transformer.wpe.weight"),
        *norm(f"{OURS}/attention_norm", f"{LAYER}.ln_1"),
        ParamMapping(tuple(f"{part}/kernel" for part in PARTS), f"{LAYER}.attn.c_attn.weight", "d (n h k) -> n d h k"),
        ParamMapping(tuple(f"{part}/bias" for part in PARTS), f"{LAYER}.attn.c_attn.bias", "(n h k) -> n h k"),
        *linear(f"{OURS}/attention/output", f"{LAYER}.attn.c_proj", "(h k) d -> h k d"),
        *norm(f"{OURS}/mlp_norm", f"{LAYER}.ln_2"),
        *linear(f"{OURS}/mlp/up", f"{LAYER}.mlp.c_fc", ""),
        *linear(f"{OURS}/mlp/down", f"{LAYER}.mlp.c_proj", ""),
        *norm("body/norm", "transformer.ln_f"),
    ),
    prefix="transformer.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Toy:
    """The toy of a GPT-2's config."""
    model = gpt2.build(reader, names)
    return Toy(model.transformer, model.vocab, model.max_length)


def describe(model: Toy) -> dict[str, Any]:
    """The config of a GPT-2 that computes what the toy does."""
    return gpt2.describe(gpt2.Gpt(model.body, model.vocab, model.max_length))


FAMILIES = (Family("gpt2", ("GPT2LMHeadModel",), Toy, build, describe, TABLE, bridge=gpt2.BRIDGE),)
