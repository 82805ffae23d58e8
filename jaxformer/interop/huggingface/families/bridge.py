"""The parts of a family besides its table of weights: its objective and task, and the call of transformers' class.

A `Bridge` belongs to a `Family`; families whose models are called in the same way share one. The defaults fit encoders
of text.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.text_forms import without_unused_ids
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.runs.run import Run

Arrays = Mapping[str, Any]
LENGTH = 512
"""Tokens of a row of an imported experiment, at most."""
ARGUMENTS = {
    "tokens": "input_ids",
    "segments": "attention_mask",
    "token_types": "token_type_ids",
    "images": "pixel_values",
    "noise": "noise",
}
"""transformers' names of the inputs of a model."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A Hugging Face folder that is imported."""

    home: Path
    """The folder as it was named."""
    folder: Folder | None = None
    """The folder of the weights, which is in `home` or is `home`; None for a model that comes from no folder."""
    tokenizer: Tokenizer | None = None


class Bridge:
    """Exchanges models of a kind with transformers."""

    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS
    """transformers' name of each input of the model."""

    def objective(self, source: Source, model: Any) -> Objective:
        """The objective of an imported model.

        Raises:
          InputError: the folder asks for something that is not supported.
        """
        raise InputError(f"{source.home}: an imported {type(model).__name__} has no objective here")

    def task(self, source: Source, model: Any, objective: Any) -> Task:
        """The task of an imported model, whose rows the objective takes."""
        raise InputError(f"{source.home}: an imported {type(model).__name__} has no task here")

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Fields of a config.json that name special tokens, from the tokenizer's special tokens.

        The vocabulary of an encoder has no beginning and end but [CLS] and [SEP], which have other names.
        """
        if model.pretrained()[1].is_generative:
            return dict(tokens)
        return {**tokens, "bos_token_id": None, "eos_token_id": None}

    def conventional(self, run: Run) -> Run:
        """The run in the form that other programs expect of an export."""
        return without_unused_ids(run)

    def outputs(self, model: Any, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Converts the outputs of the model to those of transformers' class, by its names.

        Args:
          model: the model.
          output: its `ModelOutput`.
          objective: of its run; None if there is none.
        """
        if (logits := getattr(output, "logits", None)) is not None:
            return {"logits": logits}
        found = {"last_hidden_state": output.hidden}
        return found | ({"pooler_output": output.pooled[:, 0]} if model.has_pooler else {})

    def labels(self, model: Any, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Labels for which transformers' class computes a loss; without any, the parity test uses a loss of its own.

        Args:
          model: the model.
          rows: the inputs by the model's names, and random `targets` [b, t].
        """
        del model, rows
        return {}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """transformers' loss for `labels`, from the model's `outputs`."""
        raise NotImplementedError

    def nearest_config(self, model: Any, objective: Any) -> dict[str, Any]:
        """The config of a class with the arguments and outputs of an exported program.

        It describes a program whose parameters no class has.
        """
        raise InputError(f"model={type(model).__name__}: transformers has no class with its inputs and outputs")


def text_length(model: Model) -> int:
    """Tokens of a row of an imported experiment."""
    limits = model.text_limits
    return LENGTH if limits is None else min(limits.max_length, LENGTH)


def mean_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens of a mask; logits [b, t, v], targets and mask [b, t]."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -(chosen * mask).sum() / mask.sum()


def stack_sizes(stack: Transformer) -> dict[str, int]:
    """The sizes of a stack by the names that most configs have."""
    groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
    heads = {"num_attention_heads": stack.heads, "num_key_value_heads": groups, "head_dim": head_dim}
    return {"hidden_size": stack.width, "num_hidden_layers": stack.depth, **heads}


def text_sizes(model: Model) -> dict[str, int]:
    """The sizes of a text model with one stack."""
    limits, (stack, *_) = model.text_limits, model.stacks().values()
    return {**stack_sizes(stack), "vocab_size": limits.vocab, "max_position_embeddings": limits.max_length}
