"""Selects frames of clips: densely, as consecutive frames with a stride, or uniformly over the whole clip."""

from typing import Literal

import numpy as np

Sampling = Literal["dense", "uniform"]
"""How frames of a clip are selected. `dense`: every `stride`-th frame from a random start (Feichtenhofer et al. 2019).
`uniform`: one frame from each of as many segments of equal length as there are frames (Wang et al. 2016)."""


def span(frames: int, stride: int) -> int:
    """Returns the number of frames of a clip that `frames` frames with a stride cover."""
    return (frames - 1) * stride + 1


def dense(count: int, frames: int, stride: int, start: int) -> np.ndarray:
    """Returns the indices of every `stride`-th frame from `start` on, integers [frames].

    The last frame is repeated if the clip, which has `count` frames, ends before.
    """
    return np.minimum(start + stride * np.arange(frames), count - 1)


def uniform(count: int, frames: int, offsets: np.ndarray | float) -> np.ndarray:
    """Returns the indices of one frame from each of `frames` segments of a clip, integers [frames].

    Args:
      count: number of frames of the clip. If there are fewer than `frames`, some are repeated.
      frames: number of segments.
      offsets: where the frame is in its segment, from 0 up to but not including 1: one number, or one for each segment.
    """
    return np.minimum((np.arange(frames) + offsets) * count / frames, count - 1).astype(int)


def drawn(count: int, sampling: Sampling, frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of random frames of a clip, for training, integers [frames]."""
    if sampling == "uniform":
        return uniform(count, frames, rng.random(frames))
    return dense(count, frames, stride, int(rng.integers(max(1, count - span(frames, stride) + 1))))


def spread(count: int, sampling: Sampling, frames: int, stride: int, clips: int) -> list[np.ndarray]:
    """Returns the indices of frames of `clips` clips that are spread evenly over a video, for evaluation.

    With one clip, it is the middle one.
    """
    if sampling == "uniform":
        return [uniform(count, frames, (number + 0.5) / clips) for number in range(clips)]
    free = max(0, count - span(frames, stride))
    starts = [free // 2] if clips == 1 else np.linspace(0, free, clips).round().astype(int).tolist()
    return [dense(count, frames, stride, start) for start in starts]


def windows(count: int, sampling: Sampling, frames: int, stride: int, most: int) -> list[np.ndarray]:
    """Returns the indices of frames of consecutive windows that cover a video, at most `most` of them.

    With uniform sampling, one window covers all. If there are more windows than `most`, they are spread evenly.
    """
    if sampling == "uniform":
        return spread(count, sampling, frames, stride, 1)
    needed = max(1, -(-count // (frames * stride)))
    return [dense(count, frames, stride, start) for start in _starts(count, frames * stride, min(needed, most))]


def _starts(count: int, length: int, number: int) -> list[int]:
    """Returns the first frames of `number` windows of `length` frames, from the start to the end of a video."""
    return np.linspace(0, max(0, count - length), number).round().astype(int).tolist()
