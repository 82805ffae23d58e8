"""Objective of models that predict all frames of speech at once (Ren et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.decoding.speaking import Speaking
from jaxformer.errors import InputError
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.fast_speech import FastSpeech2
from jaxformer.objectives.base import Objective
from jaxformer.predictors.phoneme_speech import PhonemeSpeaker

TERMS = ("spectrogram", "duration", "pitch", "energy")


@dataclasses.dataclass(frozen=True)
class ParallelSpeech(Objective[FastSpeech2]):
    """Speech synthesis with FastSpeech 2: the mean absolute error of the log-mel spectrogram, and the mean squared
    errors of the logarithm of durations, of pitch and of energy (Ren et al. 2021, §2.2–2.4).

    The spectrogram is computed from the durations, pitch and energy of the recording.
    """

    variance_weight: float = 1.0
    """Weight of the errors of durations, pitch and energy in the loss."""
    speaking: Speaking = Speaking()
    """Settings for speaking texts, such as the speed. They have no effect on training."""

    model_inputs = ("tokens", "segments", "durations", "pitch", "energy")
    required = ("tokens", "durations", "pitch", "energy", "spectrogram", "frame_mask")
    example_task = "SpokenPhonemes"
    in_transformers = False

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.variance_weight", self.variance_weight, 0)

    @property
    def loss_weights(self) -> Mapping[str, float]:
        return dict.fromkeys(TERMS, self.variance_weight) | {"spectrogram": 1.0}

    def check_model(self, model: Model) -> None:
        if "durations" not in model.inputs():
            raise self.wrong_model(model, "a FastSpeech2")

    def check(self, model: FastSpeech2, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        (given, mels), length = (row["spectrogram"].capacity, *row["spectrogram"].shape), row["tokens"].capacity
        if mels != model.mels:
            raise InputError(f"data.task.audio.log_mel.mels={mels}: expected the model's, {model.mels}")
        if given != model.frames:
            raise InputError(f"data.task.audio: rows have {given} frames; expected the model's, {model.frames}")
        if length > model.max_length:
            raise InputError(f"data.task.phonemes.length={length}: the model reads {model.max_length} phonemes at most")

    def __call__(self, model: FastSpeech2, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the losses of a batch, as weighted means over frames or phonemes.

        Args:
          model: a FastSpeech2.
          params: model parameters.
          batch: tokens, segments, durations, pitch, energy [batch, length]; spectrogram [batch, frames, mels];
            frame_mask [batch, frames].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        real = (batch["segments"] > 0).astype(jnp.float32)
        wrong = jnp.abs(output.log_mel - batch["spectrogram"]).mean(-1)
        durations = output.log_durations - jnp.log1p(batch["durations"].astype(jnp.float32))
        return {
            "spectrogram": Mean.of(wrong, batch["frame_mask"]),
            "duration": Mean.of(jnp.square(durations), real),
            "pitch": Mean.of(jnp.square(output.pitch - batch["pitch"]), real),
            "energy": Mean.of(jnp.square(output.energy - batch["energy"]), real),
        } | auxiliary(output)

    def metrics(self, model: FastSpeech2) -> tuple[Metric, ...]:
        """Returns the loss and its parts."""
        return (Loss.of(self.loss_weights), *map(Average, TERMS))

    def predictor(self, model: FastSpeech2, params: Any, tokenizer: Any) -> PhonemeSpeaker:
        return PhonemeSpeaker(model, params, tokenizer, self.speaking)
