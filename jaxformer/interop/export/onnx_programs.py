"""Defines the functions that are exported as ONNX programs.

The files, arguments and outputs of the programs have the names by which the Hugging Face libraries optimum and
transformers.js identify models. The program of a decoder takes and returns the cached keys and values of previous
tokens. An encoder–decoder is exported as several programs, one per file.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.interop.export import stablehlo_program
from jaxformer.interop.export.onnx_build import Argument
from jaxformer.interop.export.stablehlo_program import portable
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.huggingface.families.bridge import LAYOUTS, to_ours
from jaxformer.layers.cache import Cache, KeyValue, LayerCache
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.predictors.sentence_vectors import embedded
from jaxformer.runs.run import Run

BATCH, LENGTH, PAST, READ = "batch_size", "sequence_length", "past_sequence_length", "encoder_sequence_length"
FRAMES = "decoder_sequence_length"
"""Names of dynamic axes. transformers.js recognises `batch_size` by its name. In an empty cache, the axis
`past_sequence_length` has length 0.
"""
TEXTS = "text_batch_size"
"""Name of the batch axis of texts in models whose inputs may contain different numbers of texts and images."""
SINGLE = "model"
ENCODER, DECODER, WITH_PAST, MERGED = (
    "encoder_model",
    "decoder_model",
    "decoder_with_past_model",
    "decoder_model_merged",
)
"""File names of an encoder–decoder's programs, without extension. The three decoders contain the same parameters."""
MASK = "1 for tokens, 0 for padding"
ENCODER_MASK = f"{MASK}, in the encoder input"
MEANINGS = {
    "segments": f"{MASK}, which is on the right",
    **dict.fromkeys(LAYOUTS, "pixels, processed as in `preprocessor_config.json`"),
    "log_mel": "log-mel spectrograms, computed as in `preprocessor_config.json`",
}
"""Descriptions of model inputs in the README of an export, keyed by input name."""
KEPT = "keys and values of previous tokens, for each of {} layers: those that were returned before, or of length 0"


@dataclasses.dataclass(frozen=True)
class Program:
    """Function to export as an ONNX file, with its arguments."""

    function: Callable[..., Mapping[str, jax.Array]]
    """Function to export: `function(params, **arrays)`. `params` is a dict that maps parameter paths to arrays; the
    other arguments are the input arrays. It returns a dict that maps output names to arrays.
    """
    arguments: Mapping[str, Argument]
    limits: tuple[str, ...] = ()
    """Constraints on the lengths of axes, such as `length <= 512`."""


def programs(run: Run) -> dict[str, Program]:
    """Returns the programs to export for a run's model, keyed by file name without extension."""
    model = portable(run.model)
    if model.is_encoder_decoder:
        return _encoder_decoder(model)
    if not model.is_generative:
        return {SINGLE: _single(model, run.objective)}
    both_ways = isinstance(run.objective, CausalLM) and run.objective.prompt != "text"
    return {SINGLE: _prefix_decoder(model) if both_ways else _decoder(model)}


def apply(model: Model, params: Mapping[str, jax.Array], *arrays: Any, **named: Any) -> Any:
    """Applies the model to input arrays. `params` is a dict that maps parameter paths to arrays."""
    return model.apply({"params": parameters.nested(dict(params))}, *arrays, **named)


def _limits(model: Model, *axes: str) -> tuple[str, ...]:
    limits = model.text_limits
    if limits is not None:
        return tuple(f"{axis} <= {limits.max_length}" for axis in axes)
    return tuple(f"{axis} >= {least}" for least in model.least_sizes().values() for axis in axes)


def _arguments(model: Model) -> dict[str, Argument]:
    """Returns the specifications of the arguments of a program without a key-value cache, keyed by the argument names
    that the transformers library uses, in the order of the model's inputs.
    """
    names, sizes = bridge_of(model).arguments, {"b": BATCH, "c": TEXTS, "t": LENGTH, "u": LENGTH, "a": FRAMES}
    sizes |= model.fixed_sizes()
    found = {}
    for name, spec in stablehlo_program.arguments(model).items():
        axes, dtype, meaning = spec.axes, spec.dtype, MEANINGS.get(name, spec.meaning)
        if name in LAYOUTS:
            axes, dtype = LAYOUTS[name], "float32"
        elif dtype == "int32":
            dtype = "int64"
        found[names.get(name, name)] = Argument(tuple(sizes[letter] for letter in axes), dtype, meaning)
    return found


