"""Speaks texts with a model that predicts all frames of speech at once, from phonemes."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks.speaking import PreparedText
from jaxformer.errors import InputError
from jaxformer.models.fast_speech import FastSpeech2, SpokenOutput
from jaxformer.predictors.padding import stacked
from jaxformer.predictors.speech import Mark, Speech
from jaxformer.predictors.vocoding import SpeakingPredictor

ROWS = 8
"""Maximum number of parts of texts that are spoken together."""


class PhonemeSpeaker(SpeakingPredictor[FastSpeech2]):
    """Speaks texts with FastSpeech 2, part by part, and joins the parts."""

    def encode(self, requests: Sequence[PreparedText]) -> dict[str, np.ndarray]:
        """Converts texts to the arguments of the model: `tokens` and `segments`, with a row for each part of a text."""
        rows = [ids for ids, _ in self._parts(requests)]
        return stacked(rows, length=self.model.max_length)

    def predict(self, requests: Sequence[PreparedText]) -> list[Speech]:
        """Speaks each text.

        Raises:
          InputError: If a phoneme is not in the vocabulary, a part of a text has too many phonemes, or its speech is
            longer than the model's frames.
        """
        parts = list(self._parts(requests))
        spoken = [one for start in range(0, len(parts), ROWS) for one in self._spoken(parts[start : start + ROWS])]
        answers, names = [], self.tokenizer.pieces
        for request in requests:
            own, spoken = spoken[: len(request.parts)], spoken[len(request.parts) :]
            settings, marks, frames = request.log_mel, [], 0
            for ids, durations, log_mel in own:
                ends = frames + np.cumsum(durations)
                times = np.append(frames, ends) / settings.frames_per_second
                marks += [Mark(names[i], float(a), float(b)) for i, a, b in zip(ids, times, times[1:], strict=False)]
                frames += len(log_mel)
            log_mel = np.concatenate([log_mel for *_, log_mel in own])
            (samples,) = self.sounds([log_mel], settings)
            seconds = len(samples) / settings.rate
            answers.append(Speech(request.text, seconds, settings.rate, samples, log_mel, tuple(marks)))
        return answers

    def _parts(self, requests: Sequence[PreparedText]) -> Iterator[tuple[np.ndarray, str]]:
        """Yields the ids of the phonemes of each part of each text, and a description of the text for messages."""
        for number, request in enumerate(requests, 1):
            where = f"text {number}, {request.text[:40]!r}"
            for part in request.parts:
                try:
                    ids = self.tokenizer.ids_of(part)
                except InputError as error:
                    raise InputError(f"{where}: {error}") from error
                if len(ids) > self.model.max_length:
                    problem = f"{len(ids)} phonemes without a full stop; the model reads {self.model.max_length}"
                    raise InputError(f"{where}: {problem}")
                yield ids, where

    def _spoken(self, parts: Sequence[tuple[np.ndarray, str]]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Speaks up to `ROWS` parts of texts. Returns for each the ids of its phonemes, the number of frames of each
        phoneme, and the log-mel spectrogram [frames, mels].
        """
        rows = [ids for ids, _ in parts]
        rows += rows[:1] * ((1 << (len(rows) - 1).bit_length()) - len(rows))  # XLA compiles for few batch sizes.
        arrays = stacked(rows, length=self.model.max_length)
        output = jax.device_get(_compute(self.model, self.params, arrays, self.speaking.speed))
        found = []
        for (ids, where), frames, durations, log_mel in zip(
            parts, output.lengths, output.durations, output.log_mel, strict=False
        ):
            if frames > self.model.frames:
                problem = f"{frames} frames of speech without a full stop; the model speaks {self.model.frames}"
                raise InputError(f"{where}: {problem}")
            found.append((ids, durations[: len(ids)], log_mel[:frames]))
        return found


@functools.partial(jax.jit, static_argnums=0)
def _compute(model: FastSpeech2, params: Any, arrays: dict[str, jax.Array], speed: jax.Array) -> SpokenOutput:
    return model.apply({"params": params}, arrays["tokens"], arrays["segments"], speed, method="speak")
