"""Speaks texts with a model that predicts one group of frames after the other, in the voice of a speaker."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.fields.vector import read_vector
from jaxformer.data.tasks.speaking import PreparedText
from jaxformer.data.tasks.spoken_text import letters
from jaxformer.decoding import steps
from jaxformer.decoding.speech_frames import Texts, generate_frames
from jaxformer.errors import InputError
from jaxformer.models.speech_t5 import SpeechT5
from jaxformer.predictors.padding import stacked
from jaxformer.predictors.speech import Speech
from jaxformer.predictors.vocoding import SpeakingPredictor

ROWS = 8
"""Maximum number of texts that are spoken together."""
LENGTHS, STEPS = 32, 64
"""Texts are padded to a multiple of `LENGTHS` tokens, and there is room for a multiple of `STEPS` decoding steps, so
that XLA compiles for few sizes.
"""


class FrameSpeaker(SpeakingPredictor[SpeechT5]):
    """Speaks texts with SpeechT5."""

    @functools.cached_property
    def speaker(self) -> np.ndarray:
        """Vector of the speaker, float32 [size].

        Raises:
          InputError: If none is given, or it has another size than the model expects.
        """
        size, path = self.model.speaker_size, self.speaking.speaker
        if not path:
            raise InputError(
                f"objective.speaking.speaker: no speaker; give a .npy file with a vector of {size} numbers (--speaker)"
            )
        try:
            return read_vector(path, size)
        except InputError as error:
            raise InputError(f"objective.speaking.speaker={error}") from error

    def encode(self, requests: Sequence[PreparedText]) -> dict[str, np.ndarray]:
        """Converts texts to the arguments of the model: `tokens` and `segments`, the `speaker`, and as `frames` the
        zeros from which the decoder starts.
        """
        texts = self._texts(self._tokens(requests))
        frames = np.zeros((len(texts.tokens), 1, self.model.mels), np.float32)
        return {"tokens": texts.tokens, "segments": texts.segments, "speaker": texts.speaker, "frames": frames}

    def predict(self, requests: Sequence[PreparedText]) -> list[Speech]:
        """Speaks each text.

        Raises:
          InputError: If there is no speaker or a wrong one, or a text has too many tokens or unknown characters.
        """
        rows = self._tokens(requests)
        _ = self.speaker  # Raises an error before anything is computed.
        log_mels = [one for start in range(0, len(rows), ROWS) for one in self.spoken(rows[start : start + ROWS])]
        answers = []
        for request, log_mel in zip(requests, log_mels, strict=True):
            (samples,) = self.sounds([log_mel], request.log_mel)
            rate = request.log_mel.rate
            answers.append(Speech(request.text, len(samples) / rate, rate, samples, log_mel))
        return answers

    def spoken(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Generates the log-mel spectrogram of each text, [frames, mels]. `rows` are the token ids of the texts."""
        missing = (1 << (len(rows) - 1).bit_length()) - len(rows)  # XLA compiles for few batch sizes.
        texts = self._texts([*rows, *[rows[0]] * missing])
        room = min(self.model.max_frames, -(-int(texts.limits.max()) // STEPS) * STEPS)
        key = jax.random.key(self.speaking.seed)
        output = generate_frames(self.model, self._ready, texts, self.speaking.threshold, key, room)
        log_mel, lengths = jax.device_get(output)
        return [log_mel[number, : lengths[number]] for number in range(len(rows))]

    def _tokens(self, requests: Sequence[PreparedText]) -> list[np.ndarray]:
        found = []
        for number, request in enumerate(requests, 1):
            try:
                tokens = letters(request.text, self.tokenizer)
            except InputError as error:
                raise InputError(f"text {number}, {error}") from error
            if len(tokens) > self.model.max_length:
                problem = f"{len(tokens)} tokens; the model reads {self.model.max_length}"
                raise InputError(f"text {number}, {request.text[:40]!r}: {problem}")
            found.append(tokens)
        return found

    def _texts(self, rows: Sequence[np.ndarray]) -> Texts:
        longest = max(map(len, rows))
        length = min(self.model.max_length, -(-longest // LENGTHS) * LENGTHS)
        arrays = stacked(rows, length=length)
        most = [int(len(row) * self.speaking.longest / self.model.reduction) for row in rows]
        limits = np.clip(np.array(most, np.int32), 1, self.model.max_frames)
        return Texts(arrays["tokens"], arrays["segments"], np.tile(self.speaker, (len(rows), 1)), limits)

    @functools.cached_property
    def _ready(self) -> Any:
        """Parameters prepared for decoding: one tree per block."""
        return steps.ready(self.model, self.params)
