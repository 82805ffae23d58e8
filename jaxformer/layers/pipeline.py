"""Runs the blocks of a Transformer stack as a pipeline over the device mesh axis `pipeline`.

Each device along this axis, a stage, holds a share of the blocks. A batch is divided into micro-batches, which pass
from stage to stage, so that all stages compute at the same time, each on another micro-batch (Huang et al. 2019,
GPipe). With several repeats, each stage computes several groups of consecutive blocks, and a micro-batch passes through
all stages several times (interleaved stages, Narayanan et al. 2021, §2.2). The fraction of the time that a stage waits
is (stages - 1) / (micro_batches · repeats + stages - 1).
"""

import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxformer.layers import stack
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding

AXIS = "pipeline"
"""Name of the mesh axis along which the devices are the stages of the pipeline."""


class Schedule(NamedTuple):
    """Pipeline schedule: the order in which stages (devices with a share of the blocks) compute micro-batches.

    In each time step (tick), every stage computes one micro-batch and passes it on to the next stage. Micro-batches
    enter in groups, with one micro-batch per stage. A group passes through all stages `repeats` times, and the next
    group follows without a gap.
    """

    stages: int
    """Number of pipeline stages: devices that each hold a share of the blocks."""
    micro_batches: int
    """Number of micro-batches that a batch is divided into, a multiple of `stages`."""
    repeats: int
    """Number of times that each micro-batch passes through all stages. In each pass, a stage applies another group of
    blocks.
    """

    @classmethod
    def of(cls, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, config: sharding.Mesh) -> "Schedule":
        """Creates the schedule for a device mesh, with the number of micro-batches and repeats from the mesh config.
        The schedule has one stage if the mesh has no axis `pipeline`.
        """
        stages = mesh.shape.get(AXIS, 1)
        return cls(stages, config.pipeline_microbatches or stages, config.pipeline_repeats)

    @property
    def parts(self) -> int:
        """Number of equal groups that the blocks of the model are divided into: `stages` · `repeats`. Stage s computes
        the groups s, s + stages, s + 2 · stages, ...
        """
        return self.stages * self.repeats

    @property
    def ticks(self) -> int:
        """Number of time steps until the last micro-batch has left the last stage. In a time step, every stage computes
        one micro-batch.
        """
        return self.micro_batches * self.repeats + self.stages - 1

    @property
    def entries(self) -> np.ndarray:
        """Index of the time step in which each micro-batch enters the first stage for the first time, integers
        [micro_batches].
        """
        group, place = np.divmod(np.arange(self.micro_batches), self.stages)
        return group * self.parts + place

    @property
    def exits(self) -> np.ndarray:
        """Index of the time step in which the last stage computes each micro-batch for the last time, integers
        [micro_batches].
        """
        return self.entries + self.parts - 1


