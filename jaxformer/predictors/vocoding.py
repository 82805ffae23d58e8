"""Converts spectrograms to sounds, with a trained vocoder or with Griffin–Lim, for predictors that speak."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import numpy as np

from jaxformer.data.transforms.griffin_lim import griffin_lim
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.decoding.speaking import Speaking
from jaxformer.errors import InputError
from jaxformer.predictors.base import ModelT, Predictor, Speaks

STEP = 128
"""Spectrograms are padded to a multiple of this number of frames, so that XLA compiles a vocoder for few lengths."""


@dataclasses.dataclass(frozen=True, eq=False)
class Vocoder:
    """A trained vocoder, such as HiFi-GAN, with its parameters."""

    model: Any
    """Model that converts log-mel spectrograms to waveforms."""
    params: Any
    """Parameters of the model."""

    def __post_init__(self):
        if not getattr(self.model, "is_vocoder", False):
            raise InputError(f"vocoder={type(self.model).__name__}: is not a vocoder; expected a SpeechT5HifiGan")

    def __call__(self, log_mels: Sequence[np.ndarray], settings: LogMel) -> list[np.ndarray]:
        """Converts log-mel spectrograms [frames, mels] to samples, float32 [samples] each.

        Args:
          log_mels: spectrograms.
          settings: settings with which the spectrograms were computed.

        Raises:
          InputError: If the vocoder was trained for other spectrograms.
        """
        model = self.model
        own, given = (model.mels, model.hop, model.rate), (settings.mels, settings.hop, settings.rate)
        if own != given:
            layout = "{} mel bands per {} samples at {} Hz"
            raise InputError(f"vocoder: reads {layout.format(*own)}; the model predicts {layout.format(*given)}")
        return [self._sound(log_mel) for log_mel in log_mels]

    def _sound(self, log_mel: np.ndarray) -> np.ndarray:
        frames = len(log_mel)
        padded = np.pad(log_mel, [(0, -frames % STEP), (0, 0)])[None]
        return np.asarray(_waveform(self.model, self.params, padded, np.array([frames])))[: frames * self.model.hop]


@functools.partial(jax.jit, static_argnums=0)
def _waveform(model: Any, params: Any, log_mel: jax.Array, lengths: jax.Array) -> jax.Array:
    return model.apply({"params": params}, log_mel, lengths).waveform[0]


@dataclasses.dataclass(frozen=True, eq=False)
class SpeakingPredictor(Predictor[ModelT], Speaks):
    """Base class of predictors that speak texts. A subclass predicts spectrograms."""

    speaking: Speaking
    """Settings such as the speed."""
    vocoder: Vocoder | None = None
    """Vocoder that converts spectrograms to sounds. If None, Griffin–Lim is used."""

    def with_vocoder(self, model: Any, params: Any) -> Self:
        return dataclasses.replace(self, vocoder=Vocoder(model, params))

    def sounds(self, log_mels: Sequence[np.ndarray], settings: LogMel) -> list[np.ndarray]:
        """Converts log-mel spectrograms [frames, mels] to samples, float32 [samples] each."""
        if self.vocoder is not None:
            return self.vocoder(log_mels, settings)
        return [griffin_lim(log_mel, settings, self.speaking.iterations) for log_mel in log_mels]
