"""The same inputs through a model in JAX and through PyTorch's model of its exported folder, both in float32."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.table import TensorMapping
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.base import Model
from jaxformer.parallel import sharding

LONGEST = 1024
"""Tokens of the long input, at most."""
ROWS, LENGTH = 3, 16
"""Rows and tokens of the other inputs."""
NEW = 64
"""Tokens that both generate."""
NAMES = {
    "logits": "logits",
    "logits_per_image": "logits",
    "image_embeds": "image vectors",
    "text_embeds": "text vectors",
    "seq_relationship_logits": "next-sentence logits",
    "last_hidden_state": "hidden",
    "pooler_output": "pooled",
}
"""Outputs that are compared, by transformers' names, and what the certificate calls them."""
SMALL = 1e-3
"""A tensor's gradient is measured against its own largest number, or this share of the largest of all: that of the
keys' bias, for one, is nothing but rounding."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Inputs for both models."""

    name: str
    """A description of the inputs."""
    arrays: Mapping[str, np.ndarray]
    """By the names of the model's inputs; those of text have random `targets` [b, t] too."""

    @property
    def mask(self) -> np.ndarray | None:
        """Integers [b, t]: 0 at padding; None for images."""
        return self.arrays.get("segments")

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and tokens, or the shape of the images."""
        return self.arrays["tokens" if "tokens" in self.arrays else "images"].shape


def inputs(model: Model, texts: Sequence[np.ndarray], pad: int, seed: int = 0) -> Iterator[Rows]:
    """Rows of text, short, as long as the model takes, and padded, and rows of random tokens; or images.

    Args:
      model: the JAX model.
      texts: ids of texts.
      pad: the id in padding, and nowhere else.
      seed: for random numbers.
    """
    rng = np.random.default_rng(seed)
    limits = model.text_limits
    sizes = {"b": ROWS} | model.fixed_sizes()
    if limits is None:
        shapes = {name: [sizes[letter] for letter in spec.axes] for name, spec in model.inputs().items()}
        others = {name: rng.random(shape, np.float32) for name, shape in shapes.items() if name != "images"}
        for name, images in (
            ("within range", rng.uniform(-1, 1, shapes["images"])),
            ("out of distribution", rng.normal(0, 10, shapes["images"])),
        ):
            yield Rows(name, {"images": images.astype(np.float32), **others})
        return
    every = np.delete(np.arange(limits.vocab), pad)
    stream = np.concatenate([*texts, rng.choice(every, 2 * LONGEST)])
    stream = np.tile(stream[stream != pad], 3)
    length = min(LENGTH, limits.max_length)

    def rows(name: str, tokens: np.ndarray, lengths: np.ndarray | None = None) -> Rows:
        lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        segments = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
        input_segments = np.flip(segments, 0)
        arrays = {
            "tokens": np.where(segments, tokens, pad),
            "segments": segments,
            "targets": rng.choice(every, tokens.shape),
            "token_types": (np.arange(tokens.shape[1]) >= tokens.shape[1] // 2) * segments,
            "inputs": np.where(input_segments, np.flip(tokens, 1), pad),
            "input_segments": input_segments,
        }
        # Copies: torch takes no array of negative strides, which flipping leaves.
        arrays = {key: np.array(array, np.int32) for key, array in arrays.items()}
        if (spec := model.inputs().get("images")) is not None:
            shape = [sizes[letter] for letter in spec.axes]
            arrays["images"] = rng.uniform(-1, 1, shape).astype(np.float32)
        return Rows(name, arrays)

    yield rows("short", stream[: ROWS * length].reshape(ROWS, length))
    yield rows("long", stream[None, : min(LONGEST, limits.max_length)])
    padded = np.array([length, max(1, length // 2), 1])
    yield rows("padded", stream[-ROWS * length :].reshape(ROWS, length), padded)
    yield rows("out of distribution", rng.choice(every, (ROWS, length)))


@dataclasses.dataclass(frozen=True)
class Computed:
    """The results of one model on one input."""

    outputs: dict[str, np.ndarray]
    """By transformers' names."""
    loss: float
    """transformers' loss for the labels of the model's bridge, or `mean_square`."""
    gradients: dict[str, np.ndarray]
    """Gradients of the loss, by path in JAX and by name in PyTorch."""


class JaxModel:
    """A model in JAX, in float32 on the CPU."""

    def __init__(self, model: Model, params: Any, dtype: str):
        """Rounds the parameters to `dtype`, the type of the folder's weights."""
        self.model = model.replace_stacks(dtype="float32", dropout=0.0, attention_dropout=0.0)
        self.bridge = bridge_of(model)
        with on_cpu():
            self.params = jax.tree.map(
                lambda array: jnp.asarray(np.asarray(array)).astype(dtype).astype(jnp.float32), jax.device_get(params)
            )
        # One program for each shape of inputs.
        self._compute = jax.jit(jax.value_and_grad(self._loss, has_aux=True), static_argnums=(2, 3))

    def __call__(self, rows: Rows, names: Sequence[str]) -> Computed:
        """Computes the outputs with these names, by transformers' names for them, the loss and its gradients."""
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

    def generate(self, prompts: Sequence[np.ndarray], new: int, start: int | None) -> list[np.ndarray]:
        """Generates `new` tokens greedily after each prompt."""
        with on_cpu():
            return generate(self.model, self.params, prompts, Decoding(max_new_tokens=new), start=start)


