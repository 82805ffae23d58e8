"""Explains one prediction of a run: attention, attributions and, for decoders, the logit lens."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.explanations import attributions
from jaxformer.explanations.attributions import Features
from jaxformer.explanations.inside import Inside, logit_lens, look_inside, rollout
from jaxformer.explanations.targets import Prediction, choose, piece
from jaxformer.parallel import sharding
from jaxformer.progress import phase
from jaxformer.runs.run import Run

PARTS = 8
"""Number of parts into which occlusion divides each side of a picture, and the time of a sound; a sound's frequencies
are divided into half of it.
"""
POSITIONS = 24
"""Maximum number of positions of the logit lens, the last ones of the text."""


@dataclasses.dataclass(frozen=True, eq=False)
class AttentionView:
    """Attention weights of a stack of Transformer blocks for one input."""

    name: str
    """Name of the stack, and `attention to` another input for cross-attention."""
    weights: np.ndarray
    """Attention weights, float32 [layers, heads, queries, keys]."""
    queries: tuple[str, ...]
    """Name of each query, such as a token."""
    keys: tuple[str, ...]
    """Name of each key."""
    rollout: np.ndarray | None = None
    """Attention rollout, float32 [queries, keys]. None for cross-attention."""
    grid: tuple[int, int] | None = None
    """Number of rows and columns of patches, if the keys are patches of a picture. They are the last keys."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lens:
    """Logit lens: the most likely next token of each position, according to each block."""

    positions: tuple[str, ...]
    """Token at each position."""
    tokens: tuple[tuple[str, ...], ...]
    """Most likely token for each block and position."""
    probabilities: np.ndarray
    """Probabilities of these tokens, float32 [layers, positions]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """Explanation of one prediction. `page` in `explanations.page` shows it."""

    request: str
    """Text or path of the input."""
    answer: Any
    """Answer of the run, or None if the model does not answer."""
    units: tuple[str, ...]
    """Tokens of the input that is explained. Empty for pictures and sounds."""
    features: np.ndarray
    """Features that are explained: embeddings [length, embed], normalized pixels [height, width, channels], or a
    spectrogram [frames, mels].
    """
    kind: str
    """Name of the model input that is explained, such as `tokens`, `images` or `log_mel`. Empty if there is none."""
    prediction: Prediction | None
    """The prediction, or None if the model has no logits that can be explained; then there are no attributions."""
    attributions: Mapping[str, np.ndarray]
    """Attributions keyed by method: [length] for tokens, [height, width] for pictures, [frames, mels] for sounds."""
    scores: tuple[float, float] | None
    """Score of the prediction, and of the baseline. Integrated gradients sum to their difference."""
    attention: tuple[AttentionView, ...]
    """Attention of each stack."""
    lens: Lens | None
    """Logit lens. None for a model that does not generate text."""


def explain(run: Run, request: Any, label: str | None = None) -> Explanation:
    """Explains the prediction of a run for one request: how strongly tokens, pixels or sounds contribute to it by
    gradient × input, integrated gradients and occlusion; the attention of all layers and heads; and, for a model that
    generates text, the logit lens.

    The baseline of integrated gradients and occlusion is an input without information: [MASK] (or padding) in place of
    all tokens except special ones, the mean color, or silence.

    Args:
      run: the run.
      request: a text, or the path of a picture, clip or sound, as for `Run.predict`.
      label: label or token whose score is explained. If None, the most likely one. For an encoder–decoder, an answer.

    Raises:
      InputError: If the run cannot read the request, or its model has no such label.
    """
    features = Features.of(run.model)
    with phase("explaining"), sharding.use(run.mesh, run.experiment.mesh):
        (prepared,) = run.prepare_requests([request])
        inputs = dict(run.predictor.encode([prepared]))
        inside = look_inside(run.model, run.params, inputs)
        answer = _answer(run, prepared)
        prediction, inputs, inside = choose(run, inputs, inside, answer, label)
        x, units, found, scores = jnp.zeros((1, 1)), (), {}, None
        if features is not None:
            x = attributions.read_features(features, run.params, inputs)
            units = _pieces(run, inputs[features.name][0]) if features.is_text else ()
        if features is not None and prediction is not None:
            found, scores = _attributions(run, features, prediction, inputs, x)
        views = tuple(_views(run, inputs, inside))
        lens = _lens(run, inputs, inside) if run.model.is_generative and run.tokenizer is not None else None
    name = request if isinstance(request, str) else type(request).__name__
    return Explanation(
        request=name,
        answer=answer,
        units=units,
        features=np.asarray(x[0]),
        kind="" if features is None else features.name,
        prediction=prediction,
        attributions=found,
        scores=scores,
        attention=views,
        lens=lens,
    )


def _answer(run: Run, prepared: Any) -> Any:
    try:
        return run.predictor.predict([prepared])[0]
    except InputError:  # For example a text without [MASK], whose attention can be shown.
        return None


def _pieces(run: Run, tokens: np.ndarray) -> tuple[str, ...]:
    return tuple(piece(run.require_tokenizer(), int(token)) for token in np.asarray(tokens))


def _attributions(
    run: Run, features: Features, prediction: Prediction, inputs: Mapping[str, np.ndarray], x: jax.Array
) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    """Computes all attributions, summed over the embedding or the channels, and the scores of the input and of the
    baseline.
    """
    target, params = prediction.target, run.params
    baseline = _baseline(run, features, inputs, x)
    scores = [float(attributions.score(features, target, params, inputs, one)) for one in (x, baseline)]
    of_parts, parts = _parts(run, features, inputs, x)
    gradient = attributions.gradient_times_input(features, target, params, inputs, x)
    integrated = attributions.integrated_gradients(features, target, params, inputs, x, baseline)
    fallen = attributions.occlusion(features, target, params, inputs, (x, baseline), parts)
    if features.name != attributions.SOUND:
        gradient, integrated = gradient.sum(-1), integrated.sum(-1)
    occluded = np.tensordot(np.asarray(fallen), of_parts, axes=1)
    if x.ndim == 5:  # A clip: the frames are summed.
        gradient, integrated = gradient.sum(1), integrated.sum(1)
    found = {"gradient × input": gradient[0], "integrated gradients": integrated[0]}
    return {**{name: np.asarray(value) for name, value in found.items()}, "occlusion": occluded}, (scores[0], scores[1])


def _baseline(run: Run, features: Features, inputs: Mapping[str, np.ndarray], x: jax.Array) -> jax.Array:
    if features.name == attributions.SOUND:
        return jnp.full_like(x, x.min())
    if not features.is_text:
        return jnp.zeros_like(x)
    tokenizer, tokens = run.require_tokenizer(), np.asarray(inputs[features.name])
    blank = next((one for key in ("mask", "pad", "eos") if (one := tokenizer.special_id(key)) is not None), None)
    if blank is None:
        return jnp.zeros_like(x)
    blanked = np.where(tokenizer.is_special[tokens], tokens, blank).astype(tokens.dtype)
    return attributions.read_features(features, run.params, {**inputs, features.name: blanked})


def _parts(
    run: Run, features: Features, inputs: Mapping[str, np.ndarray], x: jax.Array
) -> tuple[np.ndarray, jax.Array]:
    """Divides the features into parts for occlusion: tokens that are not special, or tiles of a picture or spectrogram.

    Returns which places each part covers: in the shape of the attributions, float32 [parts, ...], and in the shape of
    the features, boolean [parts, ...].
    """
    if features.is_text:
        ordinary = np.flatnonzero(~run.require_tokenizer().is_special[np.asarray(inputs[features.name][0])])
        found = np.eye(x.shape[1], dtype=np.float32)[ordinary]
        return found, jnp.asarray(found[..., None] > 0)
    sizes = x.shape[1:3] if features.name == attributions.SOUND else x.shape[-3:-1]
    counts = (PARTS, max(1, PARTS // 2)) if features.name == attributions.SOUND else (PARTS, PARTS)
    tiles = [np.minimum(np.arange(size) * count // size, count - 1) for size, count in zip(sizes, counts, strict=True)]
    number = tiles[0][:, None] * counts[1] + tiles[1]
    found = (number == np.arange(counts[0] * counts[1])[:, None, None]).astype(np.float32)
    of_features = found > 0 if features.name == attributions.SOUND else found[..., None] > 0
    return found, jnp.asarray(of_features)


def _views(run: Run, inputs: Mapping[str, np.ndarray], inside: Inside):
    """Yields the attention of each stack, for the first row."""
    names = {key: _pieces(run, inputs[key][0]) for key in ("inputs", "tokens") if key in inputs and run.tokenizer}
    for path, record in inside.stacks.items():
        if record.attention is None:
            continue
        weights = np.asarray(record.attention[:, 0])
        length = weights.shape[-1]
        texts = [found for found in names.values() if len(found) == length]
        is_decoder = record.memory_attention is not None
        own = names.get("tokens") if is_decoder else texts[0] if texts else None
        units, grid = (own, None) if own is not None and len(own) == length else _places(run, length)
        rolled = np.asarray(rollout(record.attention[:, :1])[0])
        yield AttentionView(path, weights, units, units, rolled, grid)
        if record.memory_attention is not None:
            across = np.asarray(record.memory_attention[:, 0])
            sources = names.get("inputs", ())
            keys = sources if len(sources) == across.shape[-1] else _places(run, across.shape[-1])[0]
            yield AttentionView(f"{path}, attention to the input", across, units, keys)


def _places(run: Run, length: int) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """Returns names of positions that are not tokens: patches of a picture, after any class and register tokens, or
    numbers. Also returns the rows and columns of the patches, or None.
    """
    image, patch = getattr(run.model, "image", None), getattr(run.model, "patch", None)
    side = image // patch if isinstance(image, int) and isinstance(patch, int) else 0
    leading = length - side * side
    if not side or not 0 <= leading < side * side:
        return tuple(map(str, range(length))), None
    first = tuple("class token" if not index else f"register {index}" for index in range(leading))
    patches = tuple(f"patch in row {row + 1}, column {column + 1}" for row in range(side) for column in range(side))
    return first + patches, (side, side)


def _lens(run: Run, inputs: Mapping[str, np.ndarray], inside: Inside) -> Lens:
    logits = logit_lens(run.model, run.params, inside)[:, 0, -POSITIONS:]
    shares = jax.nn.softmax(logits, axis=-1)
    best = np.asarray(shares.argmax(-1))
    tokenizer = run.require_tokenizer().target
    tokens = tuple(tuple(piece(tokenizer, int(token)) for token in row) for row in best)
    positions = tuple(piece(tokenizer, int(token)) for token in np.asarray(inputs["tokens"])[0, -POSITIONS:])
    return Lens(positions, tokens, np.asarray(shares.max(-1)))
