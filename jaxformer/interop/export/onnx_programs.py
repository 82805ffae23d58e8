"""The functions that are exported as ONNX programs, with the names of files, arguments and outputs of Hugging Face.

optimum and transformers.js know models by these names: a decoder takes and gives the keys and values of earlier tokens,
and an encoder–decoder is several files.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_build import Argument
from jaxformer.interop.export.stablehlo_program import portable
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.families.classifiers import SPAN
from jaxformer.layers.cache import Cache, KeyValue, LayerCache
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.tagging import Tagging
from jaxformer.predictors.sentence_vectors import embedded
from jaxformer.runs.run import Run

BATCH, LENGTH, PAST, READ = "batch_size", "sequence_length", "past_sequence_length", "encoder_sequence_length"
"""Names of axes; transformers.js knows the first by its name, and gives an empty cache the length 0 on the others."""
SINGLE = "model"
ENCODER, DECODER, WITH_PAST, MERGED = (
    "encoder_model",
    "decoder_model",
    "decoder_with_past_model",
    "decoder_model_merged",
)
"""Names of files without their ending; those of the decoders hold the same parameters."""
MASK = "1 where there is a token, 0 for padding"
KEPT = "keys and values of earlier tokens, in each of {} layers: those that were returned before, or of length 0"


@dataclasses.dataclass(frozen=True)
class Program:
    """A function from arrays to arrays that becomes a file."""

    function: Callable[..., Mapping[str, jax.Array]]
    """Of parameters by path, and of the arguments by name."""
    arguments: Mapping[str, Argument]
    limits: tuple[str, ...] = ()
    """Of the axes' lengths."""


def programs(run: Run) -> dict[str, Program]:
    """The programs of a run's model, by the names of their files without an ending.

    Raises:
      InputError: a model of another kind.
    """
    model = portable(run.model)
    if isinstance(model, Vit):
        return {SINGLE: _vit(model)}
    if isinstance(model, MaskedAutoencoder):
        return {SINGLE: _masked_autoencoder(model)}
    if isinstance(model, EncoderDecoder):
        return _encoder_decoder(model)
    if isinstance(model, Gpt):
        both_ways = getattr(run.objective, "prompt", "text") != "text"
        return {SINGLE: _prefix_decoder(model) if both_ways else _decoder(model)}
    if not isinstance(model, Bert | Classifier):
        raise InputError(f"model={type(model).__name__}: has no ONNX program here")
    return {SINGLE: _classifier(model, run.objective) if isinstance(model, Classifier) else _bert(model, run.objective)}


def apply(model: nn.Module, params: Mapping[str, jax.Array], *arrays: Any, **named: Any) -> Any:
    """The model's output with parameters by path."""
    return model.apply({"params": parameters.nested(dict(params))}, *arrays, **named)


def _limits(model: Any, *axes: str) -> tuple[str, ...]:
    return tuple(f"{axis} <= {model.max_length}" for axis in axes)


def _pixels(model: Vit | MaskedAutoencoder) -> Argument:
    axes = (BATCH, model.channels, model.image, model.image)
    return Argument(axes, "float32", "pixels, prepared as `preprocessor_config.json` says")


def _vit(model: Vit) -> Program:
    def function(params, pixel_values):
        output = apply(model, params, jnp.moveaxis(pixel_values, 1, -1))
        if model.labels:
            return {"logits": output.logits}
        return {"last_hidden_state": output.hidden} | ({"pooler_output": output.pooled} if model.pooler else {})

    return Program(function, {"pixel_values": _pixels(model)})


def _masked_autoencoder(model: MaskedAutoencoder) -> Program:
    def function(params, pixel_values, noise):
        output = apply(model, params, jnp.moveaxis(pixel_values, 1, -1), noise)
        painted = {"last_hidden_state": output.hidden} if output.pixels is None else {"logits": output.pixels}
        return painted | {"mask": output.masked}

    noise = Argument((BATCH, model.patches), "float32", "of each patch; the encoder sees those with the least of it")
    return Program(function, {"pixel_values": _pixels(model), "noise": noise})


def _of_text(backbone: Bert | Gpt) -> dict[str, Argument]:
    taken = {
        "input_ids": Argument((BATCH, LENGTH), "int64", "ids of the tokens"),
        "attention_mask": Argument((BATCH, LENGTH), "int64", f"{MASK}, which comes last"),
    }
    if getattr(backbone, "token_types", 0) > 1:
        taken["token_type_ids"] = Argument((BATCH, LENGTH), "int64", "0 in sentence A, 1 in sentence B")
    return taken


