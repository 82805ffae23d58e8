"""Connectionist temporal classification (Graves et al. 2006): the loss of a sequence of labels that is not aligned with
the frames from which it is predicted.
"""

import jax
import jax.numpy as jnp
import optax


def ctc_losses(
    logits: jax.Array, frames: jax.Array, targets: jax.Array, weights: jax.Array, blank: int = 0
) -> jax.Array:
    """Computes the negative log-probability of each sequence of labels: that of all alignments with the frames, in
    nats, float32 [batch].

    Args:
      logits: logits of the labels and the blank, float32 [batch, frames, vocab].
      frames: number of frames without padding, integers [batch].
      targets: labels, integers [batch, length]. None of them is the blank.
      weights: 1 for labels, 0 for padding at the end, [batch, length].
      blank: id of the blank.

    If the frames are too few for the labels (see `fits`), the result is large, but finite.
    """
    padding = (jnp.arange(logits.shape[1]) >= frames[:, None]).astype(jnp.float32)
    return optax.ctc_loss(logits, padding, targets, 1.0 - (weights > 0), blank_id=blank)


def fits(frames: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns whether each sequence of labels can be aligned with its frames, boolean [batch]. A label needs a frame,
    and two equal labels in succession need another one for the blank between them.

    Args:
      frames: number of frames without padding, integers [batch].
      targets: labels, integers [batch, length].
      weights: 1 for labels, 0 for padding at the end, [batch, length].
    """
    real = weights > 0
    repeated = (targets[:, 1:] == targets[:, :-1]) & real[:, 1:]
    return frames >= real.sum(1) + repeated.sum(1)
