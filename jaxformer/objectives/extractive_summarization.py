"""Extractive summarization: each sentence of a document is scored at its own [CLS] token (BERTSum, Liu & Lapata
2019).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.layers.pooling import pool, segments_of
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.metrics.summaries import SummaryScores
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.base import Objective
from jaxformer.objectives.tagging import check_tokens
from jaxformer.predictors.summary_sentences import SummaryPredictor


@dataclasses.dataclass(frozen=True)
class ExtractiveSummarization(Objective[Classifier]):
    """Extractive summarization: predicts whether each sentence is part of the summary, by binary cross-entropy.

    The model classifies tokens and has one label. The score of a sentence is the logit at its first token, as in the
    variant of BERTSum whose only summarization layer is a linear classifier. With `sentence_pooling="mean"`, it is the
    mean of the logits at all its tokens.
    """

    num_sentences: int = 3
    """Maximum number of sentences in a summary."""
    block_trigrams: bool = True
    """Whether to skip a sentence that shares three successive words with a sentence already selected (Paulus et al.
    2018).
    """
    alternate_types: bool = True
    """Whether the token types (segment ids) of successive sentences alternate between 0 and 1, as in BERTSum. If False,
    all are 0.
    """
    sentence_pooling: Literal["first", "mean"] = "first"
    """Score of a sentence: `first` uses the logit of its first token, [CLS] (Liu & Lapata 2019), and `mean` the mean of
    the logits of all its tokens. Use `mean` for pretrained models in which the vectors of all [CLS] tokens of a row are
    almost equal, such as MiniLM.
    """
    scored: int | None = None
    """Number of held-out documents, from the start of the data, that an evaluation summarizes and scores with ROUGE. If
    None, all are scored; if 0, none.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.num_sentences", self.num_sentences, 1)
        fields.at_least("objective.scored", self.scored, 0)

    model_inputs = ("tokens", "segments", "position_ids", "token_types")
    required = ("tokens", "token_types", "sentence_positions", "targets", "weights")
    example_task = "SummarySentences"
    in_transformers = False

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Selects the arrays of a batch that are passed to the model. Leaves out the token types if `alternate_types`
        is False.
        """
        found = super().inputs(batch)
        return found if self.alternate_types else {name: found[name] for name in found if name != "token_types"}

    def check_model(self, model: Classifier) -> None:
        check_tokens(model, "ExtractiveSummarization")
        if len(model.labels) != 1:
            raise InputError(f"model.labels={model.labels}: expected one name for objective=ExtractiveSummarization")

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats) per sentence, and `top_accuracy`: the share of documents whose highest-scoring
        sentence belongs to the target summary.

        Args:
          model: a token classifier with one label.
          params: model parameters.
          batch: tokens, segments, position_ids, token_types [batch, length]; sentence_positions, targets, weights
            [batch, sentences].
          key: PRNG key for dropout. If None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        positions, targets, weights = batch["sentence_positions"], batch["targets"], batch["weights"]
        belongs = sentence_tokens(positions, weights, batch["segments"])
        scores = pool(output.logits, self.sentence_pooling, belongs)[..., 0]
        losses = jax.nn.softplus(scores) - targets * scores
        documents = jnp.take_along_axis(batch["segments"], positions, 1)
        rivals = (documents[:, None] == documents[:, :, None]) & (weights[:, None] > 0)  # [b, n, n]
        best = jnp.max(jnp.where(rivals, scores[:, None], -jnp.inf), -1)
        return {
            "loss": Mean.of(losses, weights),
            "top_accuracy": Mean.of(targets, jnp.where(scores >= best, weights, 0)),
        } | auxiliary(output)

    def metrics(self, model: Classifier) -> tuple[Metric, ...]:
        """Returns the loss, the share of documents whose highest-scoring sentence belongs to the target summary and,
        for evaluations, ROUGE of the predicted summaries.
        """
        of_documents = () if self.scored == 0 else (SummaryScores(self._summaries, self.num_sentences, self.scored),)
        return Loss(), Average("top_accuracy", higher_is_better=True), *of_documents

    def _summaries(self, context: Context, documents: Sequence[Sequence[str]]) -> list[tuple[str, bool]]:
        predictor = self.predictor(context.model, context.params, context.tokenizer)
        answers = predictor.summarize(documents, context.task.length)
        return [(answer.text, answer.whole) for answer in answers]

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> SummaryPredictor:
        return SummaryPredictor(
            model,
            params,
            tokenizer,
            num_sentences=self.num_sentences,
            block_trigrams=self.block_trigrams,
            alternate_types=self.alternate_types,
            sentence_pooling=self.sentence_pooling,
        )


def sentence_tokens(positions: jax.Array, weights: jax.Array, segments: jax.Array) -> jax.Array:
    """Returns a mask of the tokens that belong to each sentence, boolean [batch, sentences, length]. A sentence ends
    before the first token of the next one.

    Args:
      positions: index of the first token of each sentence in ascending order, integers [batch, sentences].
      weights: 1 for sentences, 0 after the last sentence of a row, [batch, sentences].
      segments: number of the document that each token belongs to, from 1, or 0 for padding; integers [batch, length].
    """
    starts = (jnp.arange(segments.shape[1]) == positions[..., None]) & (weights[..., None] > 0)  # [b, n, t]
    numbers = jnp.where(segments > 0, jnp.cumsum(starts.any(1), -1), 0)
    return segments_of(numbers, positions.shape[1])
