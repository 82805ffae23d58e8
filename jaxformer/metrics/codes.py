"""Metrics of how a discrete autoencoder uses its codes."""

import dataclasses

import numpy as np

from jaxformer.metrics.base import Metric, Terms
from jaxformer.metrics.means import Mean


@dataclasses.dataclass(frozen=True)
class CodeUsage(Metric[Mean]):
    """Share of the codes that never occur (`unused_codes`), and the exponential of the entropy of their frequencies
    (`code_perplexity`), which is the number of codes if all are equally frequent.
    """

    term: str = "code_counts"
    """Key of an array with the number of occurrences of each code, [codes], in the dict that the objective returns."""

    names = ("unused_codes", "code_perplexity")

    def update(self, terms: Terms) -> Mean | None:
        return terms[self.term].double() if self.term in terms else None

    def compute(self, state: Mean) -> dict[str, float]:
        counts = np.asarray(state.sum, np.float64)
        shares = counts / max(counts.sum(), 1.0)
        entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum()
        return {"unused_codes": float((counts == 0).mean()), "code_perplexity": float(np.exp(entropy))}
