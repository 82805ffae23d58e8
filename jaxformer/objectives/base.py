"""The contract of objectives: a loss is a pure function of (model, params, batch, key)."""

import abc
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import jax

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Metric
from jaxformer.metrics.means import auxiliary_name
from jaxformer.models.base import Model
from jaxformer.predictors.base import Predictor

ModelT = TypeVar("ModelT", bound=Model)


class Objective(abc.ABC, Generic[ModelT]):
    """A training objective. A subclass is a frozen dataclass, whose fields are flags.

    A new objective needs `__call__`, and lists the arrays of a batch in `model_inputs` and `required`:

        @dataclasses.dataclass(frozen=True)
        class Brightness(Objective[Vit]):
          model_inputs = ("images",)
          required = ("images", "brightness")

          def __call__(self, model, params, batch, key=None):
            output = self.apply_model(model, params, batch, key)
            loss = Mean.of((output.logits[:, 0] - batch["brightness"]) ** 2, batch["weights"])
            return {"loss": loss} | auxiliary(output)
    """

    model_inputs: ClassVar[tuple[str, ...]] = ()
    """The arrays of a batch that the model takes, under the names of its arguments; those that a row lacks are left
    out."""
    required: ClassVar[tuple[str, ...]] = ()
    """The arrays that the rows of a task must have."""
    example_task: ClassVar[str] = ""
    """A task with such rows, for the error message: "TagTokens", or "one such as NextToken"."""
    in_transformers: ClassVar[bool] = True
    """Whether a class of transformers is for what the model is trained for; where none is, a run is not exported as a
    Hugging Face folder."""

    decoding: ClassVar[Decoding | None] = None
    """How the model generates: a field of objectives of models that do; None: it generates nothing."""

    problem_type: ClassVar[str | None] = None
    """transformers' name of the kind of labels in a config.json; None for an objective without."""

    @abc.abstractmethod
    def __call__(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any = None) -> dict[str, Any]:
        """Computes the terms of the loss and of the metrics of a batch.

        Args:
          model: the model.
          params: its parameters.
          batch: arrays [b, ...] by name.
          key: for dropout; None evaluates.

        Returns:
          A `Mean` for each of `loss_weights`, the model's auxiliary means (`means.auxiliary`), which are part of the
          loss, and further terms for the metrics. A training step returns means alone,
          which micro-batches add up; an evaluation may return arrays of any kind.
        """

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The weight of each term in the loss."""
        return {"loss": 1.0}

    def metrics(self, model: ModelT) -> tuple[Metric, ...]:
        """The metrics to report, of training steps and of evaluations; by default the loss."""
        return (Loss.of(self.loss_weights),)

    def all_metrics(self, model: ModelT) -> tuple[Metric, ...]:
        """`metrics`, and the auxiliary means of the model's stacks."""
        return (*self.metrics(model), *(Average(auxiliary_name(name)) for name in model.mean_names))

    def check(self, model: ModelT, row: Mapping[str, Any]) -> None:
        """Checks that rows with these arrays can train the model.

        Args:
          model: the model.
          row: the features of the task's rows by name.

        Raises:
          InputError: it is a model of another kind, or the rows lack an array.
        """
        self.check_model(model)
        self.check_row(row)

    def check_model(self, model: Model) -> None:
        """Raises InputError where the objective cannot train the model."""

    def wrong_model(self, model: Model, wanted: str) -> InputError:
        """The error for a model of another kind than the wanted one, such as "a Gpt or another decoder"."""
        return InputError(f"objective={type(self).__name__}: needs {wanted}; the model is a {type(model).__name__}")

    def check_row(self, row: Collection[str]) -> None:
        """Raises InputError where the rows lack one of `required`."""
        if missing := [name for name in self.required if name not in row]:
            use = f"; use {self.example_task}" if self.example_task else ""
            raise InputError(f"objective={type(self).__name__}: the task's rows have no {missing[0]}{use}")

    def predictor(self, model: ModelT, params: Any, tokenizer: Tokenizer | None) -> Predictor | None:
        """Makes the predictor that `predict` uses; None, the default, if the model has no predictions.

        Args:
          model: the model.
          params: its parameters; None only to encode requests.
          tokenizer: the run's tokenizer; None where it reads no text.
        """
        return None

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the model among the arrays of a batch."""
        return {name: batch[name] for name in self.model_inputs if name in batch}

    def apply_model(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any, **options: Any) -> Any:
        """The model's output for a batch; with a key it trains, and the key is for dropout."""
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs, **options)


class BatchObjective(Objective[ModelT]):
    """An objective that compares the examples of a whole batch, such as a contrastive loss.

    A subclass divides the loss in two, so that it stays that of the whole batch with `optimizer.accumulate`.
    """

    @abc.abstractmethod
    def vectors(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any) -> dict[str, Any]:
        """The inputs of the loss, by name: arrays [b, ...] with the rows of the batch, and auxiliary means."""

    @abc.abstractmethod
    def compare(
        self, model: ModelT, params: Any, vectors: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """The terms that a call returns, from the vectors of a whole batch."""

    def __call__(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any = None) -> dict[str, Any]:
        return self.compare(model, params, self.vectors(model, params, batch, key), batch)
