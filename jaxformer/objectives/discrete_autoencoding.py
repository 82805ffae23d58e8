"""Training of a discrete autoencoder: pixels, codebook, and even usage of the codes (van den Oord et al. 2017)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import fields
from jaxformer.layers.patches import check_images
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.codes import CodeUsage
from jaxformer.metrics.means import Mean, auxiliary, total, whole
from jaxformer.models.base import Model
from jaxformer.models.discrete_vae import DiscreteVae
from jaxformer.objectives.base import BatchObjective


@dataclasses.dataclass(frozen=True)
class DiscreteAutoencoding(BatchObjective[DiscreteVae]):
    """Reconstruction of images from discrete codes. The loss is the mean squared error of normalized pixels, plus the
    distance between vectors and their entries of the codebook, plus a term that keeps all codes in use.
    """

    commitment: float = 0.25
    """Weight of the term that moves the vectors of patches towards their entries of the codebook."""
    usage: float = 0.1
    """Weight of the Kullback–Leibler divergence of the mean usage of the codes in the batch from uniform usage, in
    nats.
    """

    model_inputs = required = ("images",)
    example_task = "ImageTask"
    in_transformers = False

    def __post_init__(self):
        fields.check(self)
        for name in ("commitment", "usage"):
            fields.at_least(f"objective.{name}", getattr(self, name), 0)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return {"pixel_error": 1.0, "codebook_error": 1.0, "commitment": self.commitment, "usage": self.usage}

    def check_model(self, model: Model) -> None:
        if not isinstance(getattr(model, "codes", None), int) or "images" not in model.inputs():
            raise self.wrong_model(model, "a DiscreteVae")

    def check(self, model: DiscreteVae, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        check_images((row["images"].capacity, *row["images"].shape), model.patch, model.channels)

    def vectors(self, model: DiscreteVae, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Any]:
        """Computes the mean usage of the codes by each image, float32 [batch, codes] (`image_usage`), and the errors of
        pixels and codebook as weighted means. Without a key, also the number of occurrences of each code.
        """
        output = self.apply_model(model, params, batch, key)
        weights, found = batch["weights"].sum(-1), output.quantized
        errors = jnp.square(output.pixels - output.targets).mean((1, 2, 3))
        terms: dict[str, Any] = {
            "image_usage": found.usage,
            "pixel_error": Mean.of(errors, weights),
            "codebook_error": Mean.of(found.errors, weights),
            "commitment": Mean.of(found.commitment, weights),
        }
        if key is None:
            counts = jnp.zeros(model.codes).at[whole(output.codes)].add(whole(weights)[:, None])
            terms["code_counts"] = Mean(counts, total(weights))
        return terms | auxiliary(output)

    def compare(
        self, model: DiscreteVae, params: Any, vectors: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """Computes how far the mean usage of the codes in the batch is from uniform usage, in nats (`usage`)."""
        weights = whole(batch["weights"].sum(-1))
        weight = weights.sum()
        shares = jnp.einsum("b,bv->v", weights, whole(vectors["image_usage"])) / jnp.maximum(weight, 1.0)
        logs = jnp.log(jnp.maximum(shares, 1e-12))
        divergence = jnp.sum(shares * logs) + np.log(model.codes)
        terms = {name: term for name, term in vectors.items() if isinstance(term, Mean)}
        return terms | {"usage": Mean(divergence * weight, weight)}

    def metrics(self, model: DiscreteVae) -> tuple[Metric, ...]:
        names = ("pixel_error", "codebook_error", "usage")
        return Loss.of(self.loss_weights), *map(Average, names), CodeUsage()
