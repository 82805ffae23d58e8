"""Defines how a model family is used: which training objective and which data task (the preparation of its inputs) an
imported model gets, and how its inputs, outputs and loss correspond to those of its class in the transformers library.

A `Bridge` belongs to a `Family`. Families whose models have the same kinds of inputs and outputs share a bridge. The
defaults are for text encoders.
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
from jaxformer.models.base import Model, ModelOutput
from jaxformer.runs.run import Run

Arrays = Mapping[str, Any]
LENGTH = 512
"""Maximum number of tokens per sequence in the experiment (config) that is created for an imported text model."""
ARGUMENTS = {
    "tokens": "input_ids",
    "segments": "attention_mask",
    "token_types": "token_type_ids",
    "images": "pixel_values",
    "pixel_mask": "pixel_mask",
    "clips": "pixel_values",
    "noise": "noise",
}
"""Maps names of model inputs to names of arguments in the transformers library. Bridges of some model families define
other names.
"""
LAYOUTS = {"images": "bnyx", "clips": "bznyx", "log_mel": "bna"}
"""Order of the axes that classes of the transformers library expect for images, video clips and log-mel spectrograms,
as letters of `InputSpec.axes`. Channels or mel bands (`n`) come before rows (`y`) or frames (`a`).
"""


@dataclasses.dataclass(frozen=True)
class Source:
    """Hugging Face folder that a model is imported from."""

    home: Path
    """Path of the folder as given by the user."""
    folder: Folder | None = None
    """Folder that contains the weights: `home` or a subfolder of it. None for a model that was not imported."""
    tokenizer: Tokenizer | None = None

    @property
    def opened(self) -> Folder:
        """Folder that contains the weights.

        Raises:
          InputError: If the model was not imported.
        """
        if self.folder is None:
            raise InputError(f"{self.home}: holds no weights; expected a Hugging Face folder")
        return self.folder

    def require_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer of the folder.

        Raises:
          InputError: If the folder has no tokenizer.
        """
        if self.tokenizer is None:
            raise InputError(f"{self.home}: holds no tokenizer; expected one")
        return self.tokenizer


