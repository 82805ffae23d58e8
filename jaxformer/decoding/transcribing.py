"""Settings of transcription window by window, the choice among temperatures, and the segments of a window (Radford et
al. 2022, §4.5).
"""

import dataclasses
import zlib
from collections.abc import Sequence

from jaxformer import fields
from jaxformer.data.tokenizers.speech_tokens import SECONDS, SpeechTask, SpeechTokens
from jaxformer.errors import InputError

AUTO = "auto"
"""Value of `Transcribing.language` for a language that is detected."""
FRAMES_PER_TIME = 2
"""Number of frames between the times of two successive timestamp tokens."""
CONDITIONED_BELOW = 0.5
"""Temperature from which on the text of a window is not given to the next one, because it may repeat itself."""


@dataclasses.dataclass(frozen=True)
class Transcribing:
    """How sounds are transcribed: window by window, each at the first temperature whose output is plausible."""

    language: str = ""
    """Code of the language that is spoken, such as de, or `auto` to detect it in the first window. Empty for a model
    that only knows English.
    """
    speech_task: SpeechTask = "transcribe"
    """Whether to write down what is said, or its English translation."""
    timestamps: bool = True
    """Whether outputs have timestamps, which divide a transcript into segments. Sounds that are longer than a window
    always have them.
    """
    latest_start: int | None = 50
    """Maximum time of the first timestamp of a window, in units of 0.02 s. If None, it is not limited."""
    word_times: bool = False
    """Whether to compute when each word is said, from the weights of cross-attention."""
    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """Temperatures to try in this order. Beam search is only used at 0."""
    compression_ratio: float | None = 2.4
    """Largest plausible compression ratio of an output. A text that repeats itself is above it. None for no limit."""
    log_probability: float | None = -1.0
    """Smallest plausible mean log-probability of the tokens of an output, in nats. None for no limit."""
    no_speech: float | None = 0.6
    """Probability of no speech above which a window is skipped, if its output is also below `log_probability`. If
    None, no window is skipped.
    """
    condition_on_previous: bool = False
    """Whether a window is given the text of the window before it."""
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """Pairs of a decoder layer and a head whose cross-attention follows the words in time. If empty, all heads of the
    second half of the layers.
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
        """Whether outputs begin with a language and a task."""
        return bool(self.language)

    def retries(self, attempt: "Attempt") -> bool:
        """Returns whether to decode a window again at the next temperature."""
        if self.is_silent(attempt):
            return False
        repeats = self.compression_ratio is not None and attempt.compression_ratio > self.compression_ratio
        return repeats or self._is_unlikely(attempt)

    def is_silent(self, attempt: "Attempt") -> bool:
        """Returns whether a window is skipped because it has no speech."""
        quiet = self.no_speech is not None and attempt.no_speech > self.no_speech
        return quiet and (self.log_probability is None or self._is_unlikely(attempt))

    def _is_unlikely(self, attempt: "Attempt") -> bool:
        return self.log_probability is not None and attempt.mean_log_probability < self.log_probability


@dataclasses.dataclass(frozen=True)
class Attempt:
    """Output for a window at one temperature, and what its plausibility is judged by."""

    tokens: tuple[int, ...]
    """Tokens without the prefix and the end token."""
    temperature: float
    """Temperature of sampling. 0 for greedy decoding or beam search."""
    mean_log_probability: float
    """Mean log-probability of the tokens, including the end token, in nats."""
    compression_ratio: float
    """Size of the text in bytes, divided by its compressed size."""
    no_speech: float
    """Probability that the window has no speech. 0 if the vocabulary has no token for it."""


def attempt_of(
    tokens: Sequence[int], log_probability: float, text: str, temperature: float, no_speech: float
) -> Attempt:
    """Judges an output.

    Args:
      tokens: tokens without the end token.
      log_probability: sum of the log-probabilities of all tokens, including the end token.
      text: text of the tokens.
      temperature: temperature of sampling.
      no_speech: probability that the window has no speech.
    """
    mean = log_probability / (len(tokens) + 1)
    return Attempt(tuple(map(int, tokens)), temperature, mean, compression_ratio(text), no_speech)


def compression_ratio(text: str) -> float:
    """Returns the size of a text in bytes divided by its size after compression by zlib."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Part of a window's output between two timestamps."""

    start: float
    """Start in seconds, from the start of the window."""
    end: float
    """End in seconds, from the start of the window."""
    tokens: tuple[int, ...]
    """Tokens, with the timestamps around them."""


def stretches_of(tokens: Sequence[int], special: SpeechTokens, frames: int) -> tuple[list[Stretch], int]:
    """Divides the output of a window at its pairs of timestamps.

    If the output has a pair and does not end with a single timestamp, the next window starts at the last pair, because
    the speech after it may continue there. Otherwise, the next window starts at the end of this one. Times after the
    end of the sound become its end.

    Args:
      tokens: output without the prefix and the end token.
      special: special tokens of the vocabulary.
      frames: number of frames of the window that belong to the sound.

    Returns:
      The stretches, and the number of frames from the start of this window to that of the next one.
    """
    first = special.first_timestamp
    times = [token >= first for token in tokens]
    ends = [index + 1 for index in range(len(times) - 1) if times[index] and times[index + 1]]
    rate = FRAMES_PER_TIME / SECONDS
    if not ends:
        said = [token - first for token, is_time in zip(tokens, times, strict=True) if is_time]
        end = said[-1] * SECONDS if said and said[-1] > 0 else frames / rate
        return [Stretch(0.0, min(end, frames / rate), tuple(tokens))], frames

    def time(token: int) -> float:
        return min((token - first) * SECONDS, frames / rate)

    closed = times[-2:] == [False, True]
    if closed:
        ends.append(len(tokens))
    found, start = [], 0
    for stop in ends:
        part = tuple(tokens[start:stop])
        found.append(Stretch(time(part[0]), time(part[-1]), part))
        start = stop
    advance = frames if closed else (tokens[start - 1] - first) * FRAMES_PER_TIME
    return found, min(advance, frames) if advance > 0 else frames


def previous_prompt(tokens: Sequence[int], special: SpeechTokens, max_length: int) -> list[int]:
    """Returns the tokens before the prefix that give a window the text of the windows before it: at most half of the
    decoder's positions. Empty if there is no text or the vocabulary has no token for it.
    """
    if special.previous is None or not tokens:
        return []
    return [special.previous, *tokens[-(max_length // 2 - 1) :]]
