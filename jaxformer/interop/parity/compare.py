"""The same inputs through a model of ours and through PyTorch's of its exported folder, both in float32."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from jaxformer.decoding.generate import generate
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.images import IMAGE_MODELS
from jaxformer.interop.huggingface.table import Slot
from jaxformer.interop.parity.lines import Unreadable
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit
from jaxformer.parallel import sharding

LONGEST = 1024
"""Tokens of the long input, at most."""
ROWS, LENGTH = 3, 16
"""Of the other inputs."""
NEW = 64
"""Tokens that both write."""
WRITERS = (Gpt, EncoderDecoder)
"""What writes."""
MODELS = (Bert, *WRITERS, Classifier, *IMAGE_MODELS)
"""What can be compared."""
OUTPUTS = {
    "logits": ("logits", "prediction_logits"),
    "next-sentence logits": ("seq_relationship_logits",),
    "hidden": ("last_hidden_state",),
    "pooled": ("pooler_output",),
}
"""What PyTorch's models call what ours compute."""
SMALL = 1e-3
"""A tensor's gradient is measured against its own largest number, or this share of the largest of all: that of the
keys' bias, for one, is nothing but rounding."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Rows for both; integers [b, t] with 0 in `mask` where there is padding."""

    name: str
    tokens: np.ndarray
    mask: np.ndarray
    targets: np.ndarray
    types: np.ndarray
    read: np.ndarray
    """What an encoder reads for them."""
    read_mask: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and tokens."""
        return self.tokens.shape


@dataclasses.dataclass(frozen=True)
class Images:
    """Images for both: normalised floats [b, height, width, n]; noise [b, p] where it says which patches are seen."""

    name: str
    images: np.ndarray
    noise: np.ndarray | None
    mask = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As the images'."""
        return self.images.shape


