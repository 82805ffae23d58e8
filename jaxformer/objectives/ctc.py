"""Objective of recognizers that spell what they hear: connectionist temporal classification (Graves et al. 2006)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.ctc import CtcSearch
from jaxformer.errors import InputError
from jaxformer.losses.ctc import ctc_losses, fits
from jaxformer.metrics.averages import Loss
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.error_rates import ErrorRates
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.base import Model
from jaxformer.models.speech_encoder import SpeechEncoder
from jaxformer.models.wav2vec2 import Wav2Vec2Ctc
from jaxformer.objectives.base import Objective
from jaxformer.predictors.spelling import Speller, check_blank


@dataclasses.dataclass(frozen=True)
class Ctc(Objective[Wav2Vec2Ctc]):
    """Speech recognition with CTC: the probability of a transcript is that of all alignments of its characters with the
    frames of the sound.
    """

    search: CtcSearch = CtcSearch()
    """Settings for decoding a transcript, such as the number of beams. They have no effect on training."""
    scored: int = 0
    """Number of held-out recordings that an evaluation transcribes to compute error rates."""

    model_inputs = ("samples", "sample_mask", "masked")
    required = ("samples", "sample_mask", "targets", "weights")
    example_task = "SpelledSpeech"

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.scored", self.scored, 0)

    def check_model(self, model: Model) -> None:
        if not model.is_speller:
            raise self.wrong_model(model, "a Wav2Vec2Ctc")

    def check(self, model: Wav2Vec2Ctc, row: Mapping[str, Any]) -> None:
        super().check(model, row)
        check_frames(model, row)

    def check_tokenizer(self, model: Wav2Vec2Ctc, tokenizer: Tokenizer) -> None:
        check_blank(model, tokenizer)

    def __call__(self, model: Wav2Vec2Ctc, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss of a batch in nats per character, as a weighted mean. Transcripts that are too long for
        their frames have weight 0.

        Args:
          model: recognizer of speech.
          params: model parameters.
          batch: samples, sample_mask [batch, samples]; targets, weights [batch, length]; optionally masked [batch,
            frames].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        output, targets, weights = self.apply_model(model, params, batch, key), batch["targets"], batch["weights"]
        losses = ctc_losses(output.logits, output.frames, targets, weights, model.blank)
        lengths = weights.sum(1) * fits(output.frames, targets, weights)
        # A loss per character: the value is the loss of a transcript divided by its length.
        return {"loss": Mean.of(losses / weights.sum(1).clip(1), lengths)} | auxiliary(output)

    def metrics(self, model: Wav2Vec2Ctc) -> tuple[Metric, ...]:
        """Returns the loss and, if `scored` is not 0, word and character error rates."""
        rates = (ErrorRates(self.scored, self._transcribed),) if self.scored else ()
        return Loss(), *rates

    def _transcribed(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        sounds = [context.task.audio.read(document) for document in documents]
        predictor = self.predictor(context.model, context.params, context.tokenizer)
        return [answer.text for answer in predictor.predict(context.task.prepare_requests(sounds))]

    def predictor(self, model: Wav2Vec2Ctc, params: Any, tokenizer: Tokenizer) -> Speller:
        return Speller(model, params, tokenizer, self.search)


def check_frames(model: SpeechEncoder, row: Mapping[str, Any]) -> None:
    """Raises InputError if a task masks another number of frames than the model computes for its rows."""
    frames = model.framing.frames(row["samples"].capacity)
    if "masked" in row and row["masked"].capacity != frames:
        raise InputError(
            f"data.task.framing: rows have {row['masked'].capacity} frames; the model's framing gives {frames}"
        )
    if "masked" in row and not model.has_mask_embedding:
        raise InputError("model.has_mask_embedding=False: data.task.masking masks frames; expected True")
