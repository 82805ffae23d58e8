"""Softmax cross-entropy over a large vocabulary, computed without storing all logits at once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.layers.linear import LMHead
from jaxformer.metrics.means import Mean, total
from jaxformer.parallel import sharding

CHUNK_ELEMENTS = 1 << 26
"""Maximum number of logits that a device stores at once: 256 MiB in float32."""


class TokenLoss(NamedTuple):
    """Losses and accuracy of a batch of predicted tokens, as weighted means."""

    loss: Mean
    """Cross-entropy with label smoothing and z-loss, in nats. Only this field has a gradient."""
    cross_entropy: Mean
    """Cross-entropy without label smoothing and z-loss, in nats."""
    accuracy: Mean
    """Share of positions at which the token with the highest logit is the target."""


def decoded_cross_entropy(
    x: jax.Array,
    lm_head: LMHead,
    targets: jax.Array,
    weights: jax.Array,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenLoss:
    """Applies the output layer and computes the cross-entropy of its logits, in chunks of positions.

    The gradient is computed together with the loss, while the logits of a chunk are in memory. Since the loss is a sum,
    the backward pass only has to scale it. No array of size [batch, predictions, vocab] exists, and no logits are
    computed twice.

    Args:
      x: hidden vectors, [batch, predictions, embed].
      lm_head: output layer, which maps vectors to logits.
      targets: target token ids, integers [batch, predictions].
      weights: weight of each position, float32 [batch, predictions]; 0 for positions without a target.
      label_smoothing: probability mass that is distributed uniformly over the vocabulary (Szegedy et al. 2016).
      z_loss: weight of the squared logarithm of the partition function, which keeps logits small (Chowdhery et al.
        2022).
    """
    sums = _sums((label_smoothing, z_loss), x, lm_head, targets, weights)
    weight = total(weights)
    loss, cross_entropy, accuracy = (Mean(one, weight) for one in sums)
    return TokenLoss(loss, jax.lax.stop_gradient(cross_entropy), jax.lax.stop_gradient(accuracy))


def _only_sums(terms, x, lm_head, targets, weights) -> tuple[jax.Array, ...]:
    return _scan_chunks(terms, x, lm_head, targets, weights, with_gradient=False)[0]


_sums = jax.custom_vjp(_only_sums, nondiff_argnums=(0,))


def _forward(terms, x, lm_head, targets, weights):
    return _scan_chunks(terms, x, lm_head, targets, weights, with_gradient=True)


def _backward(terms, gradients, cotangents):
    del terms
    (dx, dhead), loss_cotangent = gradients, cotangents[0]
    scaled = jax.tree.map(lambda g: (g * loss_cotangent).astype(g.dtype), (dx, dhead))
    return *scaled, None, None


_sums.defvjp(_forward, _backward)


def _scan_chunks(terms, x, lm_head, targets, weights, with_gradient):
    """Computes the loss of all positions, chunk by chunk.

    Returns the sums over positions of the loss, of the plain cross-entropy and of the correct predictions. If
    `with_gradient`, also returns the gradients of the loss with respect to `x` and `lm_head`, otherwise None. `terms`
    is the pair of label smoothing and z-loss.
    """
    x = sharding.constrain(x, "btd")
    rows, shards = x.shape[0], _num_shards(x, 1)
    part = x.shape[1] // shards
    chunks = num_chunks(rows, part, len(lm_head.table))
    if chunks == 1:
        return _chunk(x, targets, weights, lm_head, terms, 1 if with_gradient else None)
    # All chunks use the table, which is gathered only once. Their gradients of it are summed on each device, and only
    # then over devices, unless positions are split.
    lm_head = lm_head.replace(table=sharding.constrain(lm_head.table, "v_"))
    parts = _num_shards(x, 0) if shards == 1 else 1
    one = functools.partial(_chunk, lm_head=lm_head, terms=terms, parts=parts if with_gradient else None)
    size = -(-part // chunks)

    def split(array):  # [b, m, ...] -> [chunk, b, shards · size, ...]; each chunk has positions of every device
        rest = array.shape[2:]
        padding = [(0, 0), (0, 0), (0, chunks * size - part)] + [(0, 0)] * len(rest)
        cut = jnp.pad(array.reshape(rows, shards, part, *rest), padding).reshape(rows, shards, chunks, size, *rest)
        return jnp.moveaxis(cut, 2, 0).reshape(chunks, rows, shards * size, *rest)

    def body(carry, chunk):
        sums, gradients = one(*chunk)
        dx, dhead = (None, None) if gradients is None else gradients
        return jax.tree.map(jnp.add, carry, (sums, dhead)), dx

    zeros = jax.tree.map(jnp.zeros_like, lm_head) if with_gradient else None
    if zeros is not None and parts > 1:
        whole = jnp.zeros((parts, *lm_head.table.shape), lm_head.table.dtype)
        zeros = zeros.replace(table=sharding.constrain(whole, "bv_"))
    start = ((jnp.float32(0),) * 3, zeros)
    (sums, dhead), dx = jax.lax.scan(body, start, tuple(map(split, (x, targets, weights))))
    if dx is None:
        return sums, None
    if parts > 1:
        dhead = dhead.replace(table=dhead.table.sum(0))
    dx = jnp.moveaxis(dx.reshape(chunks, rows, shards, size, -1), 0, 2).reshape(rows, shards, chunks * size, -1)
    return sums, (dx[:, :, :part].reshape(x.shape), dhead)


def _chunk(x, targets, weights, lm_head, terms, parts) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, LMHead] | None]:
    """Computes the loss of one chunk of positions, and returns the same values as `_scan_chunks`.

    `parts` is the number of parts of the rows whose gradients of the table are kept apart. If it is more than 1, that
    gradient has the shape [parts, vocab, embed]. If it is None, gradients are not computed.

    Batch and positions are flattened to one axis, so that each product is a plain matrix product, unless the mesh
    splits the positions.
    """
    shape, width, (smoothing, z_loss) = x.shape, x.shape[-1], terms
    leading = shape[:-1] if _num_shards(x, 1) > 1 else (-1,)
    x, targets, weights = x.reshape(*leading, width), targets.reshape(*leading, 1), weights.reshape(*leading, 1)
    logits = sharding.constrain(lm_head.logits(x), "btv" if x.ndim > 2 else "bv")
    vocab = logits.shape[-1]
    largest = logits.max(-1, keepdims=True)
    partition = jnp.exp(logits - largest).sum(-1, keepdims=True)
    log_partition = jnp.log(partition) + largest
    wanted = jnp.take_along_axis(logits, targets, -1)
    losses = cross_entropy = log_partition - wanted
    if smoothing:
        losses = losses + smoothing * (wanted - logits.mean(-1, keepdims=True))
    if z_loss:
        losses = losses + z_loss * log_partition**2
    sums = tuple(total(weights * values) for values in (losses, cross_entropy, wanted >= largest))
    if parts is None:
        return sums, None
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets
    of_partition = weights * (1 + 2 * z_loss * log_partition) / partition if z_loss else weights / partition
    dlogits = jnp.exp(logits - largest) * of_partition - jnp.where(is_target, (1 - smoothing) * weights, 0)
    if smoothing:
        dlogits = dlogits - weights * (smoothing / vocab)
    vectors, table = lm_head.operands(x)
    dlogits = dlogits.astype(vectors.dtype)
    dx = jnp.matmul(dlogits, table, preferred_element_type=x.dtype).reshape(shape)
    summed = tuple(range(x.ndim - 1))
    if parts > 1:
        split = [array.reshape(parts, -1, array.shape[-1]) for array in (dlogits, vectors)]
        dtable = jnp.einsum("pnv,pnd->pvd", *split, preferred_element_type=jnp.float32)
        dtable = sharding.constrain(dtable, "bv_")
    else:
        dtable = jnp.tensordot(dlogits, vectors, (summed, summed), preferred_element_type=jnp.float32)
    dbias = None
    if lm_head.bias is not None:
        # As a product: XLA on CPU sums columns thirty times slower.
        ones = jnp.ones((1, *x.shape[:-1]), dlogits.dtype)
        axes = tuple(range(1, x.ndim)), summed
        dbias = jnp.tensordot(ones, dlogits, axes, preferred_element_type=jnp.float32)[0]
    return sums, (dx, lm_head.replace(table=dtable, bias=dbias))


def _num_shards(x: jax.Array, axis: int) -> int:
    """Returns the number of shards into which the current mesh splits an axis of `x` [batch, predictions, embed]."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else sharding.parts(sharding.partition_spec("btd", x.shape, mesh)[axis], mesh)


def num_chunks(rows: int, positions: int, vocab: int) -> int:
    """Returns the number of chunks into which a device divides its positions, such that the logits of a chunk have at
    most `CHUNK_ELEMENTS` elements.

    Args:
      rows: number of rows of the batch on all devices.
      positions: number of positions of a row on one device.
      vocab: size of the vocabulary.
    """
    devices = sharding.current_num_parts("batch")
    return min(positions, -(-rows * positions * vocab // (CHUNK_ELEMENTS * devices)))


def class_cross_entropy(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> tuple[Mean, Mean]:
    """Computes the cross-entropy (nats) and the accuracy of classification, as weighted means. Unlike
    `decoded_cross_entropy`, it stores all logits at once.

    Args:
      logits: [..., classes].
      targets: class indices, integers [...].
      weights: weight of each example, float32 [...].
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    losses = -jnp.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    return Mean.of(losses, weights), Mean.of(jnp.argmax(logits, -1) == targets, weights)
