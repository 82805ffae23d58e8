"""Classes of images by softmax cross-entropy, with mixed images too (Dosovitskiy et al. 2021; Zhang et al. 2018)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.data.tasks.images import Prepared
from jaxformer.errors import InputError
from jaxformer.layers.patches import check_images
from jaxformer.metrics.labels import label_counts, label_scores
from jaxformer.metrics.means import Mean
from jaxformer.models.vit import Vit

ROWS, SHOWN = 32, 8
"""Images at a time in a prediction; images of a demonstration."""
TOP = 5
MOST_SCORED = 100
"""Labels of a model, at most, of which each has scores of its own in an evaluation."""


@dataclasses.dataclass(frozen=True)
class Recognised:
    """An image and its labels."""

    path: str
    """The file."""
    labels: tuple[tuple[str, float], ...]
    """The labels with their probabilities, the likeliest first."""

    def __str__(self) -> str:
        return "\n".join([self.path, *(f"  {share:6.1%}  {label}" for label, share in self.labels[:TOP])])


@dataclasses.dataclass(frozen=True)
class ImageClassification:
    """The class of each image; of a mixed image both classes in their shares."""

    label_smoothing: float = 0.0
    """Share of the label's probability that all labels divide in training (Szegedy et al. 2016)."""

    def __post_init__(self):
        fields.check(self)
        fields.within("objective.label_smoothing", self.label_smoothing, 0, 1, below=True)

    @property
    def problem_type(self) -> str:
        """What transformers calls it in a config.json."""
        return "single_label_classification"

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Vit, row: Mapping[str, Any]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        if not getattr(model, "labels", ()) or "images" not in model.inputs():
            kind = type(model).__name__ + " without labels" * (getattr(model, "labels", None) == ())
            raise InputError(f"objective=ImageClassification: needs a Vit with labels; the model is a {kind}")
        if missing := [name for name in ("images", "labels") if name not in row]:
            raise InputError(f"objective=ImageClassification: the task's rows have no {missing[0]}; use LabelledImages")
        check_images((row["images"].capacity, *row["images"].shape), model.patch, model.channels)

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {"images": batch["images"]}

    def __call__(self, model: Vit, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats) and accuracies of a batch, as weighted means.

        Args:
          model: a ViT of c labels.
          params: its parameters.
          batch: images [b, height, width, n]; labels, integers [b, 2], and their weights in each image, [b, 2].
          key: for dropout; None evaluates without label smoothing, and adds each label's counts.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, batch["images"], key is not None, pooled_only=True, rngs=rngs).logits
        labels, shares = batch["labels"], batch["weights"]
        log_probabilities = jax.nn.log_softmax(logits)
        losses = -jnp.sum(jnp.take_along_axis(log_probabilities, labels, -1) * shares, -1)
        weights = shares.sum(-1)  # 1 for each image, 0 for none.
        if key is not None and self.label_smoothing:
            uniform = -log_probabilities.mean(-1) * weights
            losses = (1 - self.label_smoothing) * losses + self.label_smoothing * uniform
        # Of a mixed image the one is asked for that has the larger part.
        target = jnp.take_along_axis(labels, jnp.argmax(shares, -1)[:, None], -1)
        above = jnp.sum(logits > jnp.take_along_axis(logits, target, -1), -1)
        means = {"loss": Mean(losses.sum(), weights.sum()), "accuracy": Mean.of(above < 1, weights)}
        if len(model.labels) > TOP:
            means["top_5_accuracy"] = Mean.of(above < TOP, weights)
        if key is None and len(model.labels) <= MOST_SCORED:
            targets, guesses = (jax.nn.one_hot(x, len(model.labels)) for x in (target[:, 0], jnp.argmax(logits, -1)))
            means |= label_counts(model.labels, targets, guesses, weights)
        return means

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """The loss, the accuracies, and after an evaluation the scores of each label: `recall/NAME` is its accuracy."""
        names = [name for name in ("loss", "accuracy", "top_5_accuracy") if name in means]
        return {name: float(means[name].value) for name in names} | label_scores(means)

    def encode(self, model: Vit, tokenizer: None, images: Sequence[Prepared]) -> dict[str, np.ndarray]:
        """The model's arguments for the images."""
        return {"images": np.stack([image.pixels for image in images])}

    def predict(self, model: Vit, params, tokenizer: None, images: Sequence[Prepared]) -> list[Recognised]:
        """The labels of each image, with their probabilities."""
        if not model.labels:
            raise InputError("model.labels=(): the model names no classes; train a Vit with labels from it by init")
        found = []
        for start in range(0, len(images), ROWS):
            part = images[start : start + ROWS]
            probabilities = np.asarray(_probabilities(model, params, np.stack([image.pixels for image in part])))
            for image, row in zip(part, probabilities, strict=True):
                order = np.argsort(-row, kind="stable")
                found.append(Recognised(image.path, tuple((model.labels[i], float(row[i])) for i in order)))
        return found

    def demonstrate(self, model: Vit, params, tokenizer: None, batch: Mapping[str, Any]) -> list[str]:
        """What the first images of a batch are taken for."""
        rows = np.flatnonzero(batch["weights"][:, 0])[:SHOWN]
        probabilities = np.asarray(_probabilities(model, params, batch["images"][rows]))
        lines = []
        for row, shares in zip(rows, probabilities, strict=True):
            target, guess = int(batch["labels"][row, 0]), int(shares.argmax())
            wrong = "" if guess == target else f", was {model.labels[target]}"
            lines.append(f"held-out image {row}: {model.labels[guess]} ({shares[guess]:.1%}){wrong}")
        return lines


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: Vit, params, images) -> jax.Array:
    return jax.nn.softmax(model.apply({"params": params}, images, pooled_only=True).logits)
