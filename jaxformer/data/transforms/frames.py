"""Selects video frames: densely, at a fixed stride, or uniformly over the whole video."""

from typing import Literal

import numpy as np

Sampling = Literal["dense", "uniform"]
"""Method for selecting frames of a video. `dense`: every `stride`-th frame from a random start (Feichtenhofer et al.
2019). `uniform`: one frame from each of `frames` segments of equal length (Wang et al. 2016).
"""


def span(frames: int, stride: int) -> int:
    """Returns the number of consecutive video frames from the first to the last of `frames` frames that are selected at
    a stride: (frames − 1) · stride + 1.
    """
    return (frames - 1) * stride + 1


def dense(count: int, frames: int, stride: int, start: int) -> np.ndarray:
    """Returns the indices of `frames` video frames at a stride: start, start + stride, start + 2 · stride and so on,
    int [frames].

    If the video, which has `count` frames, is too short, its last frame is repeated.
    """
    return np.minimum(start + stride * np.arange(frames), count - 1)


def uniform(count: int, frames: int, offsets: np.ndarray | float) -> np.ndarray:
    """Divides a video into `frames` segments of equal length, and returns the index of one frame per segment, int
    [frames].

    Args:
      count: number of frames of the video. If it is below `frames`, some indices are repeated.
      frames: number of segments.
      offsets: relative position of the frame in its segment, from 0 (start) to 1 (end, exclusive): a number for all
        segments, or an array [frames].
    """
    return np.minimum((np.arange(frames) + offsets) * count / frames, count - 1).astype(int)


def drawn(count: int, sampling: Sampling, frames: int, stride: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the indices of randomly selected video frames for training, int [frames].

    Args:
      count: number of frames of the video.
      sampling: method of selection.
      frames: number of frames to select.
      stride: distance between selected frames. Used only for dense sampling.
      rng: random generator.
    """
    if sampling == "uniform":
        return uniform(count, frames, rng.random(frames))
    return dense(count, frames, stride, int(rng.integers(max(1, count - span(frames, stride) + 1))))


def spread(count: int, sampling: Sampling, frames: int, stride: int, clips: int) -> list[np.ndarray]:
    """Selects `clips` clips of `frames` frames each, spread evenly over a video, for evaluation. Returns the frame
    indices of each clip, int [frames].

    A single clip is in the middle of the video. `count` is the number of frames of the video.
    """
    if sampling == "uniform":
        return [uniform(count, frames, (number + 0.5) / clips) for number in range(clips)]
    free = max(0, count - span(frames, stride))
    starts = [free // 2] if clips == 1 else np.linspace(0, free, clips).round().astype(int).tolist()
    return [dense(count, frames, stride, start) for start in starts]


def windows(count: int, sampling: Sampling, frames: int, stride: int, most: int) -> list[np.ndarray]:
    """Divides a video into consecutive windows, and selects `frames` frames from each. Returns the frame indices of
    each window, int [frames].

    With uniform sampling, there is one window for the whole video. With dense sampling, a window covers `frames` ·
    `stride` video frames. If that requires more than `most` windows, only `most` windows are used, spread evenly over
    the video. `count` is the number of frames of the video.
    """
    if sampling == "uniform":
        return spread(count, sampling, frames, stride, 1)
    needed = max(1, -(-count // (frames * stride)))
    return [dense(count, frames, stride, start) for start in _starts(count, frames * stride, min(needed, most))]


def _starts(count: int, length: int, number: int) -> list[int]:
    """Returns the index of the first frame of each of `number` windows of `length` frames, spread evenly over a video
    of `count` frames.
    """
    return np.linspace(0, max(0, count - length), number).round().astype(int).tolist()
