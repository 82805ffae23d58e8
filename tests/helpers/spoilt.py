"""A masked language model whose loss is not a number for some batches."""

import dataclasses

import jax.numpy as jnp

from jaxformer.metrics.means import Mean
from jaxformer.objectives.masked_lm import MaskedLM


@dataclasses.dataclass(frozen=True)
class Spoilt(MaskedLM):
    """The loss is NaN if a row's second token is one of `bad`."""

    bad: tuple[int, ...] = ()
    """Ids of the tokens that spoil a batch."""

    def __call__(self, model, params, batch, key=None):
        terms = super().__call__(model, params, batch, key)
        spoils = jnp.isin(batch["tokens"][:, 1], jnp.array((-1, *self.bad))).any()
        first = next(iter(self.loss_weights))
        factor = jnp.where(spoils, jnp.nan, 1.0)
        return terms | {first: Mean(terms[first].sum * factor, terms[first].weight)}
