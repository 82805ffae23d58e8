"""Set prediction loss for object detection (Carion et al. 2020, §3.1): each object is matched with one prediction, and
all other predictions should have the class for no object.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from jaxformer.losses.boxes import corners, generalized_iou
from jaxformer.metrics.means import Mean

INVALID = 1e5
"""Cost that replaces infinite and NaN costs, with which the search for the best match might not end."""


@flax.struct.dataclass
class Targets:
    """Objects in a batch of images, padded to the same number of objects per image."""

    boxes: jax.Array
    """Box of each object: center x, center y, width and height as fractions of the image, [batch, objects, 4]."""
    labels: jax.Array
    """Class index of each object, integers [batch, objects]."""
    weights: jax.Array
    """1 for objects, 0 for padding, [batch, objects]."""
    images: jax.Array
    """1 for batch rows with an image, 0 for padding rows, [batch]."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Weights of the terms in the cost of matching a prediction with an object. The match with the lowest total cost is
    chosen.
    """

    label: float = 1.0
    """Weight of the predicted probability of the object's class. A higher probability lowers the cost."""
    l1: float = 5.0
    """Weight of the L1 distance between the predicted box and the object's box."""
    giou: float = 2.0
    """Weight of the generalized intersection over union of the two boxes. A larger overlap lowers the cost."""


def assign(costs: jax.Array, weights: jax.Array) -> jax.Array:
    """Assigns a different prediction to each object, so that the total cost is as low as possible (Hungarian algorithm,
    Kuhn 1955).

    Args:
      costs: cost of each pair of a prediction and an object, [batch, predictions, objects]. There are at least as many
        predictions as objects.
      weights: 1 for objects, 0 for padding, [batch, objects].

    Returns:
      Index of the prediction that is assigned to each object, integers [batch, objects]. The entries of padding are
      arbitrary.
    """
    if costs.shape[1] < costs.shape[2]:
        raise ValueError(f"{costs.shape[1]} predictions for {costs.shape[2]} objects: expected at least as many")
    costs = jnp.where(jnp.isfinite(costs), costs, INVALID)
    # Each row of padding has a column of its own at no cost, so that the search for it ends after one step. If it took
    # any prediction that is left, these searches would take most of the time.
    real = weights[..., None] > 0
    of_predictions = jnp.where(real, costs.swapaxes(1, 2), 2 * INVALID)
    of_padding = jnp.where(~real & jnp.eye(costs.shape[2], dtype=bool), 0.0, 2 * INVALID)

    def of_image(cost):
        objects, columns = optax.assignment.hungarian_algorithm(cost)
        return jnp.zeros(len(cost), jnp.int32).at[objects].set(columns.astype(jnp.int32))

    found = jax.vmap(of_image)(jnp.concatenate([of_predictions, of_padding], -1))
    return jnp.minimum(found, costs.shape[1] - 1)


def match(logits: jax.Array, boxes: jax.Array, targets: Targets, costs: Costs) -> jax.Array:
    """Matches each object with a prediction, such that the total cost is lowest. Returns the index of the prediction of
    each object, integers [batch, objects].

    Args:
      logits: class logits, [batch, predictions, labels + 1]. The last class means no object.
      boxes: predicted boxes, [batch, predictions, 4], as in `Targets.boxes`.
      targets: objects of the images.
      costs: weights of the terms in the cost of a match.
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
    """Computes the losses of the predicted objects of each image, after matching the predictions with the target
    objects.

    Args:
      logits: class logits, [batch, predictions, labels + 1]. The last class means no object.
      boxes: predicted boxes, [batch, predictions, 4], as in `Targets.boxes`.
      targets: objects of the images.
      costs: weights of the terms in the cost of a match.
      no_object: weight in the class loss of predictions that are not matched with an object.

    Returns:
      Weighted means, keyed by name: `class_loss` is the cross-entropy in nats per prediction, `l1_loss` the L1 distance
      of the four coordinates of a box, and `giou_loss` 1 minus the generalized intersection over union. The latter two
      are means over objects.
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
