"""Masks of spans of frames, and negative examples among them, for pretraining on speech (Baevski et al. 2020, §3)."""

import dataclasses

import numpy as np

from jaxformer import fields


@dataclasses.dataclass(frozen=True)
class SpanMasking:
    """Masks random spans of consecutive frames. Spans may overlap, so fewer frames are masked than `rate` says."""

    rate: float = 0.65
    """Number of frames in all spans, as a fraction of the frames of a sound. Spans that overlap count twice."""
    length: int = 10
    """Number of frames per span."""
    min_spans: int = 2
    """Minimum number of spans per sound, if it has enough frames."""

    def __post_init__(self):
        fields.check(self)
        fields.within("data.task.masking.rate", self.rate, 0, 1)
        fields.at_least("data.task.masking.length", self.length, 1)
        fields.at_least("data.task.masking.min_spans", self.min_spans, 0)

    def __call__(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Chooses the frames of a sound to mask, uint8 [frames]: 1 for masked frames.

        The number of spans is rate · frames / length, rounded up or down at random so that this is its mean. Their
        starts are drawn without replacement.
        """
        masked = np.zeros(frames, np.uint8)
        starts = frames - self.length + 1
        if starts < 1:
            return masked
        count = int(self.rate * frames / self.length + rng.random())
        count = min(max(count, self.min_spans), starts)
        chosen = rng.choice(starts, count, replace=False)
        masked[(chosen[:, None] + np.arange(self.length)).ravel()] = 1
        return masked


def negatives(masked: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws negative examples for each masked frame: other masked frames of the same sound, with replacement.

    Args:
      masked: 1 for masked frames, [frames].
      count: number of negative examples per frame.
      rng: random generator.

    Returns:
      Indices of frames, int32 [frames, count]. 0 for frames that are not masked. If only one frame is masked, it is its
      own negative example.
    """
    found = np.zeros((len(masked), count), np.int32)
    places = np.flatnonzero(masked)
    if len(places) == 1:
        found[places] = places[0]
    elif len(places):
        drawn = rng.integers(0, len(places) - 1, (len(places), count))
        drawn += drawn >= np.arange(len(places))[:, None]  # Any but the frame itself.
        found[places] = places[drawn]
    return found
