"""Base classes of objectives. An objective computes the training loss, as a pure function of (model, params, batch,
key).
"""

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
    """Base class of training objectives. A subclass is a frozen dataclass; its fields can be set by command line flags.

    A new objective needs `__call__`, and lists the batch arrays that it uses in `model_inputs` and `required`:

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
    """Names of the batch arrays that are passed to the model as keyword arguments. Names that a batch does not contain
    are skipped.
    """
    required: ClassVar[tuple[str, ...]] = ()
    """Names of the batch arrays that the task (which converts documents into batches) must provide."""
    example_task: ClassVar[str] = ""
    """Text that error messages insert after "use" to suggest a task whose batches have the arrays in `required`: the
    name of the only such task, such as "TagTokens", or "one such as NextToken" if there are several. If empty, error
    messages suggest no task.
    """
    in_transformers: ClassVar[bool] = True
    """Whether the Hugging Face transformers library has model classes for this objective. If not, runs cannot be
    exported to its format.
    """

    needs_reference: ClassVar[bool] = False
    """Whether the loss compares the model with a reference model, which has the parameters that the training starts
    from. If True, the training state contains these parameters too.
    """

    decoding: ClassVar[Decoding | None] = None
    """Settings for generating text. Objectives of generative models override it with a field of the same name. None if
    the model does not generate text.
    """

    problem_type: ClassVar[str | None] = None
    """Value of `problem_type` in the config.json of an exported Hugging Face model, such as
    "multi_label_classification". None if the objective is neither classification nor regression.
    """

    @abc.abstractmethod
    def __call__(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any = None) -> dict[str, Any]:
        """Computes the losses and the inputs of the metrics for a batch.

        Args:
          model: the model.
          params: model parameters.
          batch: maps names to arrays [batch, ...].
          key: PRNG key for dropout. If None, the model is evaluated.

        Returns:
          A dict of named values: a weighted mean (`Mean`) for each name in `loss_weights`, the model's auxiliary losses
          (`means.auxiliary`), which are added to the loss, and further values that the metrics need. In training, all
          values are instances of `Mean`, which are merged over micro-batches. In an evaluation, they may also be other
          arrays.
        """

    def with_reference(self, model: ModelT, reference: Any, batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        """Adds arrays to a batch that are computed with the reference model, without dropout and without a gradient.
        The loss is computed from the returned batch. By default, returns the batch unchanged.

        Args:
          model: the model.
          reference: parameters of the reference model. None if `needs_reference` is False.
          batch: maps names to arrays [batch, ...].
        """
        return batch

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Maps the names of losses to their weights in the total loss."""
        return {"loss": 1.0}

    def metrics(self, model: ModelT) -> tuple[Metric, ...]:
        """Returns the metrics to report for training steps and evaluations. The default is only the loss."""
        return (Loss.of(self.loss_weights),)

    def all_metrics(self, model: ModelT) -> tuple[Metric, ...]:
        """Returns the metrics of the objective, and a metric for each auxiliary loss of the model, such as the load
        balance of experts.
        """
        return (*self.metrics(model), *(Average(auxiliary_name(name)) for name in model.mean_names))

    def check(self, model: ModelT, row: Mapping[str, Any]) -> None:
        """Checks that the model can be trained with this objective on the batches of a task.

        Args:
          model: the model.
          row: maps the names of the arrays in the task's batches to their layouts (type and shape).

        Raises:
          InputError: If the objective cannot train the model, or a required array is missing.
        """
        self.check_model(model)
        self.check_arrays(row)

    def check_model(self, model: Model) -> None:
        """Checks that the objective can train the model. Raises InputError if it cannot."""

    def check_tokenizer(self, model: ModelT, tokenizer: Tokenizer) -> None:
        """Checks that the model and the tokenizer fit together, for example in the ids of special tokens. Raises
        InputError if they do not. By default, accepts all tokenizers.
        """

    def wrong_model(self, model: Model, wanted: str) -> InputError:
        """Returns the error for a model of the wrong class. `wanted` describes the right one, such as "a Gpt"."""
        return InputError(f"objective={type(self).__name__}: needs {wanted}; the model is a {type(model).__name__}")

    def check_arrays(self, row: Collection[str]) -> None:
        """Raises InputError if the task does not provide all arrays in `required`. `row` contains the names of the
        arrays in the task's batches.
        """
        if missing := [name for name in self.required if name not in row]:
            use = f"; use {self.example_task}" if self.example_task else ""
            raise InputError(f"objective={type(self).__name__}: the task's rows have no {missing[0]}{use}")

    def predictor(self, model: ModelT, params: Any, tokenizer: Tokenizer | None) -> Predictor | None:
        """Creates the object that computes predictions for the command `jaxformer predict`. Returns None (the default)
        if models with this objective make no predictions for users.

        Args:
          model: the model.
          params: model parameters. May be None if the predictor is only used to tokenize inputs.
          tokenizer: the run's tokenizer, or None if the model does not read text.
        """
        return None

    def start_id(self, tokenizer: Tokenizer) -> int | None:
        """Returns the id of the decoder start token, or None (the default) for models that are not encoder–decoders."""
        return None

    def inputs(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Selects the arrays of a batch that are passed to the model. Returns them as keyword arguments."""
        return {name: batch[name] for name in self.model_inputs if name in batch}

    def apply_model(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any, **options: Any) -> Any:
        """Applies the model to a batch.

        Args:
          model: the model.
          params: model parameters.
          batch: maps names to arrays [batch, ...].
          key: PRNG key for dropout in training. If None, the model is in evaluation mode.
          options: further keyword arguments of the model.
        """
        rngs = None if key is None else {"dropout": key}
        return model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs, **options)


class BatchObjective(Objective[ModelT]):
    """Base class of objectives that compare the examples of a whole batch, such as contrastive losses.

    A subclass computes the loss in two parts, `vectors` and `compare`, so that with gradient accumulation
    (`optimizer.accumulate`) the examples of all micro-batches are compared with each other.
    """

    @abc.abstractmethod
    def vectors(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any) -> dict[str, Any]:
        """Computes the vectors that the loss compares. Returns a dict that contains the vectors, as arrays
        [batch, ...], and the model's auxiliary losses, as instances of `Mean`.
        """

    @abc.abstractmethod
    def compare(
        self, model: ModelT, params: Any, vectors: Mapping[str, Any], batch: Mapping[str, jax.Array]
    ) -> dict[str, Any]:
        """Computes the losses and the values that the metrics need, from the vectors of the whole batch. Returns the
        same dict as `__call__`.
        """

    def __call__(self, model: ModelT, params: Any, batch: Mapping[str, jax.Array], key: Any = None) -> dict[str, Any]:
        return self.compare(model, params, self.vectors(model, params, batch, key), batch)
