"""Objective of speech recognizers: predicts each next token of a transcript, given the audio (Radford et al. 2022)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.speech_tokens import SpeechTokens
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.transcribing import Transcribing
from jaxformer.errors import InputError
from jaxformer.losses.token_loss import check_terms, token_means
from jaxformer.metrics.averages import token_metrics
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.error_rates import ErrorRates
from jaxformer.metrics.means import Mean
from jaxformer.metrics.translations import TranslationScores
from jaxformer.models.base import Model
from jaxformer.models.whisper import Whisper
from jaxformer.objectives.base import Objective
from jaxformer.predictors.transcription import Transcriber


@dataclasses.dataclass(frozen=True)
class SpeechToText(Objective[Whisper]):
    """Speech recognition and translation: predicts each token of a transcript from the audio and the tokens before."""

    label_smoothing: float = 0.0
    """Share of the target probability that is distributed uniformly over the vocabulary (Szegedy et al. 2016)."""
    z_loss: float = 0.0
    """Weight of the squared logarithm of the softmax denominator, which keeps logits small."""
    decoding: Decoding = Decoding(max_new_tokens=None, max_length=448)
    """Settings for generating the transcript of one audio window (30 seconds by default). They have no effect on
    training.
    """
    transcribing: Transcribing = Transcribing()
    """Settings for transcribing whole recordings, such as language and timestamps. They have no effect on training."""
    scored: int = 0
    """Number of held-out recordings that an evaluation transcribes to compute error rates."""
    translated: int = 0
    """Number of held-out recordings that an evaluation translates to English to compute BLEU and chrF. Needs
    translations (`data.task.translation`), and the spoken language in `transcribing`.
    """

    model_inputs = ("log_mel", "tokens", "segments", "position_ids")
    required = ("log_mel", "tokens", "targets", "weights")
    example_task = "Transcription"

    def __post_init__(self):
        fields.check(self)
        check_terms(self)
        fields.at_least("objective.scored", self.scored, 0)
        fields.at_least("objective.translated", self.translated, 0)
        if self.translated and not self.transcribing.multilingual:
            problem = f"objective.translated={self.translated} needs the code of the spoken language, such as de"
            raise InputError(f"objective.transcribing.language='': {problem}")

    def check_model(self, model: Model) -> None:
        if "log_mel" not in model.inputs():
            raise self.wrong_model(model, "a Whisper")

    def check(self, model: Whisper, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        (given, mels), frames = (row["log_mel"].capacity, *row["log_mel"].shape), model.frames
        if mels != model.mels:
            raise InputError(f"data.task.audio.log_mel.mels={mels}: expected the model's, {model.mels}")
        if given != frames:
            raise InputError(f"data.task.audio: rows have {given} frames; expected the model's, {frames}")

    def __call__(self, model: Whisper, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss and the cross-entropy (both in nats) and the accuracy of a batch, as weighted means. Only
        the loss includes label smoothing and the z-loss.

        Args:
          model: a Whisper.
          params: model parameters.
          batch: log_mel [batch, frames, mels]; tokens, targets, weights, segments, position_ids [batch, length].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        return token_means(self, model, params, batch, key)

    def metrics(self, model: Whisper) -> tuple[Metric, ...]:
        """Returns the loss and the metrics of next-token prediction and, if `scored` is not 0, word and character error
        rates, and if `translated` is not 0, BLEU and chrF.
        """
        rates = (ErrorRates(self.scored, self._transcribed),) if self.scored else ()
        scores = (TranslationScores(self.translated, self._translated),) if self.translated else ()
        return *token_metrics(), *rates, *scores

    def _transcribed(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        return self._texts(context, documents, self.transcribing)

    def _translated(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        return self._texts(context, documents, dataclasses.replace(self.transcribing, speech_task="translate"))

    def _texts(self, context: Context, documents: Sequence[Mapping[str, Any]], transcribing: Transcribing) -> list[str]:
        sounds = [context.task.audio.read(document) for document in documents]
        predictor = Transcriber(context.model, context.params, context.tokenizer, self.decoding, transcribing)
        return [answer.text for answer in predictor.predict(context.task.prepare_requests(sounds))]

    def start_id(self, tokenizer: Tokenizer) -> int:
        return SpeechTokens.of(tokenizer).start

    def predictor(self, model: Whisper, params: Any, tokenizer: Tokenizer) -> Transcriber:
        return Transcriber(model, params, tokenizer, self.decoding, self.transcribing)
