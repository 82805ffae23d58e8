"""Objective of encoder–decoders: predicts the tokens of the output text from the input text (Vaswani et al. 2017)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.losses.token_loss import check_terms, token_means
from jaxformer.metrics.averages import token_metrics
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.means import Mean
from jaxformer.metrics.texts import CutTexts, Scores, TextScores
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.objectives.base import Objective
from jaxformer.predictors.text_to_text import Start, TextToTextPredictor, start_id


@dataclasses.dataclass(frozen=True)
class Seq2SeqLM(Objective[EncoderDecoder]):
    """Sequence-to-sequence learning: predicts each output token from the inputs and the previous output tokens."""

    label_smoothing: float = 0.0
    """Share of the target probability that is distributed uniformly over the vocabulary (Szegedy et al. 2016). Vaswani
    et al. (2017) use 0.1.
    """
    z_loss: float = 0.0
    """Weight of the squared logarithm of the softmax denominator, which keeps logits small. T5 uses 1e-4."""
    decoding: Decoding = Decoding(max_new_tokens=128, num_beams=4)
    """Settings for generating text with the trained model. They have no effect on training."""
    scored: int = 0
    """Number of held-out documents for which an evaluation generates texts and scores them. If `scores` selects inputs
    by several prefixes, this is the number of documents per prefix.
    """
    scores: tuple[Scores, ...] = (Scores(),)
    """Metrics of generated texts. Each entry scores the inputs that begin with its prefix, such as "summarize: ", so
    that different tasks can have different metrics.
    """
    start: Start = "padding"
    """Decoder start token: `padding` (as in T5 and in the rows of the task `TextToText`), `end` (EOS, as in BART) or
    `beginning` (BOS).
    """
    beginning: bool = False
    """Whether inputs of predictions begin with the BOS token. Set it if the training inputs begin with the BOS token.
    """

    def __post_init__(self):
        fields.check(self)
        check_terms(self)
        fields.at_least("objective.scored", self.scored, 0)
        labels = [part.label for part in self.scores]
        for part in self.scores:
            if labels.count(part.label) > 1:
                raise InputError(
                    f"objective.scores: the prefix {part.prefix!r} occurs twice; expected different prefixes"
                )

    model_inputs = ("inputs", "tokens", "input_segments", "segments", "input_position_ids", "position_ids")
    required = ("inputs", "tokens", "targets", "weights")
    example_task = "one such as TextToText"

    def check_model(self, model: EncoderDecoder) -> None:
        if not model.is_encoder_decoder:
            raise self.wrong_model(model, "an EncoderDecoder")

    def __call__(self, model: EncoderDecoder, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss and the cross-entropy (both in nats) and the accuracy of a batch, as weighted means. Only
        the loss includes label smoothing and the z-loss.

        Args:
          model: an encoder–decoder.
          params: model parameters.
          batch: inputs, input_segments, input_position_ids [batch, input_length]; tokens, targets, weights, segments,
            position_ids [batch, length].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        return token_means(self, model, params, batch, key)

    def metrics(self, model: EncoderDecoder) -> tuple[Metric, ...]:
        """Returns the loss and the metrics of next-token prediction and, if `scored` is not 0, metrics of generated
        texts.
        """
        found = [*token_metrics()]
        for part in self.scores if self.scored else ():
            found += [TextScores(part, self.scored, self._generated), CutTexts(part, self.scored)]
        return tuple(found)

    def _generated(self, context: Context, inputs: Sequence[np.ndarray]) -> list[str]:
        return self.predictor(context.model, context.params, context.tokenizer).answer_tokens(inputs)

    def start_id(self, tokenizer: Tokenizer) -> int:
        """Returns the id of the decoder start token."""
        return start_id(self.start, tokenizer)

    def predictor(self, model: EncoderDecoder, params: Any, tokenizer: Tokenizer) -> TextToTextPredictor:
        return TextToTextPredictor(
            model,
            params,
            tokenizer,
            decoding=self.decoding,
            start=self.start,
            beginning=self.beginning,
            prefixes=tuple(part.prefix for part in self.scores),
        )
