"""Loss of training objectives that predict tokens."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxformer import fields
from jaxformer.losses.cross_entropy import decoded_cross_entropy
from jaxformer.metrics.means import Mean, auxiliary

NAMES = ("loss", "cross_entropy", "accuracy")


def check_terms(objective: Any) -> None:
    """Raises InputError unless an objective's `label_smoothing` is at least 0 and below 1, and its `z_loss` is at least
    0.
    """
    fields.within("objective.label_smoothing", objective.label_smoothing, 0, 1, below=True)
    fields.at_least("objective.z_loss", objective.z_loss, 0)


def token_means(objective: Any, model: Any, params: Any, batch: Mapping[str, jax.Array], key: Any) -> dict[str, Mean]:
    """Computes the loss and the accuracy of a model that predicts tokens, as weighted means.

    Returns a dict with the keys `loss` (cross-entropy with label smoothing and z-loss, in nats), `cross_entropy`
    (without them) and `accuracy`, and with the auxiliary losses and logged means of the model.
    """
    output = objective.apply_model(model, params, batch, key)
    means = decoded_cross_entropy(
        output.hidden,
        output.lm_head,
        batch["targets"],
        batch["weights"],
        objective.label_smoothing,
        objective.z_loss,
    )
    return dict(zip(NAMES, means, strict=True)) | auxiliary(output)