class TorchModel:
    """The model of transformers that a folder describes."""

    def __init__(self, folder: Folder, slots: Sequence[TensorMapping], architecture: str, dtype: str):
        """Loads it.

        Args:
          folder: a Hugging Face folder.
          slots: its tensors that are parameters of the JAX model.
          architecture: transformers' class.
          dtype: the type that those tensors are rounded to.

        Raises:
          Unreadable: transformers cannot load the folder.
        """
        self.config, self.slots, self.dtype = folder.config, slots, getattr(torch, dtype)
        with reading(architecture):
            kind = getattr(transformers, architecture)
            self.network = kind.from_pretrained(
                folder.path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
            ).eval()
        self.round(self.network)

    def round(self, network: torch.nn.Module) -> None:
        """Rounds those tensors of a network of transformers that are parameters of the model."""
        # A network without heads has the names without the prefix.
        names = {slot.name for slot in self.slots} | {slot.name.partition(".")[2] for slot in self.slots}
        for name, tensor in network.state_dict().items():
            if name in names:
                tensor.copy_(tensor.to(self.dtype))

    def __call__(self, rows: Rows, model: Model) -> Computed:
        """Computes the outputs that the JAX model has too, the loss and its gradients."""
        self.network.zero_grad()
        outputs, loss = self._run(rows, model)
        loss.backward()
        gradients = {
            # Some parameters do not affect the loss, such as those of a pooler.
            name: (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).numpy().copy()
            for name, tensor in self.network.named_parameters()
        }
        return Computed({name: part.detach().numpy() for name, part in outputs.items()}, loss.item(), gradients)

    def named(self, ours: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of our parameters' shapes as their tensors, through the table by which weights are exported."""
        found = {}
        for slot in self.slots:
            parts = [np.asarray(ours[path][... if slot.layer is None else slot.layer]) for path in slot.paths]
            found[slot.name] = slot.to_theirs(parts)
        return found

    def _run(self, rows: Rows, model: Model) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        labels = bridge_of(model).labels(model, rows.arrays)
        output = self.network(**torch_arguments(model, rows), **{k: _tensor(array) for k, array in labels.items()})
        values = {name: getattr(output, name, None) for name in (*NAMES, "start_logits", "end_logits")}
        values["logits"] = getattr(output, "prediction_logits", values["logits"])
        found = join_spans({name: value for name, value in values.items() if value is not None}, torch.stack)
        # A pooler that the folder has no weights for has random ones.
        if not model.has_pooler:
            found.pop("pooler_output", None)
        mask = rows.mask
        return found, output.loss if labels else mean_square(found, None if mask is None else torch.from_numpy(mask))

    def generate(self, prompt: np.ndarray, new: int, start: int | None, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Generates `new` tokens greedily after a prompt; returns them and the logits [n, v] of each choice."""
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
        ids = torch.from_numpy(prompt).long()[None]
        with torch.no_grad():
            output = self.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return output.sequences[0, -len(output.logits) :].numpy(), torch.cat(output.logits).numpy()


def their_tokenizer(folder: Path) -> Any:
    """The tokenizer that AutoTokenizer loads from a folder; raises Unreadable if it cannot."""
    with reading("the tokenizer"):
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises Unreadable where transformers raises anything while it loads `what`, which it does without log lines.

    It reports tensors that a class does not use, such as BERT's pooler in a pipeline that fills masks.
    """
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    except Exception as error:  # Whatever it is: the folder's fault, or that of a version too old or too new for it.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        version = f"transformers {transformers.__version__}"
        raise Unreadable(f"{version} cannot load {what}: {reason}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def largest_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference of gradients relative to their size, and its parameter; infinite where it is NaN.

    Raises:
      InputError: no tensor is on both sides.
    """
    names = [name for name in ours if name in theirs]
    if not names:
        raise InputError("the export's table names none of the parameters that PyTorch's model has")
    most = max(np.abs(theirs[name]).max(initial=0) for name in names)
    differences = {}
    for name in names:
        size = max(np.abs(theirs[name]).max(initial=0), SMALL * most, 1e-30)
        difference = float(np.abs(ours[name] - theirs[name]).max(initial=0) / size)
        differences[name] = difference if np.isfinite(difference) else np.inf
    worst = max(differences, key=differences.get)
    return differences[worst], worst


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Computes where PyTorch does, in full precision."""
    device = jax.local_devices(backend="cpu")[0]
    # The mesh says which device is traced for, where there are several kinds.
    with jax.default_device(device), jax.set_mesh(sharding.make_mesh(sharding.Mesh(1), [device])):
        yield


def torch_arguments(model: Model, rows: Rows) -> dict[str, torch.Tensor]:
    """The arguments of transformers' class for the inputs of a model; images have their channels first there."""
    found = {}
    for name, argument in bridge_of(model).arguments.items():
        if name in model.inputs() and name in rows.arrays:
            array = rows.arrays[name]
            found[argument] = _tensor(array.transpose(0, 3, 1, 2) if name == "images" else array)
    return found


def join_spans(outputs: Mapping[str, Any], stack: Callable[..., Any]) -> dict[str, Any]:
    """Outputs in which the logits of starts and ends are one array, [b, t, 2]."""
    found = dict(outputs)
    if "start_logits" in found:
        found["logits"] = stack([found.pop("start_logits"), found.pop("end_logits")], -1)
    return found


def mean_square(outputs: Mapping[str, Any], mask: Any) -> Any:
    """The mean square of logits, or of hidden vectors, where there are tokens; a loss for arrays of either library."""
    compared = next(name for name in ("logits", "logits_per_image", "last_hidden_state") if name in outputs)
    squares = outputs[compared] ** 2
    if mask is None or squares.ndim < 3:
        return squares.mean()
    return (squares * mask[..., None]).sum() / mask.sum()


def _tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor if tensor.is_floating_point() else tensor.long()
