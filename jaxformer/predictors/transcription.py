"""Transcribes speech in sounds of any length. The model transcribes one window of fixed length after the other (Radford
et al. 2022, §4.5).
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.sound import PreparedSound
from jaxformer.data.tokenizers.speech_tokens import SpeechTokens
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.decoding import alignment, steps
from jaxformer.decoding.generate import Prompt, generate_scored
from jaxformer.decoding.settings import Decoding, TimestampRules
from jaxformer.decoding.transcribing import (
    AUTO,
    MAX_CONTEXT_TEMPERATURE,
    Attempt,
    Transcribing,
    WindowSegment,
    attempt_of,
    previous_prompt,
    split_at_timestamps,
)
from jaxformer.errors import InputError
from jaxformer.models.whisper import Whisper
from jaxformer.parallel import sharding
from jaxformer.predictors.base import Predictor, Transcribes
from jaxformer.predictors.transcripts import Segment, Transcript, Word

ROWS = 16
"""Maximum number of windows, from different sounds, that are decoded together."""
MAX_EXAMPLES = 3
"""Maximum number of held-out sounds that `demonstrate` transcribes."""


@dataclasses.dataclass(eq=False)
class _Job:
    """A sound that is being transcribed, and the state of its transcription after the windows that are done."""

    sound: PreparedSound
    features: np.ndarray
    """Log-mel features of the sound, followed by those of one window of silence, [frames, mels]."""
    frames: int
    """Number of frames in `features` that belong to the sound."""
    language: str
    """Code of the spoken language. Empty until it is detected, and for models without languages."""
    timestamps: bool
    """Whether the model also generates timestamps for this sound."""
    next_frame: int = 0
    """Index in `features` of the first frame of the next window."""
    segments: list[Segment] = dataclasses.field(default_factory=list)
    prompt_tokens: list[int] = dataclasses.field(default_factory=list)
    """Tokens of earlier windows, which the prompt of the next window contains. Empty if it must not contain any."""

    def window(self, size: int) -> np.ndarray:
        """Returns the log-mel features of the next window, [size, mels]."""
        return self.features[self.next_frame : self.next_frame + size]


@dataclasses.dataclass(frozen=True, eq=False)
class Transcriber(Predictor[Whisper], Transcribes):
    """Transcribes sounds, using the speech recognition model Whisper."""

    decoding: Decoding
    """Settings for generating the tokens of a window."""
    transcribing: Transcribing
    """Settings of the transcription, such as the language and whether to generate timestamps."""

    @functools.cached_property
    def special(self) -> SpeechTokens:
        """Ids of the special tokens in the tokenizer's vocabulary, such as languages and timestamps."""
        return SpeechTokens.of(self.tokenizer)

    @property
    def log_mel(self) -> LogMel:
        """Function that computes the log-mel features of a sound."""
        return LogMel(self.model.mels)

    def encode(self, sounds: Sequence[PreparedSound]) -> dict[str, np.ndarray]:
        """Converts the first window of each sound to the arguments of the model: the features `log_mel`, [sounds,
        frames, mels], and as `tokens` the special tokens with which the output starts.
        """
        jobs = [self._job(sound) for sound in sounds]
        size, said = self.model.frames, self.transcribing
        language = None if not said.multilingual else "en" if said.language == AUTO else said.language
        prefix = self.special.prefix(language, said.speech_task, said.timestamps)
        tokens = np.tile(np.array(prefix, np.int32), (len(jobs), 1))
        return {"log_mel": np.stack([job.window(size) for job in jobs]), "tokens": tokens}

    def predict(self, sounds: Sequence[PreparedSound]) -> list[Transcript]:
        """Transcribes each sound. Windows of several sounds are decoded together.

        Raises:
          InputError: If the vocabulary has no token for the requested language or for the task (transcription or
            translation).
        """
        self._check()
        jobs = [self._job(sound) for sound in sounds]
        waiting = list(jobs)
        while waiting:
            now = waiting[:ROWS]
            self._advance(now)
            waiting = [job for job in now if job.next_frame < job.frames] + waiting[ROWS:]
        return [self._answer(job) for job in jobs]

    def first_windows(self, sounds: Sequence[PreparedSound]) -> list[Attempt]:
        """Decodes only the first window of each sound. Returns the output tokens, and the statistics that decide
        whether they are plausible, such as the mean log-probability.
        """
        self._check()
        jobs = [self._job(sound) for sound in sounds]
        return self._attempts(jobs, [job.window(self.model.frames) for job in jobs])

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Transcribes or translates the first sounds of a held-out batch, according to the task token of each row.
        Returns the reference and the output of each sound on two lines.
        """
        rows = np.flatnonzero(batch["segments"].max(1))[:MAX_EXAMPLES]
        starts = (row[: np.argmax(row == self.special.no_timestamps) + 1] for row in batch["tokens"][rows])
        prompts = [Prompt(start, {"log_mel": batch["log_mel"][row]}) for row, start in zip(rows, starts, strict=True)]
        outputs = generate_scored(self.model, self.params, prompts, self._decoding(0.0, False))
        lines = []
        for row, output in zip(rows, outputs, strict=True):
            targets = batch["targets"][row][batch["segments"][row] > 0]
            lines += [f"reference: {self._text(targets)}", f"  output:  {self._text(output.tokens)}"]
        return lines

    def _check(self) -> None:
        language = self.transcribing.language
        if language not in ("", AUTO):
            self.special.prefix(language, self.transcribing.speech_task)
        if language == AUTO and not self.special.languages:
            raise InputError("objective.transcribing.language=auto: the tokenizer has no languages; expected ''")

    def _job(self, sound: PreparedSound) -> _Job:
        log_mel = self.log_mel
        silence = np.zeros(self.model.frames * log_mel.hop, np.float32)
        frames = max(1, len(sound.samples) // log_mel.hop)
        long = frames > self.model.frames
        language = "" if self.transcribing.language == AUTO else self.transcribing.language
        features = log_mel(np.concatenate([sound.samples, silence]))
        return _Job(sound, features, frames, language, self.transcribing.timestamps or long)

    def _advance(self, jobs: Sequence[_Job]) -> None:
        """Transcribes the next window of each sound. Adds the segments to the sound's job, and moves `next_frame` to
        the window after it.
        """
        windows = [job.window(self.model.frames) for job in jobs]
        for job, window, attempt in zip(jobs, windows, self._attempts(jobs, windows), strict=True):
            size = min(self.model.frames, job.frames - job.next_frame)
            if self.transcribing.is_silent(attempt):
                job.next_frame += size
                continue
            parts, advance = split_at_timestamps(attempt.tokens, self.special, size)
            job.segments += self._segments(job, window, attempt, parts)
            tokens = attempt.tokens if self.transcribing.condition_on_previous else ()
            job.prompt_tokens = [*job.prompt_tokens, *tokens] if attempt.temperature <= MAX_CONTEXT_TEMPERATURE else []
            job.next_frame += advance

    def _attempts(self, jobs: Sequence[_Job], windows: Sequence[np.ndarray]) -> list[Attempt]:
        """Encodes and decodes one window of each sound. If the language is to be detected, stores that of each sound in
        its job.
        """
        encoded, first = self._encode(windows)
        if self.transcribing.language == AUTO:
            for job, row in zip(jobs, first, strict=True):
                job.language = job.language or self._spoken(row)
        quiet = [0.0 if self.special.no_speech is None else float(row[self.special.no_speech]) for row in first]
        return self._decode(jobs, encoded, quiet)

    def _encode(self, windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Encodes windows. Returns the encoder output [windows, positions, width], and the probabilities [windows,
        vocab] of the token after the start token, which are used to detect the language and silence.
        """
        # Without an accelerator, several windows at once take as long as one after the other.
        size = 1 if sharding.platform() == "cpu" else len(windows)
        groups = (windows[start : start + size] for start in range(0, len(windows), size))
        parts = [
            jax.device_get(_encoded(self.model, self._ready, _rows(group), self.special.start)) for group in groups
        ]
        encoded, first = (np.concatenate(arrays)[: len(windows)] for arrays in zip(*parts, strict=True))
        return encoded, first

    def _decode(self, jobs: Sequence[_Job], encoded: np.ndarray, quiet: Sequence[float]) -> list[Attempt]:
        """Decodes one window of each sound. Repeats this at the next higher temperature for windows whose output is
        implausible.

        Args:
          jobs: the sounds.
          encoded: encoder output for the window of each sound.
          quiet: probability that the window of each sound has no speech.
        """
        prompts = [
            Prompt(np.array(self._prefix(job), np.int32), {"encoded": row})
            for job, row in zip(jobs, encoded, strict=True)
        ]
        attempts: dict[int, Attempt] = {}
        left = list(range(len(jobs)))
        for temperature in self.transcribing.temperatures:
            for timed in (True, False):
                some = [number for number in left if jobs[number].timestamps == timed]
                if not some:
                    continue
                decoding = self._decoding(temperature, timed)
                outputs = generate_scored(self.model, self._ready, [prompts[number] for number in some], decoding)
                for number, output in zip(some, outputs, strict=True):
                    tokens = output.tokens[output.tokens != self.special.end].tolist()
                    text = self._text(tokens)
                    attempts[number] = attempt_of(tokens, output.log_probability, text, temperature, quiet[number])
            left = [number for number in left if self.transcribing.retries(attempts[number])]
        return [attempts[number] for number in range(len(jobs))]

    def _decoding(self, temperature: float, timestamps: bool) -> Decoding:
        """Returns the settings for decoding windows at a temperature, with or without timestamps. Beam search is only
        used at temperature 0.
        """
        rules = None
        if timestamps:
            rules = TimestampRules(self.special.first_timestamp, self.transcribing.latest_start)
        beams = self.decoding.num_beams if temperature == 0 else 1
        settings: dict[str, Any] = {"temperature": temperature, "num_beams": beams}
        ends = self.decoding.eos_token_ids or (self.special.end,)
        if temperature == 0 and beams == 1 and self.decoding.temperature:
            settings["temperature"] = self.decoding.temperature
        return dataclasses.replace(self.decoding, timestamps=rules, eos_token_ids=ends, **settings)

    def _prefix(self, job: _Job) -> list[int]:
        language = job.language if self.transcribing.multilingual else None
        prefix = self.special.prefix(language, self.transcribing.speech_task, job.timestamps)
        return previous_prompt(job.prompt_tokens, self.special, self.model.max_length) + prefix

    def _spoken(self, probabilities: np.ndarray) -> str:
        languages = self.special.languages
        return max(languages, key=lambda code: probabilities[languages[code]])

    def _segments(
        self, job: _Job, window: np.ndarray, attempt: Attempt, parts: Sequence[WindowSegment]
    ) -> list[Segment]:
        offset = job.next_frame / self.log_mel.frames_per_second
        words = self._timed(job, window, parts) if self.transcribing.word_times else []
        found = []
        for part in parts:
            ids = self.special.words(part.tokens)
            count, taken = len(ids), []
            while count > 0 and words:
                taken.append(words.pop(0))
                count -= taken[-1].tokens
            text = self._text(ids)
            if not text:
                continue
            timed = tuple(Word(one.text, offset + one.start, offset + one.end) for one in taken)
            segment = Segment(
                start=offset + part.start,
                end=offset + part.end,
                text=text,
                words=timed,
                temperature=attempt.temperature,
                mean_log_probability=attempt.mean_log_probability,
                compression_ratio=attempt.compression_ratio,
                no_speech=attempt.no_speech,
            )
            found.append(segment)
        return found

    def _timed(self, job: _Job, window: np.ndarray, parts: Sequence[WindowSegment]) -> list[alignment.TimedWord]:
        """Computes the start and end of each word in a window from the cross-attention of the model. `parts` are the
        parts of the window's output between timestamps.
        """
        weights = alignment.head_weights(self.model, self.params, window, self.transcribing.alignment_heads)
        decode, language = self.tokenizer.decode, job.language or "en"
        divided = [alignment.split_words(self.special.words(part.tokens), decode, language) for part in parts]
        words = [word for some in divided for word in some]
        language = job.language if self.transcribing.multilingual else None
        prefix = self.special.prefix(language, self.transcribing.speech_task)
        positions = min(self.model.positions, (job.frames - job.next_frame + 1) // 2)
        return alignment.align(weights, prefix, words, self.special.end, positions)

    def _text(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self.tokenizer.decode(self.special.words([int(token) for token in tokens])).strip()

    def _answer(self, job: _Job) -> Transcript:
        text = " ".join(segment.text for segment in job.segments)
        seconds = len(job.sound.samples) / self.log_mel.rate
        return Transcript(job.sound.path, text, job.language, seconds, tuple(job.segments))

    @functools.cached_property
    def _ready(self) -> Any:
        """Parameters prepared for decoding: one tree per block, and kernels in the dtype of the computation."""
        return steps.ready(self.model, self.params)


def _rows(windows: Sequence[np.ndarray]) -> np.ndarray:
    """Stacks windows to one array. Appends windows of zeros until their number is a power of 2, so that XLA compiles
    for few batch sizes.
    """
    count = 1 << (len(windows) - 1).bit_length()
    return np.stack([*windows, *[np.zeros_like(windows[0])] * (count - len(windows))])


@functools.partial(jax.jit, static_argnums=0)
def _encoded(model: Whisper, params: Any, log_mel: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Encodes a batch of windows. Returns the encoder output, and the probabilities of the token after the token
    `start`, float32 [batch, vocab].
    """
    encoded = model.apply({"params": params}, log_mel, method="encode")
    rows = len(log_mel)
    cache = dataclasses.replace(model.new_cache(rows, 1), segments=jnp.ones((rows, 1), jnp.int32))
    tokens = jnp.full((rows, 1), start, jnp.int32)
    output = model.apply({"params": params}, tokens, jnp.zeros_like(tokens), cache, memory=encoded, method="decode")
    return encoded, jax.nn.softmax(output.logits[:, 0])
