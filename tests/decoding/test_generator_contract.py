"""Decoding of a model that the library does not know: an encoder of pictures and a decoder with a forced prefix."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params
from small_bert import small_transformer as small

from jaxformer.decoding.generate import Prompt, generate, stream
from jaxformer.decoding.settings import Decoding
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.embeddings import Embeddings
from jaxformer.layers.linear import Linear, LMHead
from jaxformer.layers.masks import Mask
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import TOKENS, InputSpec, LMOutput, Memory, Model, TokenInput

VOCAB, LONGEST, NEW = 37, 24, 7


class Captioner(Model):
    """Writes about a picture of 4 strips."""

    decoder: Transformer = small(norm_position="before")
    vocab: int = VOCAB
    max_length: int = LONGEST

    def setup(self):
        self.embeddings = Embeddings(16, self.vocab, self.max_length)
        self.strips = Linear("bsf,fd->bsd", (6, 16), dtype="float32")

    def inputs(self):
        return {"pixels": InputSpec("bsf", "strips", "float32"), "tokens": TOKENS}

    def stacks(self):
        return {"decoder": self.decoder}

    def token_inputs(self):
        return {"tokens": TokenInput(self.vocab, self.max_length)}

    @property
    def is_generative(self):
        return True

    @property
    def is_encoder_decoder(self):
        return True

    def __call__(self, pixels, tokens):
        x, table = self.embeddings(tokens)
        given = BlockInputs(mask=Mask.causal(tokens.shape[1]), memory=self.strips(pixels))
        return LMOutput(hidden=self.decoder(x, given).hidden, lm_head=LMHead(table))

    def encode_prompt(self, pixels):
        return Memory(self.strips(pixels), jnp.ones(pixels.shape[:2], jnp.int32))

    def decode(self, tokens, position_ids, cache, memory=None, prefix=None):
        x, table = self.embeddings(tokens, position_ids)
        output = self.decoder(x, BlockInputs(position_ids=position_ids, memory=memory), cache)
        return LMOutput(hidden=output.hidden, lm_head=LMHead(table), cache=output.cache)


MODEL = Captioner()
PIXELS = np.random.default_rng(0).normal(size=(3, 4, 6)).astype(np.float32)
PARAMS = noisy_params(MODEL, PIXELS, jnp.zeros((3, 2), jnp.int32))
PREFIXES = [[5, 9, 2], [5, 9], [7, 9, 2]]
PROMPTS = [
    Prompt(np.array(prefix, np.int32), {"pixels": pixels}) for prefix, pixels in zip(PREFIXES, PIXELS, strict=True)
]
apply = jax.jit(MODEL.apply)


def by_hand(pixels, prefix, count=NEW):
    """The likeliest tokens, each from a full pass over a row of fixed length."""
    tokens = list(prefix)
    for _ in range(count):
        row = np.zeros((1, LONGEST), np.int32)
        row[0, : len(tokens)] = tokens
        output = apply({"params": PARAMS}, pixels[None], row)
        tokens.append(int(output.lm_head.logits(output.hidden)[0, len(tokens) - 1].argmax()))
    return tokens[len(prefix) :]


@pytest.mark.slow
def test_pictures_and_forced_prefixes_of_several_lengths_decode_together():
    outputs = generate(MODEL, PARAMS, PROMPTS, Decoding(max_new_tokens=NEW), start=0)
    assert [output.tolist() for output in outputs] == [by_hand(*pair) for pair in zip(PIXELS, PREFIXES, strict=True)]
    assert len({tuple(output.tolist()) for output in outputs}) > 1, "the picture counts"


def test_the_prompt_streams():
    pieces = list(stream(MODEL, PARAMS, PROMPTS[0], Decoding(max_new_tokens=NEW), start=0))
    assert np.concatenate(pieces).tolist() == by_hand(PIXELS[0], PREFIXES[0])


@pytest.mark.slow
def test_beam_search_finds_an_output_at_least_as_likely():
    (greedy,) = generate(MODEL, PARAMS, PROMPTS[:1], Decoding(max_new_tokens=NEW), start=0)
    (best,) = generate(MODEL, PARAMS, PROMPTS[:1], Decoding(max_new_tokens=NEW, num_beams=4), start=0)

    def likelihood(output):
        tokens = np.array([PREFIXES[0] + output.tolist()])
        result = apply({"params": PARAMS}, PIXELS[:1], tokens)
        shares = nn.log_softmax(result.lm_head.logits(result.hidden))[0, len(PREFIXES[0]) - 1 : -1]
        return float(np.take_along_axis(np.asarray(shares), output[:, None], 1).sum())

    assert likelihood(best) >= likelihood(greedy) - 1e-5


@pytest.mark.parametrize("prefix", [[], [99]])
def test_impossible_prefix_is_refused(prefix):
    from jaxformer.errors import InputError

    with pytest.raises(InputError, match="forced prefix"):
        generate(MODEL, PARAMS, [Prompt(np.array(prefix, np.int32), {"pixels": PIXELS[0]})], start=0)
