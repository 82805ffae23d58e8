"""Set prediction loss: each object is matched with one prediction, and all other predictions should be no object
(Carion et al. 2020, §3.1).
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxformer.losses.boxes import corners, generalized_iou
from jaxformer.metrics.means import Mean

INVALID = 1e5
"""Cost that replaces costs which are not finite, so that the search for the best match ends."""


@flax.struct.dataclass
class Targets:
    """Objects in a batch of images, padded to the same number per image."""

    boxes: jax.Array
    """Center x, center y, width and height as fractions of the image, [batch, objects, 4]."""
    labels: jax.Array
    """Label of each object, integers [batch, objects]."""
    weights: jax.Array
    """1 for objects, 0 for padding, [batch, objects]."""
    images: jax.Array
    """1 for images, 0 for rows of the batch without an image, [batch]."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Weights of the parts of the cost by which predictions are matched with objects."""

    label: float = 1.0
    """Weight of the probability of the object's label."""
    l1: float = 5.0
    """Weight of the sum of the absolute differences of the boxes."""
    giou: float = 2.0
    """Weight of the generalized intersection over union."""


def assign(costs: jax.Array, weights: jax.Array) -> jax.Array:
    """Assigns a different prediction to each object, with the lowest total cost (Kuhn 1955).

    Args:
      costs: cost of each pair, [batch, predictions, objects], with at least as many predictions as objects.
      weights: 1 for objects, 0 for padding, [batch, objects].

    Returns:
      Index of the prediction of each object, integers [batch, objects]. The entries of padding are arbitrary.
    """
    if costs.shape[1] < costs.shape[2]:
        raise ValueError(f"{costs.shape[1]} predictions for {costs.shape[2]} objects: expected at least as many")
    costs = jnp.where(jnp.isfinite(costs), costs, INVALID)
    costs = jnp.where(weights[:, None] > 0, costs, 0.0)  # Padding takes any prediction that is left.

    def of_image(cost):
        objects, predictions = optax.assignment.hungarian_algorithm(cost.T)
        return jnp.zeros(cost.shape[1], jnp.int32).at[objects].set(predictions.astype(jnp.int32))

    return jax.vmap(of_image)(costs)


def match(logits: jax.Array, boxes: jax.Array, targets: Targets, costs: Costs) -> jax.Array:
    """Matches predictions with objects. Returns the index of the prediction of each object, integers [batch, objects].

    Args:
      logits: class logits, [batch, predictions, labels + 1]. The last one means no object.
      boxes: predicted boxes, [batch, predictions, 4], as in `Targets.boxes`.
      targets: objects of the images.
      costs: weights of the parts of the cost.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32))
    one_hot = jax.nn.one_hot(targets.labels, logits.shape[-1])
    label = -jnp.einsum("bmc,bnc->bmn", probabilities, one_hot, precision="highest")
    distance = jnp.abs(boxes[:, :, None] - targets.boxes[:, None]).sum(-1)
    overlap = generalized_iou(corners(boxes)[:, :, None], corners(targets.boxes)[:, None])
    total = costs.label * label + costs.l1 * distance - costs.giou * overlap
    return assign(jax.lax.stop_gradient(total), targets.weights)


def set_losses(
    logits: jax.Array, boxes: jax.Array, targets: Targets, costs: Costs, no_object: float
) -> dict[str, Mean]:
    """Computes the losses of a set of predictions per image, after matching them with the objects.

    Args:
      logits: class logits, [batch, predictions, labels + 1]. The last one means no object.
      boxes: predicted boxes, [batch, predictions, 4], as in `Targets.boxes`.
      targets: objects of the images.
      costs: weights of the parts of the cost of a match.
      no_object: weight of predictions without an object in the class loss.

    Returns:
      Weighted means: `class_loss` is the cross-entropy in nats per prediction, `l1_loss` the absolute difference of
      the four numbers of a box, and `giou_loss` 1 minus the generalized intersection over union. The latter two are
      means over objects.
    """
    logits, boxes = logits.astype(jnp.float32), boxes.astype(jnp.float32)
    matched = match(logits, boxes, targets, costs)
    nothing = logits.shape[-1] - 1
    own = (matched[:, None] == jnp.arange(logits.shape[1])[:, None]) * targets.weights[:, None]  # [b, m, n]
    labels = jnp.where(own.sum(-1) > 0, (own * targets.labels[:, None]).sum(-1), nothing).astype(jnp.int32)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]
    weights = jnp.where(labels == nothing, no_object, 1.0) * targets.images[:, None]
    predicted = jnp.take_along_axis(boxes, matched[..., None], 1)
    overlap = generalized_iou(corners(predicted), corners(targets.boxes))
    return {
        "class_loss": Mean.of(losses, weights),
        "l1_loss": Mean.of(jnp.abs(predicted - targets.boxes).sum(-1), targets.weights),
        "giou_loss": Mean.of(1 - overlap, targets.weights),
    }
