"""Runs a JAX model and the PyTorch model of its exported folder on the same inputs, both in float32."""

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
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.base import PIXEL_INPUTS, Model
from jaxformer.parallel import sharding

LONGEST = 1024
"""Maximum number of tokens in the long input on which models are compared."""
ROWS, LENGTH = 3, 16
"""Number of rows, and number of tokens per row, of the short inputs on which models are compared."""
NEW = 64
"""Number of tokens that both models generate in a comparison."""
NAMES = {
    "logits": "logits",
    "logits_per_image": "logits",
    "image_embeds": "image vectors",
    "text_embeds": "text vectors",
    "seq_relationship_logits": "next-sentence logits",
    "pred_boxes": "boxes",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}
"""Outputs to compare. Maps their names in the transformers library to their names in the certificate."""
SMALL = 1e-3
"""Fraction of the largest gradient of all tensors that is the lower bound for the scale of a tensor's gradient.
Differences of gradients are relative to this scale. Without the bound, tiny gradients that consist of rounding errors,
such as those of the key bias, would seem to differ.
"""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Inputs on which both models are compared."""

    name: str
    """Description of the inputs, such as "padded"."""
    arrays: Mapping[str, np.ndarray]
    """Input arrays of the model, keyed by name. Text inputs also have random `targets` [batch, length]."""

    @property
    def mask(self) -> np.ndarray | None:
        """Mask of tokens, integers [batch, length]: 0 for padding. None for images."""
        return self.arrays.get("segments")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the token ids (rows, tokens), or of the images or clips."""
        return next(self.arrays[name].shape for name in ("tokens", *PIXEL_INPUTS) if name in self.arrays)