class StageFunction(Protocol):
    """Type of the function that a pipeline stage calls to run a group of consecutive blocks on a micro-batch."""

    def __call__(
        self, given: Any, x: jax.Array, blocks: Any, first: jax.Array, micro_batch: jax.Array, /
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Runs a group of consecutive blocks on a micro-batch. Returns the output of the last of these blocks, with the
        shape of `x`, and the auxiliary losses and metrics of the blocks as weighted means, keyed by name.

        Args:
          given: other inputs of the blocks, such as masks, for the examples of the micro-batch.
          x: input of the first block of the group, [micro-batch size, length, embed].
          blocks: parameters of the blocks, stacked along the first axis.
          first: index in the whole model of the first block of the group, scalar.
          micro_batch: index of the micro-batch, scalar.
        """
        ...


def run(
    function: StageFunction, x: jax.Array, given: Any, blocks: Any, schedule: Schedule
) -> tuple[jax.Array, dict[str, Mean]]:
    """Runs all blocks of a Transformer stack as a pipeline, on a mesh whose axis `pipeline` splits their parameters.

    Micro-batch m consists of the examples m, m + micro_batches, m + 2 · micro_batches, ... of the batch, so that each
    device has examples of every micro-batch.

    Args:
      function: function that runs consecutive blocks on one micro-batch.
      x: input of the first block, [batch, length, embed].
      given: other inputs of the blocks, a tree of arrays. Arrays whose first dimension is the batch are also divided
        into micro-batches, and travel with them from stage to stage. All micro-batches share the other arrays.
      blocks: parameters of all blocks, stacked along the first axis. The number of blocks must be divisible by
        `schedule.parts`.
      schedule: pipeline schedule. The batch size must be divisible by its number of micro-batches.

    Returns:
      The output of the last block, [batch, length, embed], and the auxiliary losses and metrics as weighted means over
      all blocks and micro-batches, keyed by name.
    """
    rows, each = len(x), stack.depth(blocks) // schedule.parts
    leaves, tree = jax.tree.flatten(given)
    travels = [leaf.ndim > 0 and len(leaf) == rows for leaf in leaves]
    of_rows = [leaf for leaf, own in zip(leaves, travels, strict=True) if own]
    shared = [leaf for leaf, own in zip(leaves, travels, strict=True) if not own]

    def joined(of_rows, shared):
        first, second = iter(of_rows), iter(shared)
        return jax.tree.unflatten(tree, [next(first if own else second) for own in travels])

    def compute(index, blocks, batch, shared):
        """Runs all time steps of the schedule on one stage. `index`, [1], contains the index of the stage."""
        stage = index[0]
        parts = _exchange_stage_parameters(blocks, stage, schedule)
        entering = jax.tree.map(lambda array: _entering(array, schedule), batch)

        def tick(held, at):
            time, enters, entering = at
            held = jax.tree.map(functools.partial(jnp.where, enters & (stage == 0)), entering, held)
            since = time - stage
            group, place = jnp.divmod(since, schedule.parts)
            repeat, place = jnp.divmod(place, schedule.stages)
            number = repeat if schedule.repeats > 1 else 0
            part = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, number, keepdims=False), parts)
            x, of_rows = held
            x = sharding.constrain(x, "brd")
            first = (repeat * schedule.stages + stage) * each
            x, means = function(joined(of_rows, shared), x, part, first, group * schedule.stages + place)
            computes = (since >= 0) & (since < schedule.micro_batches * schedule.repeats)
            means = jax.tree.map(lambda array: jnp.where(computes, array, 0), means)
            ring = [(one, (one + 1) % schedule.stages) for one in range(schedule.stages)]
            return jax.lax.ppermute((x, of_rows), AXIS, ring), (x, means)

        # Stages wait with a copy of the first micro-batch, whose numbers are finite.
        waiting = jax.tree.map(lambda array: array[0], entering)
        times = np.arange(schedule.ticks)
        _, (outputs, means) = jax.lax.scan(tick, waiting, (times, np.isin(times, schedule.entries), entering))
        output = jnp.where(stage == schedule.stages - 1, outputs[schedule.exits], 0)
        means = jax.tree.map(lambda array: array.sum(0), means)
        return jax.lax.psum((output, means), AXIS)

    split = jax.shard_map(
        compute,
        in_specs=(PartitionSpec(AXIS), PartitionSpec(AXIS), PartitionSpec(), PartitionSpec()),
        out_specs=PartitionSpec(),
        axis_names={AXIS},
        check_vma=False,  # Kernels inside do not track which values differ between stages.
    )
    batch = jax.tree.map(lambda array: _micro_batches(array, schedule), (x, of_rows))
    y, means = split(jnp.arange(schedule.stages), blocks, batch, shared)
    return sharding.constrain(y.swapaxes(0, 1).reshape(x.shape), "brd"), means


def _micro_batches(array: jax.Array, schedule: Schedule) -> jax.Array:
    """Divides a batch [batch, ...] into micro-batches [micro_batches, batch / micro_batches, ...]. Micro-batch m
    consists of the examples m, m + micro_batches, ...
    """
    return array.reshape(-1, schedule.micro_batches, *array.shape[1:]).swapaxes(0, 1)


def _entering(array: jax.Array, schedule: Schedule) -> jax.Array:
    """Returns the micro-batch that enters the first pipeline stage in each time step, [time steps, micro-batch size,
    ...]. In time steps in which none enters, the result contains micro-batch 0, which the caller ignores.
    """
    array = sharding.constrain(array, "_b" + "_" * (array.ndim - 2))
    numbers = np.zeros(schedule.ticks, int)
    numbers[schedule.entries] = np.arange(schedule.micro_batches)
    return array[numbers]


def _exchange_stage_parameters(blocks: Any, stage: jax.Array, schedule: Schedule) -> Any:
    """Returns the parameters of the groups of blocks that a stage computes, with a leading axis for the repeats (passes
    of a micro-batch through the pipeline).

    Each stage stores consecutive blocks of the model. With several repeats, it computes other blocks than it stores, so
    the stages exchange their parameters.
    """
    stages, repeats = schedule.stages, schedule.repeats
    stored = jax.tree.map(lambda array: array.reshape(repeats, -1, *array.shape[1:]), blocks)
    if repeats == 1:
        return stored
    rounds = _rounds(stages, repeats)
    # order[d, r]: the round in which stage d receives the part of its repeat r.
    order = np.zeros((stages, repeats), int)
    for number, source in enumerate(rounds):
        part = np.arange(stages) * repeats + source
        order[part % stages, part // stages] = number

    def dealt(array):
        received = []
        for source in rounds:
            ring = [(one, (one * repeats + int(part)) % stages) for one, part in enumerate(source)]
            received.append(jax.lax.ppermute(array[jnp.asarray(source)[stage]], AXIS, ring))
        return jnp.stack(received)[jnp.asarray(order)[stage]]

    return jax.tree.map(dealt, stored)


def _rounds(stages: int, repeats: int) -> list[np.ndarray]:
    """Plans the exchange of parameters between stages in `_exchange_stage_parameters`. Returns one array [stages] per
    round of communication: the index of the stored group of blocks that each stage sends in this round. The plan lets
    each stage receive exactly one group per round.
    """
    common = math.gcd(stages, repeats)
    shift = np.arange(stages) // (stages // common)
    return [start + (offset + shift) % common for start in range(0, repeats, common) for offset in range(common)]