class Bridge:
    """Defines how models of one kind are used: the training objective and the data task (the preparation of inputs) of
    an imported model, and the inputs, outputs and loss of the corresponding class of the transformers library.
    """

    arguments: ClassVar[Mapping[str, str]] = ARGUMENTS
    """Maps names of model inputs to names of the arguments that the corresponding class of the transformers library
    takes.
    """
    processor: ClassVar[str] = ""
    """Auto class of the transformers library that prepares the inputs, such as `AutoProcessor`. If empty,
    `AutoTokenizer` for runs with a tokenizer, and `AutoImageProcessor` for others.
    """

    def call_arguments(self, model: Model, arrays: Arrays) -> dict[str, np.ndarray]:
        """Converts the inputs of a JAX model to the arguments of the corresponding class of the transformers library.
        Rearranges the axes in the order that the class expects.

        Args:
          model: JAX model.
          arrays: Input arrays of the JAX model, keyed by name. Arrays with other names are ignored.
        """
        specs = model.inputs()
        return {
            argument: to_theirs(name, specs[name].axes, arrays[name])
            for name, argument in self.arguments.items()
            if name in specs and name in arrays
        }

    def objective(self, source: Source, model: Any) -> Objective:
        """Returns the training objective for an imported model.

        Raises:
          InputError: If the folder requires something that is not supported.
        """
        raise InputError(f"{source.home}: there is no objective for an imported {type(model).__name__}")

    def task(self, source: Source, model: Any, objective: Any) -> Task:
        """Returns the data task for an imported model. The task prepares the arrays that the objective requires."""
        raise InputError(f"{source.home}: there is no task for an imported {type(model).__name__}")

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Converts the special token ids of the tokenizer to fields of config.json.

        Encoders have no BOS and EOS tokens: their [CLS] and [SEP] tokens have separate fields.

        Args:
          model: Model to export.
          tokens: Maps names of special token fields, such as `pad_token_id`, to ids in the tokenizer.
        """
        if model.pretrained()[1].is_generative:
            return dict(tokens)
        return {**tokens, "bos_token_id": None, "eos_token_id": None}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns an equivalent run whose model has as many vocabulary entries as its tokenizer, which programs that
        load the exported model expect. Unused rows of the embeddings and the output layer are removed.
        """
        return without_unused_ids(run)

    def generation_fields(self, run: Run) -> dict[str, Any]:
        """Returns the fields of generation_config.json for an exported run, except for those of its decoding settings.
        Empty by default.
        """
        return {}

    def write_files(self, folder: Path, model: Any) -> None:
        """Writes the files of an exported folder other than configs, weights, tokenizer and image processor. By
        default, there are none.
        """

    def write_preparation(self, folder: Path, run: Run) -> None:
        """Writes the files of an exported folder that depend on how the run prepares its inputs, such as the sampling
        rate of sounds. By default, there are none.
        """

    def random_inputs(self, model: Any, rng: np.random.Generator) -> list[tuple[str, dict[str, np.ndarray]]]:
        """Returns batches of inputs for parity checks, as pairs of a description and a dict of arrays. If the list is
        empty, parity checks use random tokens, images or clips.
        """
        del model, rng
        return []

    def prepare_network(self, network: Any) -> None:
        """Changes settings of a PyTorch model that only affect how it reduces its loss, so that `loss` computes the
        same. By default, changes nothing.
        """

    def outputs(self, model: Any, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Converts the outputs of a JAX model to those of the transformers class. Returns them keyed by their names in
        the transformers library.

        Args:
          model: Model that computed the outputs.
          output: `ModelOutput` of the model.
          objective: Objective of the run. None if there is no run.
        """
        if (logits := getattr(output, "logits", None)) is not None:
            return {"logits": logits}
        names = [name for name in output.exported if name not in ModelOutput.exported]
        if own := {name: array for name in names if (array := getattr(output, name)) is not None}:
            return own
        found = {"last_hidden_state": output.hidden}
        return found | ({"pooler_output": output.pooled[:, 0]} if model.has_pooler else {})

    def labels(self, model: Any, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns the label arguments from which the corresponding class of the transformers library computes its loss:
        arrays, or lists and dicts of arrays. They are used in parity checks, which compare the JAX model with the
        transformers class.

        If the dict is empty, parity checks use the mean square of the outputs as the loss.

        Args:
          model: JAX model.
          rows: Input arrays of the JAX model, keyed by name, and random `targets` [batch, length].
        """
        del model, rows
        return {}

    def loss(self, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
        """Computes the same loss as the corresponding class of the transformers library, for parity checks, which
        compare the JAX model with that class.

        Args:
          outputs: Outputs of the JAX model, as converted by `outputs`, and those of `loss_outputs`.
          rows: Input arrays of the JAX model, keyed by name, and random `targets` [batch, length].
        """
        raise NotImplementedError

    def loss_outputs(self, model: Any, output: Any) -> dict[str, jax.Array]:
        """Returns further arrays that `loss` needs, keyed by name. Empty by default.

        Args:
          model: Model that computed the outputs.
          output: `ModelOutput` of the model.
        """
        del model, output
        return {}

    def config_for_onnx(self, model: Any, objective: Any) -> dict[str, Any]:
        """Returns the config of the class of the transformers library whose arguments and outputs match those of an
        ONNX program that is exported from the model.

        The config is written next to the program if no class of the transformers library can load the parameters of the
        model.
        """
        raise InputError(f"model={type(model).__name__}: transformers has no class with its inputs and outputs")


def to_theirs(name: str, axes: str, array: np.ndarray) -> np.ndarray:
    """Rearranges the axes of the model input `name` in the order that the transformers library expects. `axes` are the
    axes of the input in the JAX model, as letters of `InputSpec.axes`.
    """
    return array.transpose([axes.index(letter) for letter in LAYOUTS.get(name, axes)])


def to_ours(name: str, axes: str, array: jax.Array) -> jax.Array:
    """Rearranges the axes of an argument from their order in the transformers library to that of the model input `name`
    in JAX, which `axes` specifies. Inverse of `to_theirs`.
    """
    if name not in LAYOUTS:
        return array
    return array.transpose([LAYOUTS[name].index(letter) for letter in axes])


def text_length(model: Model) -> int:
    """Returns the number of tokens per sequence in the experiment (config) that is created for an imported text
    model.
    """
    limits = model.text_limits
    return LENGTH if limits is None else min(limits.max_length, LENGTH)


def mean_cross_entropy(logits: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
    """Computes the mean cross-entropy over some tokens.

    Args:
      logits: [batch, length, vocab].
      targets: target token ids, integers [batch, length].
      mask: 1 for tokens to include, 0 for others, [batch, length].
    """
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -(chosen * mask).sum() / mask.sum()


def stack_sizes(stack: Transformer) -> dict[str, int]:
    """Converts the sizes of a stack of Transformer blocks to Hugging Face config fields, with the field names that most
    families use.
    """
    groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
    heads = {"num_attention_heads": stack.heads, "num_key_value_heads": groups, "head_dim": head_dim}
    return {"hidden_size": stack.width, "num_hidden_layers": stack.depth, **heads}


def text_sizes(model: Model) -> dict[str, int]:
    """Converts the sizes of a text model to Hugging Face config fields. If the model has several stacks of Transformer
    blocks, those of the first one are used.
    """
    limits, (stack, *_) = model.require_text_limits(), model.stacks().values()
    return {**stack_sizes(stack), "vocab_size": limits.vocab, "max_position_embeddings": limits.max_length}