def inputs(model: Model, texts: Sequence[np.ndarray], pad: int, seed: int = 0) -> Iterator[Rows]:
    """Yields inputs to compare the models on: short, long, padded and random token rows, or images or video clips.

    Args:
      model: JAX model.
      texts: Token ids of texts.
      pad: Padding id. Does not occur outside of padding.
      seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    limits = model.text_limits
    sizes = {"b": ROWS} | model.fixed_sizes()
    if limits is None:
        shapes = {name: [sizes[letter] for letter in spec.axes] for name, spec in model.inputs().items()}
        (pixels,) = (name for name in PIXEL_INPUTS if name in shapes)
        masks = {name: _pixel_mask(shape) for name, shape in shapes.items() if name == "pixel_mask"}
        others = {name: rng.random(shape, np.float32) for name, shape in shapes.items() if name not in (pixels, *masks)}
        others |= masks
        for name, values in (
            ("within range", rng.uniform(-1, 1, shapes[pixels])),
            ("out of distribution", rng.normal(0, 10, shapes[pixels])),
        ):
            for mask in masks.values():
                values = values * mask[..., None]
            yield Rows(name, {pixels: values.astype(np.float32), **others})
        return
    every = np.delete(np.arange(limits.vocab), pad)
    stream = np.concatenate([*texts, rng.choice(every, 2 * LONGEST)])
    stream = np.tile(stream[stream != pad], 3)
    length = min(LENGTH, limits.max_length)

    def rows(name: str, tokens: np.ndarray, lengths: np.ndarray | None = None) -> Rows:
        lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        segments = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
        input_segments = np.flip(segments, 0)
        given = {
            "tokens": np.where(segments, tokens, pad),
            "segments": segments,
            "targets": rng.choice(every, tokens.shape),
            "token_types": (np.arange(tokens.shape[1]) >= tokens.shape[1] // 2) * segments,
            "inputs": np.where(input_segments, np.flip(tokens, 1), pad),
            "input_segments": input_segments,
        }
        # Copy the arrays, because torch does not accept negative strides, which flipping causes.
        arrays: dict[str, np.ndarray] = {key: np.array(array, np.int32) for key, array in given.items()}
        for other, spec in model.inputs().items():
            if other not in arrays and set(spec.axes) <= {"b", *model.fixed_sizes()}:  # Images or features of sounds.
                shape = [len(tokens) if letter == "b" else sizes[letter] for letter in spec.axes]
                arrays[other] = rng.uniform(-1, 1, shape).astype(np.float32)
        return Rows(name, arrays)

    yield rows("short", stream[: ROWS * length].reshape(ROWS, length))
    yield rows("long", stream[None, : min(LONGEST, limits.max_length)])
    padded = np.array([length, max(1, length // 2), 1])
    yield rows("padded", stream[-ROWS * length :].reshape(ROWS, length), padded)
    yield rows("out of distribution", rng.choice(every, (ROWS, length)))


def _pixel_mask(shape: Sequence[int]) -> np.ndarray:
    """Returns the mask of padded images of different sizes, uint8 [batch, height, width]. The first one has no
    padding.
    """
    mask = np.zeros(shape, np.uint8)
    for row in range(shape[0]):
        mask[row, : shape[1] - row * shape[1] // 4, : shape[2] - row * shape[2] // 6] = 1
    return mask


@dataclasses.dataclass(frozen=True)
class Computed:
    """Outputs, loss and gradients of one model for one input."""

    outputs: dict[str, np.ndarray]
    """Maps names of outputs in the transformers library to arrays."""
    loss: float
    """Loss of the transformers class for the labels that the model's `Bridge` returns. If it returns none, the result
    of `mean_square`.
    """
    gradients: dict[str, np.ndarray]
    """Gradients of the loss. Keys are parameter paths for the JAX model, and tensor names for the PyTorch model."""


class JaxModel:
    """The JAX model of a comparison. It computes in float32 on the CPU."""

    def __init__(self, model: Model, params: Any, dtype: str):
        """Rounds the parameters to `dtype`, the dtype of the weights in the folder, and converts them to float32."""
        self.model = model.replace_stacks(dtype="float32", dropout=0.0, attention_dropout=0.0)
        self.bridge = bridge_of(model)
        with on_cpu():
            self.params = jax.tree.map(
                lambda array: jnp.asarray(np.asarray(array)).astype(dtype).astype(jnp.float32), jax.device_get(params)
            )
        # One program is compiled per input shape.
        self._compute = jax.jit(jax.value_and_grad(self._loss, has_aux=True), static_argnums=(2, 3))

    def __call__(self, rows: Rows, names: Sequence[str]) -> Computed:
        """Computes the outputs, the loss and its gradients. `names` selects the outputs by their names in the
        transformers library.
        """
        with on_cpu():
            labelled = bool(self.bridge.labels(self.model, rows.arrays))
            (loss, outputs), gradients = self._compute(self.params, dict(rows.arrays), tuple(names), labelled)
        return Computed(jax.device_get(outputs), float(loss), parameters.flat(jax.device_get(gradients)))

    def _loss(self, params, arrays, names, labelled):
        taken = {name: arrays[name] for name, spec in self.model.inputs().items() if spec.exported}
        output = self.model.apply({"params": params}, **taken)
        outputs = join_spans(self.bridge.outputs(self.model, output), jnp.stack)
        loss = self.bridge.loss(outputs, arrays) if labelled else mean_square(outputs, arrays.get("segments"))
        return loss, {name: outputs[name] for name in names}

    def generate(self, prompts: Sequence[Prompt | np.ndarray], new: int, start: int | None) -> list[np.ndarray]:
        """Generates `new` tokens greedily after each prompt."""
        with on_cpu():
            return generate(self.model, self.params, prompts, Decoding(max_new_tokens=new), start=start)


def one_by_one(network: Any) -> None:
    """Makes a mixture-of-experts PyTorch model compute its experts one after the other.

    By default, grouped matrix products compute all experts at once. They fail for sizes that do not meet their
    alignment.
    """
    if getattr(network.config, "_experts_implementation", None) not in (None, "eager"):
        network.set_experts_implementation("eager")


class TorchModel:
    """The PyTorch model of a comparison, which the transformers library loads from a Hugging Face folder."""

    def __init__(
        self,
        folder: Folder,
        slots: Callable[[Collection[str]], Sequence[TensorMapping]],
        architecture: str,
        dtype: str,
    ):
        """Loads the PyTorch model from a Hugging Face folder.

        Args:
          folder: Hugging Face folder.
          slots: Function that takes the tensor names of the PyTorch model and returns the tensors that contain
            parameters of the JAX model. Their layout is that of the PyTorch model, which may differ from that of the
            files.
          architecture: Name of the transformers class.
          dtype: Dtype that these tensors are rounded to.

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
        self.slots = slots(self.network.state_dict().keys())
        self.round(self.network)

    def round(self, network: torch.nn.Module) -> None:
        """Rounds the tensors of a PyTorch model in place to the compared dtype, if they contain parameters of the JAX
        model.
        """
        # In a network without heads, the tensor names have no prefix.
        names = {slot.name for slot in self.slots} | {slot.name.partition(".")[2] for slot in self.slots}
        for name, tensor in network.state_dict().items():
            if name in names:
                tensor.copy_(tensor.to(self.dtype))

    def __call__(self, rows: Rows, model: Model) -> Computed:
        """Computes the outputs that the JAX model also has, the loss and its gradients."""
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
        """Converts arrays with the shapes of JAX parameters, such as gradients, to the tensors of the PyTorch model, in
        the same way as an export. Returns them keyed by tensor name.
        """
        found = {}
        for slot in self.slots:
            parts = [np.asarray(ours[path][(*slot.index, ...)]) for path in slot.paths]
            found[slot.name] = slot.to_theirs(parts)
        return found

    def _run(self, rows: Rows, model: Model) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
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
        """Generates `new` tokens greedily after a prompt, given as arguments by `prompt_arguments`.

        Returns:
          The new tokens, and the logits from which each was chosen, [new tokens, vocab].
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
    """Context manager for loading something with the transformers library. Converts all exceptions to Unreadable, and
    silences the log of the library.

    The log would report tensors that a class does not use, such as BERT's pooler in a fill-mask pipeline.

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
    """Compares the gradients of two models. Returns the largest difference, relative to the scale of the tensor's
    gradient (see `SMALL`), and the name of the tensor that has it.

    A difference that is NaN counts as infinite.

    Args:
      ours: Gradients of the JAX model, keyed by tensor name.
      theirs: Gradients of the PyTorch model, keyed by tensor name.

    Raises:
      InputError: If no tensor is in both.
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


def torch_arguments(model: Model, rows: Rows) -> dict[str, torch.Tensor]:
    """Converts model inputs to arguments of the transformers class, such as images with channels first."""
    found = bridge_of(model).call_arguments(model, rows.arrays)
    return {argument: tensor_of(array) for argument, array in found.items()}


def join_spans(outputs: Mapping[str, Any], stack: Callable[..., Any]) -> dict[str, Any]:
    """Combines the start and end logits of a question answering model into one array of logits, [batch, length, 2]."""
    found = dict(outputs)
    if "start_logits" in found:
        found["logits"] = stack([found.pop("start_logits"), found.pop("end_logits")], -1)
    return found


def mean_square(outputs: Mapping[str, Any], mask: Any) -> Any:
    """Computes the mean square of the logits (or the hidden vectors, if there are no logits) over the tokens in `mask`.
    Serves as the loss of models that have none.

    Accepts JAX arrays and PyTorch tensors.
    """
    compared = next(name for name in ("logits", "logits_per_image", "last_hidden_state") if name in outputs)
    squares = outputs[compared] ** 2
    if mask is None or squares.ndim < 3:
        return squares.mean()
    return (squares * mask[..., None]).sum() / mask.sum()


def tensor_of(array: np.ndarray) -> torch.Tensor:
    """Converts an array to a tensor. Integers become int64, which PyTorch expects of token ids."""
    tensor = torch.from_numpy(array)
    return tensor if tensor.is_floating_point() or tensor.dtype == torch.bool else tensor.long()
