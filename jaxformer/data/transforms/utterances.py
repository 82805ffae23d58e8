"""Divides a stream of sound, such as that of a microphone, into utterances at pauses."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from jaxformer import fields
from jaxformer.errors import InputError

FRAME = 0.02
"""Length in seconds of the frames that are silent or not."""


@dataclasses.dataclass(frozen=True)
class Utterances:
    """Divides a stream of sound into utterances: stretches that begin and end with a frame that is not silent, and
    contain no pause. The result does not depend on the sizes of the chunks in which the samples arrive.
    """

    pause: float = 0.7
    """Length in seconds of the silence that ends an utterance."""
    quiet: float = 0.01
    """Root mean square of the samples below which a frame of 20 ms is silent. Samples are from -1 to 1."""
    shortest: float = 0.1
    """Minimum total length in seconds of the frames of an utterance that are not silent. Shorter sounds, such as
    clicks, are left out.
    """
    longest: float = 30.0
    """Maximum length of an utterance in seconds. A longer one is divided."""
    margin: float = 0.2
    """Length in seconds of the silence that is kept before and after an utterance, if there is as much."""

    def __post_init__(self):
        fields.at_least("utterances.pause", self.pause, FRAME)
        fields.at_least("utterances.longest", self.longest, FRAME)
        for name in ("quiet", "shortest", "margin"):
            fields.at_least(f"utterances.{name}", getattr(self, name), 0)

    def __call__(self, chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
        """Yields each utterance as soon as the pause after it, or the stream, has ended.

        Args:
          chunks: parts of the stream in order, floats from -1 to 1, [samples] each.
          rate: number of samples per second.

        Yields:
          Samples of an utterance, float32 [samples].
        """
        before: collections.deque[np.ndarray] = collections.deque(maxlen=_count(self.margin))
        frames: list[np.ndarray] = []
        loud, silent = 0, 0  # Numbers of frames: that are not silent, and that are silent at the end.
        for frame in _frames(chunks, max(1, round(FRAME * rate))):
            is_loud = float(np.sqrt(np.mean(np.square(frame, dtype=np.float64)))) >= self.quiet
            if not frames and not is_loud:
                before.append(frame)
                continue
            frames += [*before, frame]
            before.clear()
            loud, silent = loud + is_loud, 0 if is_loud else silent + 1
            if silent >= _count(self.pause) or len(frames) >= _count(self.longest):
                yield from self._ended(frames, loud, silent)
                before.extend(frames[len(frames) - silent :])
                frames, loud, silent = [], 0, 0
        yield from self._ended(frames, loud, silent)

    def _ended(self, frames: list[np.ndarray], loud: int, silent: int) -> Iterator[np.ndarray]:
        """Yields an utterance with the silence after it cut to the margin, unless it is too short."""
        if frames and loud >= _count(self.shortest):
            yield np.concatenate(frames[: len(frames) - max(0, silent - _count(self.margin))])


def _count(seconds: float) -> int:
    return round(seconds / FRAME)


def _frames(chunks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Yields the frames of a stream, float32 [size] each. The last one is filled with zeros."""
    rest = np.zeros(0, np.float32)
    for chunk in chunks:
        if np.ndim(chunk) != 1:
            raise InputError(f"a chunk of sound has shape {np.shape(chunk)}; expected [samples]")
        rest = np.concatenate([rest, np.asarray(chunk, np.float32)])
        whole = len(rest) - len(rest) % size
        yield from rest[:whole].reshape(-1, size)
        rest = rest[whole:]
    if len(rest):
        yield np.pad(rest, (0, size - len(rest)))
