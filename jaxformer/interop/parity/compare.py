"""Runs a JAX model and the PyTorch model of the Hugging Face folder that it was exported to or imported from on the
same inputs, both in float32.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxformer.decoding.generate import Prompt, generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.table import TensorMapping
from jaxformer.interop.parity.batches import ComparisonBatch
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.base import Model
from jaxformer.parallel import sharding

NEW = 64
"""Maximum number of tokens that each of the two compared models generates from a prompt."""
NAMES = {
    "logits": "logits",
    "logits_per_image": "logits",
    "image_embeds": "image vectors",
    "text_embeds": "text vectors",
    "seq_relationship_logits": "next-sentence logits",
    "pred_boxes": "boxes",
    "projected_states": "predictions",
    "projected_quantized_states": "quantized",
    "spectrogram": "spectrogram",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}
"""Outputs of the two models that are compared. Maps the name of each in the transformers library to its name in the
parity certificate.
"""
SMALL = 1e-3
"""Lower bound for the scale of a gradient, as a fraction of the largest gradient of all tensors. The difference of two
gradients of a tensor is measured relative to the scale max(largest gradient of the tensor, bound). Without the bound,
tiny gradients that consist of rounding errors, such as those of the key bias, would seem to differ.
"""


@dataclasses.dataclass(frozen=True)
class Computed:
    """Outputs, loss and gradients of one model (JAX or PyTorch) for one batch of inputs."""

    outputs: dict[str, np.ndarray]
    """Output arrays, keyed by their names in the transformers library, such as `logits`."""
    loss: float
    """Loss that the class of the transformers library computes, if it has one for the labels of the input. Otherwise
    the mean square of the outputs (see `mean_square`).
    """
    gradients: dict[str, np.ndarray]
    """Gradients of the loss with respect to the parameters, keyed by parameter path for the JAX model and by tensor
    name for the PyTorch model.
    """


class JaxModel:
    """JAX model that is compared with a PyTorch model. It computes in float32 on the CPU, without dropout."""

    def __init__(self, model: Model, params: Any, dtype: str):
        """Rounds the parameters to `dtype`, the dtype of the weights in the Hugging Face folder, and converts them to
        float32.
        """
        self.model = model.replace_stacks(dtype="float32", dropout=0.0, attention_dropout=0.0)
        self.bridge = bridge_of(model)
        with on_cpu():
            self.params = jax.tree.map(
                lambda array: jnp.asarray(np.asarray(array)).astype(dtype).astype(jnp.float32), jax.device_get(params)
            )
        # One program is compiled per input shape.
        self._compute = jax.jit(jax.value_and_grad(self._loss, has_aux=True), static_argnums=(2, 3))

    def __call__(self, rows: ComparisonBatch, names: Sequence[str]) -> Computed:
        """Computes the outputs, the loss and its gradients for a batch of inputs. `names` are the outputs to return, by
        their names in the transformers library.
        """
        with on_cpu():
            labelled = bool(self.bridge.labels(self.model, rows.arrays))
            (loss, outputs), gradients = self._compute(self.params, dict(rows.arrays), tuple(names), labelled)
        return Computed(jax.device_get(outputs), float(loss), parameters.flat(jax.device_get(gradients)))

    def _loss(self, params, arrays, names, labelled):
        taken = {name: arrays[name] for name, spec in self.model.inputs().items() if spec.exported}
        output = self.model.apply({"params": params}, **taken)
        outputs = join_spans(self.bridge.outputs(self.model, output), jnp.stack)
        given = outputs | self.bridge.loss_outputs(self.model, output)
        loss = self.bridge.loss(given, arrays) if labelled else mean_square(outputs, arrays.get("segments"))
        return loss, {name: outputs[name] for name in names}

    def generate(self, prompts: Sequence[Prompt | np.ndarray], new: int, start: int | None) -> list[np.ndarray]:
        """Generates `new` tokens greedily from each prompt.

        Args:
          prompts: token ids [tokens], or a `Prompt` with other inputs, such as an image.
          new: number of tokens to generate.
          start: id of the token from which the decoder of an encoder–decoder starts. None for other models.

        Returns:
          The ids of the new tokens for each prompt, [new].
        """
        with on_cpu():
            return generate(self.model, self.params, prompts, Decoding(max_new_tokens=new), start=start)


def one_by_one(network: Any) -> None:
    """Makes a mixture-of-experts PyTorch model compute its experts one after the other.

    By default, the transformers library computes all experts at once by grouped matrix products, which fail for sizes
    that do not meet their alignment requirements.
    """
    if getattr(network.config, "_experts_implementation", None) not in (None, "eager"):
        network.set_experts_implementation("eager")


class TorchModel:
    """PyTorch model that is compared with a JAX model. The transformers library loads it from a Hugging Face folder."""

    def __init__(
        self,
        folder: Folder,
        mappings: Callable[[Collection[str]], Sequence[TensorMapping]],
        architecture: str,
        dtype: str,
        prepare: Callable[[Any], None] = lambda network: None,
    ):
        """Loads the PyTorch model from a Hugging Face folder.

        Args:
          folder: Hugging Face folder.
          mappings: Function that takes the names of all tensors of the PyTorch model and returns the mappings of its
            tensors to the parameters of the JAX model. (Tensors may be arranged differently in the weight files than in
            the PyTorch model.)
          architecture: Name of the class in the transformers library.
          dtype: Dtype that these tensors are rounded to. They are then converted back to float32.
          prepare: Function that changes settings of the PyTorch model. See `Bridge.prepare_network`.

        Raises:
          Unreadable: If the transformers library cannot load the folder.
        """
        self.config, self.dtype = folder.config, getattr(torch, dtype)
        with reading(architecture):
            kind = getattr(transformers, architecture)
            self.network = kind.from_pretrained(
                folder.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        one_by_one(self.network)
        prepare(self.network)
        self.mappings = mappings(self.network.state_dict().keys())
        self.round(self.network)

    def round(self, network: torch.nn.Module) -> None:
        """Rounds in place those tensors of a PyTorch model that contain parameters of the JAX model to `self.dtype`,
        the dtype of the exported or imported weights.
        """
        # In a network without heads, the tensor names have no prefix.
        full_names = {mapping.name for mapping in self.mappings}
        names = full_names | {name.partition(".")[2] for name in full_names}
        for name, tensor in network.state_dict().items():
            if name in names:
                tensor.copy_(tensor.to(self.dtype))

    def __call__(self, rows: ComparisonBatch, model: Model) -> Computed:
        """Computes the outputs, the loss and its gradients for a batch of inputs. `model` is the JAX model: its
        `Bridge` defines the labels for the loss.
        """
        self.network.zero_grad()
        outputs, loss = self._run(rows, model)
        loss.backward()
        gradients = {
            # Some parameters, such as those of a pooler, do not affect the loss.
            name: (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).numpy().copy()
            for name, tensor in self.network.named_parameters()
            if tensor.requires_grad
        }
        return Computed({name: part.detach().numpy() for name, part in outputs.items()}, loss.item(), gradients)

    def named(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Converts arrays in the layout of JAX parameters (`ours`, keyed by parameter path), such as gradients, to the
        layout of the PyTorch model, in the same way as an export converts the parameters. Returns them keyed by tensor
        name.
        """
        found = {}
        for mapping in self.mappings:
            parts = [np.asarray(ours[path][(*mapping.index, ...)]) for path in mapping.paths]
            found[mapping.name] = mapping.to_theirs(parts)
        return found

    def _run(self, rows: ComparisonBatch, model: Model) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        labels = bridge_of(model).labels(model, rows.arrays)
        output = self.network(**torch_arguments(model, rows), **jax.tree.map(tensor_of, labels))
        values = {name: getattr(output, name, None) for name in (*NAMES, "start_logits", "end_logits")}
        values["logits"] = getattr(output, "prediction_logits", values["logits"])
        found = join_spans({name: value for name, value in values.items() if value is not None}, torch.stack)
        # A pooler without weights in the folder is initialised at random.
        if not model.has_pooler:
            found.pop("pooler_output", None)
        mask = rows.mask
        return found, output.loss if labels else mean_square(found, None if mask is None else torch.from_numpy(mask))

    def generate(
        self, given: Mapping[str, torch.Tensor], new: int, start: int | None, pad: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Generates `new` tokens greedily from one prompt.

        Args:
          given: prompt as arguments of the model, as returned by `prompt_arguments`.
          new: number of tokens to generate.
          start: id of the token from which the decoder of an encoder–decoder starts. None for other models.
          pad: id of the padding token.

        Returns:
          The ids of the new tokens, and the logits from which each was chosen, [new, vocab].
        """
        settings = transformers.GenerationConfig(
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=pad,
            eos_token_id=None,
            bos_token_id=None,
            decoder_start_token_id=start,
            output_logits=True,
            return_dict_in_generate=True,
        )
        self.network.generation_config = settings
        with torch.no_grad():
            # Not the method of the class, which may process the outputs further.
            mixin: Any = transformers.GenerationMixin
            output = mixin.generate(self.network, **given, generation_config=settings)
        return output.sequences[0, -len(output.logits) :].numpy(), torch.cat(output.logits).numpy()


def their_tokenizer(folder: Path) -> Any:
    """Loads the tokenizer of a folder with the transformers library. Raises Unreadable if that fails."""
    with reading("the tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Context manager for code that loads something with the transformers library. Converts all exceptions to
    `Unreadable`, and silences the library's log.

    The log would otherwise warn about tensors that a class does not use, such as BERT's pooler in a fill-mask pipeline.

    Args:
      what: Description of what is loaded, for error messages.
    """
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # Any error: the folder may be invalid, or transformers too old or too new.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        version = f"transformers {transformers.__version__}"
        raise Unreadable(f"{version} cannot load {what}: {reason}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def largest_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Compares the gradients of two models. Returns the largest difference max |ours - theirs| / scale of all tensors,
    and the name of the tensor that has it. See `SMALL` for the scale.

    A difference that is NaN counts as infinite.

    Args:
      ours: Gradients of the JAX model, keyed by tensor name.
      theirs: Gradients of the PyTorch model, keyed by tensor name.

    Raises:
      InputError: If `ours` and `theirs` have no tensor name in common.
    """
    names = [name for name in ours if name in theirs]
    if not names:
        raise InputError("no parameter of the PyTorch model is in the mapping of the export")
    most = max(np.abs(theirs[name]).max(initial=0) for name in names)
    differences = {}
    for name in names:
        size = max(np.abs(theirs[name]).max(initial=0), SMALL * most, 1e-30)
        difference = float(np.abs(ours[name] - theirs[name]).max(initial=0) / size)
        differences[name] = difference if np.isfinite(difference) else np.inf
    worst = max(differences, key=differences.__getitem__)
    return differences[worst], worst


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Context manager that makes JAX compute on the CPU in full float32 precision, as the PyTorch model does."""
    device = jax.local_devices(backend="cpu")[0]
    # The mesh selects the device to trace for if there are several kinds.
    with jax.default_device(device), jax.set_mesh(sharding.make_mesh(sharding.Mesh(1), [device])):
        yield


def torch_arguments(model: Model, rows: ComparisonBatch) -> dict[str, torch.Tensor]:
    """Converts a batch of JAX model inputs to the keyword arguments of the PyTorch model, with the names and layouts
    that the transformers library expects, such as images with channels first.
    """
    found = bridge_of(model).call_arguments(model, rows.arrays)
    return {argument: tensor_of(array) for argument, array in found.items()}


def join_spans(outputs: Mapping[str, Any], stack: Callable[..., Any]) -> dict[str, Any]:
    """Replaces the outputs `start_logits` and `end_logits` of a question answering model, [batch, length] each, by one
    output `logits`, [batch, length, 2]. Other outputs do not change.

    Args:
      outputs: outputs of the model, keyed by name.
      stack: function that stacks a list of arrays along an axis, such as `jnp.stack` or `torch.stack`.
    """
    found = dict(outputs)
    if "start_logits" in found:
        found["logits"] = stack([found.pop("start_logits"), found.pop("end_logits")], -1)
    return found


def mean_square(outputs: Mapping[str, Any], mask: Any) -> Any:
    """Computes the mean square of the logits (of the hidden vectors if there are no logits), as a loss for models whose
    class in the transformers library has none.

    Args:
      outputs: outputs of the model, keyed by name in the transformers library: JAX arrays or PyTorch tensors.
      mask: 1 for tokens to include, 0 for others, [batch, length]. If None, or if there is one vector per example, all
        values are included.
    """
    compared = next(name for name in ("logits", "logits_per_image", "last_hidden_state") if name in outputs)
    squares = outputs[compared] ** 2
    if mask is None or squares.ndim < 3:
        return squares.mean()
    return (squares * mask[..., None]).sum() / mask.sum()


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Converts a NumPy array to a PyTorch tensor. Integers become int64, which PyTorch expects for token ids."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()
