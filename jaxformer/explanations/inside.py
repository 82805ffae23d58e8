"""Records what happens inside a model: the attention weights and the output of each block, for every model family.

The stacks of a model are called as usual, but asked for more outputs, by Linen's interceptors of method calls. So
models need no code for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.block import BlockInputs, take
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.models.base import Model, ModelOutput


@flax.struct.dataclass
class StackRecord:
    """Record of one stack of Transformer blocks: its attention weights and the outputs of its blocks."""

    attention: jax.Array | None
    """Weights of self-attention, float32 [layers, batch, heads, queries, keys]."""
    memory_attention: jax.Array | None
    """Weights of cross-attention, float32 [layers, batch, heads, queries, keys]. None without cross-attention."""
    layers: jax.Array
    """Output of each block, before the norm at the end of the stack, [layers, batch, length, embed]."""


@flax.struct.dataclass
class Inside:
    """The output of a model, and what happens inside its stacks."""

    output: ModelOutput
    """Output of the model."""
    stacks: dict[str, StackRecord]
    """Record of each stack, keyed by the path of its parameters, such as `transformer` or `backbone/transformer`. If a
    stack is called several times, the last call.
    """


def look_inside(model: Model, params: Any, inputs: Mapping[str, Any]) -> Inside:
    """Runs a model, and records the attention weights and the output of each block.

    Args:
      model: the model.
      params: its parameters.
      inputs: arguments of the model, keyed by name, as `Run.encode` returns them.
    """
    found = _look(model, params, dict(inputs))
    in_order = [*(path for path in model.stacks() if path in found.stacks), *found.stacks]
    return Inside(found.output, {path: found.stacks[path] for path in dict.fromkeys(in_order)})


def rollout(attention: jax.Array) -> jax.Array:
    """Computes attention rollout (Abnar & Zuidema 2020): how much each output vector depends on each input vector, if
    attention weights, averaged over heads, and the residual connection are all that mixes positions.

    Args:
      attention: weights of self-attention, [layers, batch, heads, length, length].

    Returns:
      The product over layers of (mean over heads + identity) / 2, float32 [batch, length, length]. Rows sum to 1.
    """
    identity = jnp.eye(attention.shape[-1])
    found = jnp.broadcast_to(identity, (attention.shape[1], *identity.shape))
    for layer in attention.mean(axis=2):
        found = (layer + identity) / 2 @ found
    return found


def logit_lens(model: Model, params: Any, inside: Inside) -> jax.Array:
    """Computes the logit lens (nostalgebraist 2020): the logits that the output layer of a language model computes from
    the output of each block, after the norm at the end of the stack.

    Args:
      model: a model that generates text.
      params: its parameters.
      inside: record of a call of the model.

    Returns:
      Logits, float32 [layers, batch, length, vocab]. The logits of the last layer are the logits of the model.
    """
    path, stack = list(model.stacks().items())[-1]
    vectors = inside.stacks[path].layers
    if stack.last_norm and stack.norm_position != "after":
        own = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
        vectors = fresh(stack.norm).apply({"params": own.get("norm", {})}, vectors)
    head = inside.output.lm_head  # type: ignore[attr-defined]  # Models that generate text have one.
    return jnp.stack([head.logits(layer) for layer in vectors])


@functools.partial(jax.jit, static_argnums=0)
def _look(model: Model, params: Any, inputs: Mapping[str, Any]) -> Inside:
    stacks: dict[str, StackRecord] = {}
    with nn.intercept_methods(functools.partial(_recorded, stacks)):
        output = model.apply({"params": params}, **inputs)
    return Inside(output, stacks)


def _recorded(
    stacks: dict[str, StackRecord],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    context: nn.module.InterceptorContext,
) -> Any:
    """Calls a method of a module. If it is a stack, also stores its record in `stacks`, and returns what the caller has
    asked for.
    """
    if not isinstance(context.module, Transformer) or context.method_name != "__call__":
        return call(*args, **kwargs)
    x, inputs, *rest = (*args, BlockInputs()) if len(args) == 1 else args
    inputs = inputs or BlockInputs()
    asked = dataclasses.replace(
        inputs,
        at=None,
        return_attention=True,
        return_layers=True,
        return_memory_attention=inputs.memory is not None,
    )
    output = call(x, asked, *rest, **kwargs)
    record = StackRecord(output.attention, output.memory_attention, output.layers)
    stacks["/".join(context.module.path)] = record
    return dataclasses.replace(
        output,
        hidden=take(output.hidden, inputs.at),
        attention=output.attention if inputs.return_attention else None,
        layers=output.layers if inputs.return_layers else None,
        memory_attention=output.memory_attention if inputs.return_memory_attention else None,
    )
