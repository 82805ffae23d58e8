"""Metrics of a model's answers."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.metrics.means import Covariance as Covariance
    from jaxformer.metrics.means import Mean as Mean
    from jaxformer.metrics.texts import Scores as Scores
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "metrics.means": ("Covariance", "Mean"),
            "metrics.texts": ("Scores",),
        },
    )
