"""Losses of models that predict one group of frames of speech after the other (Shen et al. 2018)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.metrics.means import Mean

LAST_WEIGHT = 5.0
"""Weight of the last frame of a speech in the loss of the stop logits, because there is only one."""


def frame_losses(output: Any, batch: Mapping[str, jax.Array], guided_heads: int, sigma: float) -> dict[str, Mean]:
    """Computes the losses of predicted frames, as weighted means over the frames of the speech.

    Args:
      output: `SpeechFramesOutput`, or an object with the same fields. The guided attention loss needs
        `memory_attention`.
      batch: spectrogram [batch, groups · reduction, mels]; frame_mask [batch, groups · reduction]; segments [batch,
        length].
      guided_heads: number of heads of each decoder layer whose cross-attention is guided.
      sigma: width of the band around the diagonal in which the guided attention loss is small.

    Returns:
      `spectrogram` and `before`, the mean absolute errors after and before the postnet; `stop`, the cross-entropy of
      the stop logits; and `attention`, the guided attention loss (Tachibana et al. 2018), if the output contains the
      attention weights.
    """
    target, real = batch["spectrogram"], (batch["frame_mask"] > 0).astype(jnp.float32)
    last = real * (1 - jnp.pad(real[:, 1:], [(0, 0), (0, 1)]))
    positive, negative = jax.nn.softplus(-output.stop_logits), jax.nn.softplus(output.stop_logits)
    found = {
        "spectrogram": Mean.of(jnp.abs(output.spectrogram - target).mean(-1), real),
        "before": Mean.of(jnp.abs(output.before - target).mean(-1), real),
        "stop": Mean.of(LAST_WEIGHT * last * positive + (1 - last) * negative, real),
    }
    if output.memory_attention is not None:
        groups = output.memory_attention.shape[-2]
        reduction = real.shape[1] // groups
        frames, tokens = real[:, reduction - 1 :: reduction], (batch["segments"] > 0).astype(jnp.float32)
        cost = 1 - jnp.exp(-jnp.square(_progress(tokens)[:, None] - _progress(frames)[..., None]) / (2 * sigma**2))
        values = output.memory_attention[:, :, :guided_heads] * cost[:, None]
        weights = jnp.broadcast_to((frames[..., None] * tokens[:, None])[:, None], values.shape)
        found["attention"] = Mean.of(values, weights)
    return found


def _progress(real: jax.Array) -> jax.Array:
    """Returns the index of each position as a fraction of the length of its row, [batch, length]. `real` is 1 for
    positions of the row, 0 for padding.
    """
    return jnp.arange(real.shape[1]) / jnp.maximum(real.sum(1, keepdims=True), 1)
