"""Generates speech frame by frame, with a cache (Shen et al. 2018)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.models.speech_t5 import SpeechT5


@flax.struct.dataclass
class Texts:
    """Batch of padded texts to speak."""

    tokens: Any
    """Token ids, integers [batch, length]."""
    segments: Any
    """1 for tokens, 0 for padding, integers [batch, length]."""
    speaker: Any
    """Vectors of the speakers, float32 [batch, size]."""
    limits: Any
    """Maximum number of decoding steps of each text, integers [batch]."""


class GeneratedFrames(NamedTuple):
    """Speech of a batch of texts."""

    log_mel: jax.Array
    """Log-mel spectrograms, float32 [batch, frames, mels]. Frames after the end of a speech are not meaningful."""
    lengths: jax.Array
    """Number of frames of each speech, int32 [batch]."""


class _State(NamedTuple):
    """State of the loop over decoding steps."""

    step: jax.Array
    """Number of decoding steps so far."""
    previous: jax.Array
    """Last frame of each speech, float32 [batch, 1, mels]."""
    cache: Any
    """Key-value cache of the decoder."""
    frames: jax.Array
    """Frames so far, float32 [batch, steps · reduction, mels]."""
    lengths: jax.Array
    """Number of decoding steps of each speech that has ended, int32 [batch]. 0 for others."""


@functools.partial(jax.jit, static_argnums=(0, 5))
def generate_frames(
    model: SpeechT5, params: Any, texts: Texts, threshold: jax.Array, key: jax.Array, steps: int
) -> GeneratedFrames:
    """Speaks texts. A speech ends if the probabilities of the end at all frames of a step add up to a threshold, or
    after its maximum number of steps.

    Args:
      model: model that predicts the next frames.
      params: parameters of the model.
      texts: texts and speakers.
      threshold: threshold of the probability of the end, a scalar.
      key: random key of the dropout that remains active in prediction.
      steps: number of steps for which there is room, at least the largest of `texts.limits`.
    """

    def apply(*arguments, method: str, rngs: Any = None, **named):
        return model.apply({"params": params}, *arguments, method=method, rngs=rngs, **named)

    def advance(state: _State, memory: jax.Array | None = None) -> _State:
        rngs = {"dropout": jax.random.fold_in(key, state.step)}
        output: Any = apply(state.previous, texts.speaker, state.cache, memory=memory, method="next_frames", rngs=rngs)
        new = output.before
        frames = jax.lax.dynamic_update_slice_in_dim(state.frames, new, state.step * new.shape[1], axis=1)
        ends = jax.nn.sigmoid(output.stop_logits).sum(-1) >= threshold
        step = state.step + 1
        ended = (state.lengths == 0) & (ends | (step >= texts.limits))
        return _State(step, new[:, -1:], output.cache, frames, jnp.where(ended, step, state.lengths))

    rows, mels, reduction = len(texts.tokens), model.mels, model.reduction
    memory = apply(texts.tokens, texts.segments, method="encode_prompt").hidden
    cache = dataclasses.replace(
        model.new_cache(rows, steps), segments=jnp.ones((rows, steps), jnp.int32), memory_segments=texts.segments
    )
    frames = jnp.zeros((rows, steps * reduction, mels), jnp.float32)
    first = _State(jnp.zeros((), jnp.int32), frames[:, :1], cache, frames, jnp.zeros(rows, jnp.int32))
    # The first step computes the keys and values of the memory.
    state = jax.lax.while_loop(lambda state: (state.lengths == 0).any(), advance, advance(first, memory))
    lengths = state.lengths * reduction
    return GeneratedFrames(apply(state.frames, lengths, method="refine"), lengths)