def inputs_of(model: Model, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Converts the arguments of a program to the inputs of the model, keyed by input name."""
    specs, names = stablehlo_program.arguments(model), bridge_of(model).arguments
    inputs = {names.get(name, name): name for name in specs}
    given = {inputs[argument]: array for argument, array in arrays.items()}
    return {name: to_ours(name, specs[name].axes, array) for name, array in given.items()}


def _single(model: Model, objective: Any) -> Program:
    """Returns the only program of a model that does not generate text. It takes the model inputs and returns the
    outputs under the names that the transformers library uses.
    """
    bridge = bridge_of(model)

    def function(params, **arrays):
        given = inputs_of(model, arrays)
        output = apply(model, params, **given)
        found = bridge.outputs(model, output, objective)
        # The program cannot identify prompt tokens: if the pooling excludes them, the caller pools.
        if isinstance(objective, SentenceEmbedding) and objective.include_prompt:
            found["sentence_embedding"] = embedded(objective.pooling, objective.normalized, output, given["segments"])
        return found

    return Program(function, _arguments(model), _limits(model, LENGTH))


def _prefix_decoder(model: Model) -> Program:
    def function(params, input_ids, attention_mask, prefix_mask):
        return {"logits": apply(model, params, input_ids, attention_mask, prefix=prefix_mask > 0).logits}

    prefix = Argument(
        (BATCH, LENGTH), "int64", "1 for the tokens of the prompt, which attend to each other in both directions"
    )
    return Program(function, _arguments(model) | {"prefix_mask": prefix}, _limits(model, LENGTH))


def _cached(stack: Transformer, name: str, length: str) -> dict[str, Argument]:
    """Returns the specifications of the arguments of a decoder program that contain the cached keys and values of all
    layers, keyed by argument name.

    Args:
      stack: Decoder stack.
      name: Template of argument names in which `{}` is the layer number, such as `past_key_values.{}`.
      length: Name of the axis of the tokens.
    """
    groups, head_dim = stack.attention.sizes(stack.heads, stack.width)
    axes, meaning = (BATCH, groups, length, head_dim), KEPT.format(stack.depth)
    names = [f"{name.format(layer)}.{part}" for layer in range(stack.depth) for part in ("key", "value")]
    return {name: Argument(axes, "float32", meaning) for name in names}


def _read(given: Mapping[str, jax.Array], name: str, depth: int) -> tuple[KeyValue, ...]:
    parts = [[given[f"{name.format(layer)}.{part}"] for part in ("key", "value")] for layer in range(depth)]
    return tuple(KeyValue(*pair) for pair in parts)


def _written(layers: tuple[KeyValue, ...], name: str) -> dict[str, jax.Array]:
    parts = {f"{name.format(number)}.key": layer.key for number, layer in enumerate(layers)}
    return parts | {f"{name.format(number)}.value": layer.value for number, layer in enumerate(layers)}


def _keys(output: Any) -> tuple[KeyValue, ...]:
    """Returns the keys and values in the cache of a model output, one pair per layer."""
    return tuple(layer.keys for layer in output.cache.layers)


def _decoder(model: Model) -> Program:
    (stack,) = model.stacks().values()
    depth = stack.depth

    def function(params, input_ids, attention_mask, position_ids, **past):
        layers = _read(past, "past_key_values.{}", depth)
        cache = _with_room(layers, attention_mask, input_ids.shape[1])
        output = apply(model, params, input_ids, position_ids=position_ids, cache=cache)
        return {"logits": output.logits} | _written(_keys(output), "present.{}")

    arguments = {
        "input_ids": Argument((BATCH, LENGTH), "int64", "ids of the tokens after the cached ones"),
        "attention_mask": Argument((BATCH, f"{PAST} + {LENGTH}"), "int64", f"{MASK}, for all tokens"),
        "position_ids": Argument((BATCH, LENGTH), "int64", "from 0 at the first token that is not padding"),
        **_cached(stack, "past_key_values.{}", PAST),
    }
    return Program(function, arguments, _limits(model, LENGTH))


def _with_room(layers: tuple[KeyValue, ...], segments: jax.Array, tokens: int, **memory: Any) -> Cache:
    """Builds a cache from the keys and values of previous tokens, with room for `tokens` more tokens.

    Args:
      layers: Keys and values of each layer.
      segments: Mask of the previous and new tokens.
      tokens: Number of new tokens.
      memory: Fields of the cache that contain the encoder output, if the model has an encoder.
    """
    used = jnp.asarray(layers[0].key.shape[2], jnp.int32)
    cache = Cache(tuple(map(LayerCache, layers)), segments, used).room_for(tokens)
    return dataclasses.replace(cache, segments=segments, **memory)


def _encoder_arguments(model: Model) -> dict[str, Argument]:
    """Returns the specifications of the encoder's arguments: token ids and their mask, or pixels or features of
    sounds.
    """
    if "inputs" in model.inputs():
        ids = Argument((BATCH, READ), "int64", "ids of the tokens that the encoder reads")
        return {"input_ids": ids, "attention_mask": Argument((BATCH, READ), "int64", ENCODER_MASK)}
    pixels = {bridge_of(model).arguments.get(name, name) for name in LAYOUTS}
    return {name: argument for name, argument in _arguments(model).items() if name in pixels}


def _encoder_decoder(model: Model) -> dict[str, Program]:
    depth, width = model.decoder.depth, model.encoder.width
    own, other = "past_key_values.{}.decoder", "past_key_values.{}.encoder"
    reads_text = "inputs" in model.inputs()
    mask = Argument((BATCH, READ), "int64", ENCODER_MASK)
    read = _encoder_arguments(model)
    tokens = {"input_ids": Argument((BATCH, LENGTH), "int64", "ids of the decoder's tokens after the cached ones")}
    states = {"encoder_hidden_states": Argument((BATCH, READ, width), "float32", "output of the encoder")}
    given = tokens | ({"encoder_attention_mask": mask} if reads_text else {})
    cached = _cached(model.decoder, own, PAST)
    memory = {
        name: dataclasses.replace(argument, meaning="keys and values of the encoder output, as returned before")
        for name, argument in _cached(model.decoder, other, READ).items()
    }

    def encode(params, **arrays):
        given = inputs_of(model, {name: arrays[name] for name in read})  # In the order of the encoder's arguments.
        return {"last_hidden_state": apply(model, params, *given.values(), method="encode")}

    def decode(params, input_ids, encoder_hidden_states=None, encoder_attention_mask=None, *, layers=None, memory=None):
        rows, length = input_ids.shape
        layers = tuple(layer.keys for layer in model.new_cache(rows, 0).layers) if layers is None else layers
        past = layers[0].key.shape[2]
        ones = jnp.ones((rows, past + length), jnp.int32)
        cache = _with_room(layers, ones, length, memory=memory, memory_segments=encoder_attention_mask)
        position_ids = jnp.broadcast_to(past + jnp.arange(length), (rows, length))
        encoded = None if memory is not None else encoder_hidden_states
        return apply(model, params, input_ids, position_ids, cache, encoded, method="decode")

    def first(params, **arrays):
        output = decode(params, **arrays)
        written = _written(_keys(output), "present.{}.decoder") | _written(output.cache.memory, "present.{}.encoder")
        return {"logits": output.logits} | written

    def later(params, input_ids, encoder_attention_mask=None, **past):
        layers, memory = _read(past, own, depth), _read(past, other, depth)
        output = decode(params, input_ids, None, encoder_attention_mask, layers=layers, memory=memory)
        return {"logits": output.logits} | _written(_keys(output), "present.{}.decoder")

    def merged(params, input_ids, encoder_hidden_states, use_cache_branch, encoder_attention_mask=None, **past):
        begin = functools.partial(decode, params, input_ids, encoder_hidden_states, encoder_attention_mask)
        computed = lambda: begin().cache.memory  # noqa: E731
        memory = jax.lax.cond(use_cache_branch[0], lambda: _read(past, other, depth), computed)
        output = begin(layers=_read(past, own, depth), memory=memory)
        written = _written(_keys(output), "present.{}.decoder") | _written(memory, "present.{}.encoder")
        return {"logits": output.logits} | written

    # optimum identifies these by their order: in each layer, self-attention precedes cross-attention.
    both = [zip(*[iter(part.items())] * 2, strict=True) for part in (cached, memory)]
    past = {name: spec for layers in zip(*both, strict=True) for pair in layers for name, spec in pair}
    limits = _limits(model, LENGTH, READ) if reads_text else _limits(model, LENGTH)
    branch = {"use_cache_branch": Argument((1,), "bool", "whether there are keys and values of previous tokens")}
    return {
        ENCODER: Program(encode, read, _limits(model, READ) if reads_text else ()),
        DECODER: Program(first, given | states, limits),
        WITH_PAST: Program(later, given | past, limits),
        MERGED: Program(merged, given | states | past | branch, limits),
    }