def inputs(model: nn.Module, texts: Sequence[np.ndarray], pad: int, seed: int = 0) -> Iterator[Inputs | Images]:
    """Rows of text, short, as long as the model takes and padded, and rows of tokens that no text has; or images.

    Args:
      model: ours.
      texts: ids of texts.
      pad: the id in padding, and nowhere else.
      seed: of what is drawn.
    """
    rng = np.random.default_rng(seed)
    if isinstance(model, IMAGE_MODELS):
        shape = (ROWS, *model.blank().shape[1:])
        noise = rng.random((ROWS, model.patches), np.float32) if isinstance(model, MaskedAutoencoder) else None
        yield Images("within range", rng.uniform(-1, 1, shape).astype(np.float32), noise)
        yield Images("out of distribution", rng.normal(0, 10, shape).astype(np.float32), noise)
        return
    every = np.delete(np.arange(model.vocab), pad)
    stream = np.concatenate([*texts, rng.choice(every, 2 * LONGEST)])
    stream = np.tile(stream[stream != pad], 3)
    length = min(LENGTH, model.max_length)

    def rows(name, tokens, lengths=None):
        lengths = np.full(len(tokens), tokens.shape[1]) if lengths is None else lengths
        mask = (np.arange(tokens.shape[1]) < lengths[:, None]).astype(np.int32)
        targets = rng.choice(every, tokens.shape)
        read, read_mask = np.flip(tokens, 1), np.flip(mask, 0)
        tokens, read = np.where(mask, tokens, pad), np.where(read_mask, read, pad)
        types = (np.arange(tokens.shape[1]) >= tokens.shape[1] // 2) * mask
        # Copies: torch takes no array of negative strides, which flipping leaves.
        return Inputs(name, *(np.array(part, np.int32) for part in (tokens, mask, targets, types, read, read_mask)))

    yield rows("short", stream[: ROWS * length].reshape(ROWS, length))
    yield rows("long", stream[None, : min(LONGEST, model.max_length)])
    padded = np.array([length, max(1, length // 2), 1])
    yield rows("padded", stream[-ROWS * length :].reshape(ROWS, length), padded)
    yield rows("out of distribution", rng.choice(every, (ROWS, length)))


@dataclasses.dataclass(frozen=True)
class Computed:
    """What one side made of one input."""

    outputs: dict[str, np.ndarray]
    """Those of the `OUTPUTS` that it has."""
    loss: float
    """Their loss, as transformers defines it for the model."""
    gradients: dict[str, np.ndarray]
    """The loss's, by our paths or by their names."""


class Ours:
    """A model of ours, in float32 on the CPU."""

    def __init__(self, model: nn.Module, params: Any, dtype: str):
        """`dtype`: what the folder's weights are rounded to."""
        self.model = _quiet(model)
        with on_cpu():
            self.params = jax.tree.map(
                lambda array: jnp.asarray(np.asarray(array)).astype(dtype).astype(jnp.float32), jax.device_get(params)
            )
        # One program for each shape of inputs.
        self._compute = jax.jit(jax.value_and_grad(self._loss, has_aux=True), static_argnums=2)

    def __call__(self, rows: Inputs, names: Sequence[str]) -> Computed:
        """What it makes of rows: of its outputs those that are called so."""
        with on_cpu():
            (loss, outputs), gradients = self._compute(self.params, arrays_of(rows), tuple(names))
        return Computed(jax.device_get(outputs), float(loss), parameters.flat(jax.device_get(gradients)))

    def _loss(self, params, rows, names):
        outputs = self._outputs(params, rows)
        return _loss(self.model, outputs, rows), {name: outputs[name] for name in names}

    def _outputs(self, params, rows):
        if isinstance(self.model, Vit):
            output = self.model.apply({"params": params}, rows["images"])
            return {name: getattr(output, name) for name in computed(self.model)}
        if isinstance(self.model, MaskedAutoencoder):
            output = self.model.apply({"params": params}, rows["images"], rows["noise"])
            return {"hidden": output.hidden} if output.pixels is None else {"logits": output.pixels}
        tokens, mask = rows["tokens"], rows["mask"]
        if isinstance(self.model, EncoderDecoder):
            names = {"input_segments": rows["read_mask"], "segments": mask}
            return {"logits": self.model.apply({"params": params}, rows["read"], tokens, **names).logits}
        types = {"token_types": rows["types"]} if _types(self.model) else {}
        output = self.model.apply({"params": params}, tokens, mask, **types)
        of_texts = isinstance(self.model, Classifier) and self.model.pooling != "none"
        found = {
            "hidden": lambda: output.hidden,
            "logits": lambda: output.logits[:, 0] if of_texts else output.logits,
            "pooled": lambda: output.pooled[:, 0],
            "next-sentence logits": lambda: output.next_sentence_logits[:, 0],
        }
        return {name: found[name]() for name in computed(self.model)}

    def write(self, prompts: Sequence[np.ndarray], new: int, start: int | None) -> list[np.ndarray]:
        """Greedily so many tokens behind each prompt."""
        with on_cpu():
            return generate(self.model, self.params, prompts, Decoding(max_new_tokens=new), start=start)


class Theirs:
    """The model of transformers that a folder describes."""

    def __init__(self, folder: Folder, slots: Sequence[Slot], architecture: str, dtype: str):
        """Loads it.

        Args:
          folder: a Hugging Face folder.
          slots: its tensors that are a model of ours.
          architecture: transformers' class.
          dtype: what those tensors are rounded to, if they are of another.

        Raises:
          Unreadable: transformers cannot.
        """
        self.config, self.slots, self.dtype = folder.config, slots, getattr(torch, dtype)
        with reading(architecture):
            kind = getattr(transformers, architecture)
            settings = {"dtype": torch.float32, "attn_implementation": "eager", "local_files_only": True}
            self.network = kind.from_pretrained(folder.path, **settings).eval()
        self.round(self.network)

    def round(self, network: torch.nn.Module) -> None:
        """Rounds the tensors of any class's network of the folder that are a model of ours."""
        # A network without heads has the names without the prefix.
        names = {slot.name for slot in self.slots} | {slot.name.partition(".")[2] for slot in self.slots}
        for name, tensor in network.state_dict().items():
            if name in names:
                tensor.copy_(tensor.to(self.dtype))

    def __call__(self, rows: Inputs, model: nn.Module) -> Computed:
        """What it makes of rows, as far as ours makes it too."""
        self.network.zero_grad()
        outputs, loss = self._run(rows, model)
        loss.backward()
        gradients = {
            # Nothing depends on some: a pooler that no loss reads.
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

    def _run(self, rows: Inputs, model: nn.Module):
        arrays = {name: torch.from_numpy(array) for name, array in arrays_of(rows).items()}
        output = self.network(**given_to(model, arrays))
        found = {}
        for name, attributes in OUTPUTS.items():
            values = [value for one in attributes if (value := getattr(output, one, None)) is not None]
            # A pooler that the folder has no weights for is drawn at random.
            if values and name in computed(model):
                found[name] = values[0]
        if hasattr(output, "start_logits"):
            found = {"logits": torch.stack([output.start_logits, output.end_logits], -1)}
        # A masked autoencoder's own loss depends on what pixels are compared with, of which its export says nothing.
        loss = None if isinstance(model, MaskedAutoencoder) else getattr(output, "loss", None)
        return found, _size(found, arrays.get("mask")) if loss is None else loss

    def write(self, prompt: np.ndarray, new: int, start: int | None, pad: int) -> tuple[np.ndarray, np.ndarray]:
        """Greedily so many tokens behind a prompt, and the logits [n, v] by which each was chosen."""
        plain = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "num_beams": 1, "use_cache": True}
        tokens = {"pad_token_id": pad, "eos_token_id": None, "bos_token_id": None, "decoder_start_token_id": start}
        settings = transformers.GenerationConfig(**plain, **tokens, output_logits=True, return_dict_in_generate=True)
        self.network.generation_config = settings
        ids = torch.from_numpy(prompt).long()[None]
        with torch.no_grad():
            output = self.network.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return output.sequences[0, -len(output.logits) :].numpy(), torch.cat(output.logits).numpy()


def their_tokenizer(folder: Path) -> Any:
    """What AutoTokenizer makes of a folder; Unreadable where it cannot."""
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
        told = (str(error).splitlines() or [type(error).__name__])[0]
        version = f"transformers {transformers.__version__}"
        raise Unreadable(f"{version} cannot load {what}: {told}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def computed(model: nn.Module) -> list[str]:
    """Those of the `OUTPUTS` that a model of ours has."""
    if isinstance(model, Vit):
        return ["hidden", *["logits"] * bool(model.labels), *["pooled"] * model.pooler]
    if isinstance(model, MaskedAutoencoder):
        return ["hidden" if model.decoder is None else "logits"]
    if not isinstance(model, Bert):
        return ["logits"]
    named = {"logits": "masked_lm", "next-sentence logits": "next_sentence", "pooled": "pooler"}
    return ["hidden", *(name for name, head in named.items() if head in model.prediction_heads)]


def largest_difference(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """The largest difference of gradients relative to their size, and whose it is; infinite where it is no number.

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
    # The mesh tells what is traced for which device, where others are there too.
    with jax.default_device(device), jax.set_mesh(sharding.make_mesh(sharding.Mesh(1), [device])):
        yield


def _quiet(model: nn.Module) -> nn.Module:
    """The model in float32, without dropout."""
    if isinstance(model, Classifier):
        return dataclasses.replace(model, backbone=_quiet(model.backbone))
    parts = {name: getattr(model, name, None) for name in ("transformer", "encoder", "decoder")}
    changes = {"dtype": "float32", "dropout": 0.0, "attention_dropout": 0.0}
    stacks = {name: dataclasses.replace(part, **changes) for name, part in parts.items() if part is not None}
    return dataclasses.replace(model, **stacks)


def _types(model: nn.Module) -> bool:
    """Whether it tells sentences A and B apart."""
    return getattr(getattr(model, "backbone", model), "token_types", 0) > 1


def arrays_of(rows: Inputs | Images) -> dict[str, np.ndarray]:
    """The arrays of rows by name."""
    return {name: value for name, value in vars(rows).items() if name != "name" and value is not None}


def given_to(model: nn.Module, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a model of transformers is called with, labels too where it has a loss of its own that is compared."""
    if isinstance(model, IMAGE_MODELS):
        noise = {"noise": arrays["noise"]} if "noise" in arrays else {}
        return {"pixel_values": arrays["images"].permute(0, 3, 1, 2)} | noise
    arrays = {name: array.long() for name, array in arrays.items()}
    tokens, mask = arrays["tokens"], arrays["mask"]
    # transformers shifts the targets of a decoder alone by itself: to the token that each comes after.
    labels = torch.where(mask > 0, tokens if isinstance(model, Gpt) else arrays["targets"], -100)
    if isinstance(model, EncoderDecoder):
        read = {"input_ids": arrays["read"], "attention_mask": arrays["read_mask"]}
        return {**read, "decoder_input_ids": tokens, "labels": labels}
    given = {"input_ids": tokens, "attention_mask": mask}
    given |= {"token_type_ids": arrays["types"]} if _types(model) else {}
    if isinstance(model, Gpt) or (isinstance(model, Bert) and "masked_lm" in model.prediction_heads):
        given["labels"] = labels
    if isinstance(model, Bert) and "next_sentence" in model.prediction_heads:
        given["next_sentence_label"] = arrays["types"][:, -1]
    return given


def _loss(model: nn.Module, outputs: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> jax.Array:
    """What transformers gives for these labels, or the outputs' size where it is given none."""
    if isinstance(model, (Classifier, *IMAGE_MODELS)) or "logits" not in outputs:
        return _size(outputs, rows.get("mask"))
    logits, targets, mask = outputs["logits"], rows["targets"], rows["mask"]
    if isinstance(model, Gpt):
        logits, targets, mask = logits[:, :-1], rows["tokens"][:, 1:], mask[:, 1:]
    loss = (_surprise(logits, targets) * mask).sum() / mask.sum()
    if "next-sentence logits" in outputs:
        loss += _surprise(outputs["next-sentence logits"], rows["types"][:, -1]).mean()
    return loss


def _size(outputs: Mapping[str, Any], mask: Any) -> Any:
    """The mean square of logits, or of hidden vectors, where there are tokens; of arrays of either library."""
    squares = (outputs["logits"] if "logits" in outputs else outputs["hidden"]) ** 2
    if mask is None or squares.ndim < 3:
        return squares.mean()
    return (squares * mask[..., None]).sum() / mask.sum()


def _surprise(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
