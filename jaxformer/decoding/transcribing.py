"""Settings of speech transcription, which decodes a sound window by window (Radford et al. 2022, §4.5), and functions
that judge the output for a window and divide it into segments.
"""

import dataclasses
import zlib
from collections.abc import Sequence

from jaxformer import fields
from jaxformer.data.tokenizers.speech_tokens import SECONDS, SpeechTask, SpeechTokens
from jaxformer.errors import InputError

AUTO = "auto"
"""Value of `Transcribing.language` with which the spoken language is detected."""
FRAMES_PER_TIME = 2
"""Number of spectrogram frames between consecutive timestamps (0.02 s)."""
MAX_CONTEXT_TEMPERATURE = 0.5
"""Maximum temperature at which the text of a window is given to the next window as context. Text that is sampled at a
higher temperature is not, because it may be repetitive.
"""


@dataclasses.dataclass(frozen=True)
class Transcribing:
    """Settings of speech transcription. A sound is decoded in windows of the length that the model reads (30 s for
    Whisper). Each window is decoded at one temperature after the other, until its output is plausible.
    """

    language: str = ""
    """Code of the spoken language, such as de, or `auto` to detect it in the first window. Empty for an English-only
    model.
    """
    speech_task: SpeechTask = "transcribe"
    """Whether to output a transcript or an English translation."""
    timestamps: bool = True
    """Whether outputs contain timestamps, which divide a transcript into segments. A sound longer than one window
    always has them.
    """
    latest_start: int | None = 50
    """Maximum value of the first timestamp of a window, in units of 0.02 s. If None, there is no maximum."""
    word_times: bool = False
    """Whether to compute when each word is spoken, from cross-attention weights."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Sampling temperatures to try in this order until the output for a window is plausible. Beam search is used only
    at 0.
    """
    compression_ratio: float | None = 2.4
    """Maximum compression ratio (size / zlib-compressed size) of a plausible output. Repetitive text has a higher
    ratio. If None, there is no maximum.
    """
    log_probability: float | None = -1.0
    """Minimum mean log-probability per token of a plausible output, in nats. If None, there is no minimum."""
    no_speech: float | None = 0.6
    """Probability of no speech above which a window is skipped, provided that its mean log-probability is below
    `log_probability` (if that is set). If None, no window is skipped.
    """
    condition_on_previous: bool = False
    """Whether the text of the previous windows is given to the model as context when it decodes a window."""
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """Cross-attention heads from which word times are computed, as pairs (decoder layer, head). If empty, all heads of
    the second half of the decoder layers.
    """

    def __post_init__(self):
        fields.check(self)
        if not self.temperatures or min(self.temperatures) < 0:
            raise InputError(
                f"objective.transcribing.temperatures={self.temperatures}: expected one or more, none below 0"
            )
        fields.within("objective.transcribing.no_speech", self.no_speech, 0, 1)

    @property
    def multilingual(self) -> bool:
        """Whether outputs begin with a language token and a task token, as those of multilingual models do."""
        return bool(self.language)

    def retries(self, attempt: "Attempt") -> bool:
        """Returns whether the output for a window is implausible, so that the window is decoded again at the next
        temperature. False for a window without speech.
        """
        if self.is_silent(attempt):
            return False
        repeats = self.compression_ratio is not None and attempt.compression_ratio > self.compression_ratio
        return repeats or self._is_unlikely(attempt)

    def is_silent(self, attempt: "Attempt") -> bool:
        """Returns whether a window is skipped, because its output indicates that it contains no speech."""
        quiet = self.no_speech is not None and attempt.no_speech > self.no_speech
        return quiet and (self.log_probability is None or self._is_unlikely(attempt))

    def _is_unlikely(self, attempt: "Attempt") -> bool:
        return self.log_probability is not None and attempt.mean_log_probability < self.log_probability


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Output for a window at one temperature, with the values that determine whether it is plausible."""

    tokens: tuple[int, ...]
    """Token ids of the output, without the special tokens before it and the EOS token."""
    temperature: float
    """Sampling temperature. 0 for greedy decoding or beam search."""
    mean_log_probability: float
    """Mean log-probability of the tokens, including the EOS token, in nats."""
    compression_ratio: float
    """Size of the text in bytes, divided by its size after zlib compression."""
    no_speech: float
    """Probability that the window contains no speech. 0 if the vocabulary has no token for that."""


def attempt_of(
    tokens: Sequence[int], log_probability: float, text: str, temperature: float, no_speech: float
) -> Attempt:
    """Creates the `Attempt` of a window from an output, and computes its mean log-probability and its compression
    ratio.

    Args:
      tokens: token ids without the EOS token.
      log_probability: sum of the log-probabilities of all tokens, including the EOS token.
      text: decoded text of the tokens.
      temperature: sampling temperature.
      no_speech: probability that the window contains no speech.
    """
    mean = log_probability / (len(tokens) + 1)
    return Attempt(tuple(map(int, tokens)), temperature, mean, compression_ratio(text), no_speech)


def compression_ratio(text: str) -> float:
    """Returns the size of a text in bytes, divided by its size after zlib compression. Repetitive text has a high
    ratio.
    """
    content = text.encode()
    return len(content) / len(zlib.compress(content))


@dataclasses.dataclass(frozen=True)
class WindowSegment:
    """Segment of the output for a window, from one timestamp to the next."""

    start: float
    """Time at which the segment starts, in seconds from the start of the window."""
    end: float
    """Time at which the segment ends, in seconds from the start of the window."""
    tokens: tuple[int, ...]
    """Token ids of the segment, including the timestamps around it if there are any."""


def split_at_timestamps(tokens: Sequence[int], special: SpeechTokens, frames: int) -> tuple[list[WindowSegment], int]:
    """Divides the output for a window into segments, at each pair of consecutive timestamps (end of a segment, start of
    the next one).

    After the last pair, a segment may have started that continues beyond the window. If so, the next window starts at
    that pair. If there is no pair, or the output ends with the end of a segment, the next window starts where this one
    ends. Times after the end of the sound are replaced by its end.

    Args:
      tokens: token ids of the output, without the special tokens before it and the EOS token.
      special: special tokens of the vocabulary.
      frames: number of frames of the window that contain sound rather than padding.

    Returns:
      The segments, and the number of frames from the start of this window to the start of the next one.
    """
    first = special.first_timestamp
    times = [token >= first for token in tokens]
    ends = [index + 1 for index in range(len(times) - 1) if times[index] and times[index + 1]]
    rate = FRAMES_PER_TIME / SECONDS
    if not ends:
        said = [token - first for token, is_time in zip(tokens, times, strict=True) if is_time]
        end = said[-1] * SECONDS if said and said[-1] > 0 else frames / rate
        return [WindowSegment(0.0, min(end, frames / rate), tuple(tokens))], frames

    def time(token: int) -> float:
        return min((token - first) * SECONDS, frames / rate)

    closed = times[-2:] == [False, True]
    if closed:
        ends.append(len(tokens))
    found, start = [], 0
    for stop in ends:
        part = tuple(tokens[start:stop])
        found.append(WindowSegment(time(part[0]), time(part[-1]), part))
        start = stop
    advance = frames if closed else (tokens[start - 1] - first) * FRAMES_PER_TIME
    return found, min(advance, frames) if advance > 0 else frames


def previous_prompt(tokens: Sequence[int], special: SpeechTokens, max_length: int) -> list[int]:
    """Returns the token ids to prepend to the decoder input of a window, to give it the text of the previous windows as
    context.

    Args:
      tokens: token ids of the previous windows. If there are too many, only the last ones are used.
      special: special tokens of the vocabulary.
      max_length: maximum length of the decoder. The result has at most half of it.

    Returns:
      Token ids. Empty if there is no previous text, or the vocabulary has no token that marks it.
    """
    if special.previous is None or not tokens:
        return []
    return [special.previous, *tokens[-(max_length // 2 - 1) :]]