def _types(given: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    return {"token_types": given["token_type_ids"]} if "token_type_ids" in given else {}


def _bert(model: Bert, objective: Any) -> Program:
    def function(params, input_ids, attention_mask, **types):
        output = apply(model, params, input_ids, attention_mask, **_types(types))
        found = {}
        if "masked_lm" in model.prediction_heads:
            found["logits"] = output.logits
        else:
            found["last_hidden_state"] = output.hidden
            found |= {"pooler_output": output.pooled[:, 0]} if "pooler" in model.prediction_heads else {}
        if "next_sentence" in model.prediction_heads:
            found["seq_relationship_logits"] = output.next_sentence_logits[:, 0]
        # The program does not know which tokens are the prompt's: without them, its caller computes the vector.
        if isinstance(objective, SentenceEmbedding) and objective.include_prompt:
            found["sentence_embedding"] = embedded(objective.pooling, objective.normalized, output, attention_mask)
        return found

    return Program(function, _of_text(model), _limits(model, LENGTH))


def _classifier(model: Classifier, objective: Any) -> Program:
    def function(params, input_ids, attention_mask, **types):
        logits = apply(model, params, input_ids, attention_mask, **_types(types)).logits
        if answers_spans(model, objective):
            return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
        return {"logits": logits if model.pooling == "none" else logits[:, 0]}

    return Program(function, _of_text(model.backbone), _limits(model, LENGTH))


def answers_spans(model: Classifier, objective: Any) -> bool:
    """Whether the two numbers of each token are for the start and the end of an answer."""
    return model.pooling == "none" and model.labels == SPAN and not isinstance(objective, Tagging)


def _prefix_decoder(model: Gpt) -> Program:
    def function(params, input_ids, attention_mask, prefix_mask):
        return {"logits": apply(model, params, input_ids, attention_mask, prefix=prefix_mask > 0).logits}

    prefix = Argument((BATCH, LENGTH), "int64", "1 for the tokens of the prompt, which see each other both ways")
    return Program(function, _of_text(model) | {"prefix_mask": prefix}, _limits(model, LENGTH))


def _cached(stack: Transformer, name: str, length: str) -> dict[str, Argument]:
    """The arguments that are keys and values; `name` has the layer's number in it."""
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
    """The keys and values in the cache of a model's output, a layer each."""
    return tuple(layer.keys for layer in output.cache.layers)


def _decoder(model: Gpt) -> Program:
    depth = model.transformer.depth

    def function(params, input_ids, attention_mask, position_ids, **past):
        layers = _read(past, "past_key_values.{}", depth)
        cache = _with_room(layers, attention_mask, input_ids.shape[1])
        output = apply(model, params, input_ids, position_ids=position_ids, cache=cache)
        return {"logits": output.logits} | _written(_keys(output), "present.{}")

    arguments = {
        "input_ids": Argument((BATCH, LENGTH), "int64", "ids of the tokens after those in the cache"),
        "attention_mask": Argument((BATCH, f"{PAST} + {LENGTH}"), "int64", f"{MASK}, of all tokens"),
        "position_ids": Argument((BATCH, LENGTH), "int64", "from 0 at the first token that is not padding"),
        **_cached(model.transformer, "past_key_values.{}", PAST),
    }
    return Program(function, arguments, _limits(model, LENGTH))


def _with_room(layers: tuple[KeyValue, ...], segments: jax.Array, tokens: int, **memory: Any) -> Cache:
    """A cache of the layers that has room for so many tokens more."""
    used = jnp.asarray(layers[0].key.shape[2], jnp.int32)
    cache = Cache(tuple(map(LayerCache, layers)), segments, used).room_for(tokens)
    return cache.replace(segments=segments, **memory)


def _encoder_decoder(model: EncoderDecoder) -> dict[str, Program]:
    depth, width = model.decoder.depth, model.encoder.width
    own, other = "past_key_values.{}.decoder", "past_key_values.{}.encoder"
    mask = Argument((BATCH, READ), "int64", f"{MASK}, of what the encoder reads")
    read = {"input_ids": Argument((BATCH, READ), "int64", "ids of the tokens that the encoder reads")}
    tokens = {"input_ids": Argument((BATCH, LENGTH), "int64", "ids of the decoder's tokens after those in the cache")}
    states = {"encoder_hidden_states": Argument((BATCH, READ, width), "float32", "what the encoder returned")}
    given = {**tokens, "encoder_attention_mask": mask}
    cached = _cached(model.decoder, own, PAST)
    memory = {
        name: dataclasses.replace(
            argument, meaning="keys and values of what the encoder returned, as they were returned"
        )
        for name, argument in _cached(model.decoder, other, READ).items()
    }

    def encode(params, input_ids, attention_mask):
        return {"last_hidden_state": apply(model, params, input_ids, attention_mask, method="encode")}

    def decode(params, input_ids, encoder_attention_mask, encoder_hidden_states, layers=None, memory=None):
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

    def later(params, input_ids, encoder_attention_mask, **past):
        kept = _read(past, own, depth), _read(past, other, depth)
        output = decode(params, input_ids, encoder_attention_mask, None, *kept)
        return {"logits": output.logits} | _written(_keys(output), "present.{}.decoder")

    def merged(params, input_ids, encoder_attention_mask, encoder_hidden_states, use_cache_branch, **past):
        arrays = input_ids, encoder_attention_mask, encoder_hidden_states
        computed = lambda: decode(params, *arrays).cache.memory  # noqa: E731
        memory = jax.lax.cond(use_cache_branch[0], lambda: _read(past, other, depth), computed)
        output = decode(params, *arrays, _read(past, own, depth), memory)
        written = _written(_keys(output), "present.{}.decoder") | _written(memory, "present.{}.encoder")
        return {"logits": output.logits} | written

    # optimum goes by the order of these: of each layer first the decoder's own.
    both = [zip(*[iter(part.items())] * 2, strict=True) for part in (cached, memory)]
    past = {name: spec for layers in zip(*both, strict=True) for pair in layers for name, spec in pair}
    limits = _limits(model, LENGTH, READ)
    branch = {"use_cache_branch": Argument((1,), "bool", "whether there are keys and values of earlier tokens")}
    return {
        ENCODER: Program(encode, read | {"attention_mask": mask}, _limits(model, READ)),
        DECODER: Program(first, given | states, limits),
        WITH_PAST: Program(later, given | past, limits),
        MERGED: Program(merged, given | states | past | branch, limits),
    }
