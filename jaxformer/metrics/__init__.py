"""Metrics that training and evaluations report, computed from losses and predictions."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.metrics.averages import Average as Average
    from jaxformer.metrics.averages import Loss as Loss
    from jaxformer.metrics.base import Context as Context
    from jaxformer.metrics.base import DocumentMetric as DocumentMetric
    from jaxformer.metrics.base import Metric as Metric
    from jaxformer.metrics.boxes import AveragePrecision as AveragePrecision
    from jaxformer.metrics.error_rates import ErrorRates as ErrorRates
    from jaxformer.metrics.error_rates import character_error_rate as character_error_rate
    from jaxformer.metrics.error_rates import word_error_rate as word_error_rate
    from jaxformer.metrics.means import Covariance as Covariance
    from jaxformer.metrics.means import Mean as Mean
    from jaxformer.metrics.summaries import SummaryScores as SummaryScores
    from jaxformer.metrics.texts import Scores as Scores
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "metrics.averages": ("Average", "Loss"),
            "metrics.base": ("Context", "DocumentMetric", "Metric"),
            "metrics.boxes": ("AveragePrecision",),
            "metrics.error_rates": ("ErrorRates", "character_error_rate", "word_error_rate"),
            "metrics.means": ("Covariance", "Mean"),
            "metrics.summaries": ("SummaryScores",),
            "metrics.texts": ("Scores",),
        },
    )
