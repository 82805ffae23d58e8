"""Batches of inputs on which a JAX and a PyTorch model are compared."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.models.base import PIXEL_INPUTS, Model

MAX_TEXT_TOKENS = 1024
"""Maximum number of tokens of the long text input."""
ROWS, LENGTH = 3, 16
"""Number of texts in a batch, and number of tokens per text, in the short inputs."""


@dataclasses.dataclass(frozen=True)
class ComparisonBatch:
    """Batch of inputs on which the JAX and the PyTorch model are compared."""

    name: str
    """Description of the inputs, such as "padded"."""
    arrays: Mapping[str, np.ndarray]
    """Input arrays of the model, keyed by name, such as `tokens`. For text models, also random token ids `targets`
    [batch, length] for the loss.
    """

    @property
    def mask(self) -> np.ndarray | None:
        """Mask of the tokens, integers [batch, length]: 1 for tokens, 0 for padding. None for models without text
        input.
        """
        return self.arrays.get("segments")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the token ids, [batch, length]. For models without text, the shape of the sounds, images or
        clips.
        """
        return next(self.arrays[name].shape for name in ("tokens", "samples", *PIXEL_INPUTS) if name in self.arrays)


def comparison_batches(model: Model, texts: Sequence[np.ndarray], pad: int, seed: int = 0) -> Iterator[ComparisonBatch]:
    """Yields the batches for one model. For text models: short, long, padded and random token sequences. For other
    models: random sounds, images or video clips.

    Args:
      model: JAX model.
      texts: Token ids of texts, [tokens] each. The inputs are cut from their concatenation.
      pad: Id of the padding token. Does not occur outside of padding.
      seed: Random seed.
    """
    rng = np.random.default_rng(seed)
    limits = model.text_limits
    if given := bridge_of(model).random_inputs(model, rng):
        yield from (ComparisonBatch(name, arrays) for name, arrays in given)
        return
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
            yield ComparisonBatch(name, {pixels: values.astype(np.float32), **others})
        return
    every = np.delete(np.arange(limits.vocab), pad)
    stream = np.concatenate([*texts, rng.choice(every, 2 * MAX_TEXT_TOKENS)])
    stream = np.tile(stream[stream != pad], 3)
    length = min(LENGTH, limits.max_length)

    def rows(name: str, tokens: np.ndarray, lengths: np.ndarray | None = None) -> ComparisonBatch:
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
        return ComparisonBatch(name, arrays)

    yield rows("short", stream[: ROWS * length].reshape(ROWS, length))
    yield rows("long", stream[None, : min(MAX_TEXT_TOKENS, limits.max_length)])
    padded = np.array([length, max(1, length // 2), 1])
    yield rows("padded", stream[-ROWS * length :].reshape(ROWS, length), padded)
    yield rows("out of distribution", rng.choice(every, (ROWS, length)))


def _pixel_mask(shape: Sequence[int]) -> np.ndarray:
    """Returns a mask for a batch of images of different sizes, uint8 [batch, height, width]: 1 for the pixels of the
    image, 0 for padding at the bottom and right. The first image has no padding.
    """
    mask = np.zeros(shape, np.uint8)
    for row in range(shape[0]):
        mask[row, : shape[1] - row * shape[1] // 4, : shape[2] - row * shape[2] // 6] = 1
    return mask
