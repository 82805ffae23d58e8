"""Compares the fast implementations that a run uses with plain ones, on small inputs, before its first step.

The fast implementations are attention kernels, attention that is sharded over a mesh, expert layers that are sharded
over a mesh, and pipelines. An error in one of them would raise no exception, but the model would learn less. So the
output and the gradients of each are compared once on each kind of device. The names of the passed checks are stored in
the folder of the compilation cache.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import storage
from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.layers import dispatch, kernels
from jaxformer.layers.attention import AttendOptions, attend
from jaxformer.layers.cache import KeyValue
from jaxformer.layers.dispatch import Kernels, Routes
from jaxformer.layers.linear import compute_dtype
from jaxformer.layers.masks import Mask
from jaxformer.layers.pipeline import Schedule
from jaxformer.parallel import processes, sharding, start
from jaxformer.progress import phase
from jaxformer.training import pipeline_check

FOLDER = "self_checks"
"""Name of the subfolder of the compilation cache in which the names of passed checks are stored."""
MOST = 0.05
"""Maximum relative difference ‖fast − plain‖ / ‖plain‖ that passes, for the output and the gradients of each batch row.
In bfloat16, two correct implementations differ by about 0.01.
"""
ROWS = 8
"""Number of different batch rows in the inputs of a check. If the mesh splits the batch into more parts, the rows are
repeated.
"""
EXPERT_WIDTH = 256
"""Width of the model and of each expert in checks of experts."""

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Check:
    """Comparison of a fast implementation with a plain implementation of the same function."""

    name: str
    """Text that identifies the check: the fast implementation, the sizes of its inputs, and the mesh."""
    fallback_setting: str
    """Config setting with which the run would use a plain implementation in place of the fast one. The error message
    suggests it.
    """
    fast: Callable[[Arrays], jax.Array]
    """The fast implementation: a function of a dict with all arrays of `rows` and `shared`. It runs on the mesh of the
    run.
    """
    plain: Callable[[Arrays], jax.Array]
    """The plain implementation: the same function, computed in float32 and without a mesh."""
    rows: Mapping[str, np.ndarray]
    """Arrays with a batch axis of size `ROWS`, keyed by name: the inputs of both implementations, and under the key
    `cotangent` the gradient with respect to their output, from which the backward pass starts.
    """
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Input arrays that all batch rows share, such as parameters, or trees of them, keyed by name."""
    parts: int = 1
    """Number of parts into which the fast implementation divides the batch, in addition to the mesh."""


_passed: set[tuple[str, str]] = set()
"""Pairs (kind of device, name of the check) of all checks that have passed in this process."""


def run(experiment: Experiment, mesh: jax.sharding.Mesh) -> None:
    """Compares the fast implementations that an experiment uses on a mesh with plain ones, except for those that have
    already passed on this kind of device.

    Raises:
      InputError: In all processes, if a fast implementation differs, or does not run.
    """
    device = mesh.devices.flat[0].device_kind
    needed = list(checks(experiment, mesh))
    done = processes.gather(lambda: _passed | _read(device) if needed else set())[0]
    missing = [check for check in needed if (device, check.name) not in done]
    if not missing:
        return
    with phase("comparing fast implementations with plain ones"):
        for check in missing:
            otherwise = f"set {check.fallback_setting}, or train with --no-self-check"
            try:
                found = difference(check, experiment, mesh)
            except jax.errors.JaxRuntimeError as error:
                problem = str(error).splitlines()[0]
                raise InputError(f"self-check: {check.name} fails on {device} ({problem}): {otherwise}") from error
            if not found <= MOST:
                raise InputError(
                    f"self-check: {check.name} on {device} differs from the plain computation by {found:.0%}, expected "
                    f"at most {MOST:.0%}: {otherwise}"
                )
            _passed.add((device, check.name))
    if jax.process_index() == 0:
        _write(device, _passed | done)


def checks(experiment: Experiment, mesh: jax.sharding.Mesh) -> Iterator[Check]:
    """Yields one check for each fast implementation that an experiment may use on a mesh."""
    with sharding.use(mesh, experiment.mesh):
        platform = sharding.platform()
    found: dict[str, Check] = {}
    for path, stack in experiment.model.stacks().items():
        where = f"model.{path.replace('/', '.')}"
        for kind in stack.kinds:
            several = [*_attention_checks(experiment, mesh, stack, kind.attention, where)]
            if hasattr(kind.mlp, "experts") and (mesh.size > 1 or platform != "cpu"):
                several.append(_expert_check(mesh, stack, kind.mlp, where))
            found |= {check.name: check for check in several}
        if mesh.shape["pipeline"] > 1:
            check = _pipeline_check(experiment, mesh, stack)
            found[check.name] = check
    yield from found.values()


def difference(check: Check, experiment: Experiment, mesh: jax.sharding.Mesh) -> float:
    """Runs a check. Returns the largest relative difference ‖fast − plain‖ / ‖plain‖ among the outputs and gradients of
    all batch rows.
    """
    expected = jax.device_get(jax.jit(functools.partial(_values, check.plain))(check.rows, check.shared))
    with sharding.use(mesh, experiment.mesh):
        copies = _copies(mesh, check.parts)

        def compare(rows, shared, expected):
            rows, of_rows = jax.tree.map(lambda array: _repeat(array, copies), (rows, expected[0]))
            actual, of_shared = _values(check.fast, rows, shared)
            differences = jax.tree.map(_by_row, actual, of_rows)
            differences |= jax.tree.map(lambda one, other: _whole(one / copies, other), of_shared, expected[1])
            return jnp.max(jnp.stack(jax.tree.leaves(differences)))

        compiled = jax.jit(compare, out_shardings=sharding.replicated(mesh))
        return float(compiled(check.rows, check.shared, expected))


def _copies(mesh: jax.sharding.Mesh, parts: int = 1) -> int:
    """Returns how often to repeat the `ROWS` batch rows, so that the batch size is divisible by the number of parts
    into which the mesh splits a batch, times `parts`.
    """
    return int(np.lcm(ROWS, sharding.num_parts(mesh, "batch") * parts)) // ROWS


def _repeat(array: jax.Array, copies: int) -> jax.Array:
    tiled = jnp.tile(array, (copies, *[1] * (array.ndim - 1)))
    return sharding.constrain(tiled, "b" + "_" * (array.ndim - 1))


def _values(function, rows: Arrays, shared: Arrays) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Computes a function of the arrays, and the gradients of the sum of its output times `rows["cotangent"]`.

    Returns:
      A dict with the output and the gradients of the floating-point arrays in `rows`, and a dict with the gradients of
      the arrays in `shared`.
    """
    inputs = {name: array for name, array in rows.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    cotangent = inputs.pop("cotangent")

    def loss(inputs, shared):
        output = function({**rows, **inputs, **shared}).astype(jnp.float32)
        return jnp.sum(output * cotangent), output

    (_, output), (of_rows, of_shared) = jax.value_and_grad(loss, (0, 1), has_aux=True)(inputs, dict(shared))
    return {"output": output} | of_rows, of_shared


def _by_row(one: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.max(jax.vmap(_whole)(one, other))


def _whole(one: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the relative difference ‖one − other‖ / ‖other‖ of two arrays. Returns infinity if an array has values
    that are not finite.
    """
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    found = jnp.linalg.norm((one - other).ravel()) / jnp.maximum(jnp.linalg.norm(other.ravel()), 1e-6)
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def _attention_checks(experiment: Experiment, mesh, stack, attention, where: str) -> Iterator[Check]:
    """Yields checks of an attention layer, without and with a causal mask. Yields none if the sequences are too short
    for a kernel, or the run uses the plain implementation (`blocks`) anyway.

    Args:
      experiment: the experiment.
      mesh: mesh of the run.
      stack: stack of blocks that contains the layer.
      attention: config of the layer.
      where: path of the stack in the config, for error messages.
    """
    longest = max(experiment.data.task.unit[1], getattr(experiment.model, "patches", 0))
    split = max(2, mesh.shape.get("sequence", 1))
    if longest < kernels.SHORTEST:
        return
    groups, size = attention.sizes(stack.heads, stack.width)
    kept = min(groups, max(1, mesh.shape["tensor"]))
    heads, length = stack.heads // groups * kept, kernels.SHORTEST * split
    with sharding.use(mesh, experiment.mesh):
        dtype, total = compute_dtype(stack.dtype), ROWS * _copies(mesh)
    query = jax.ShapeDtypeStruct((total, length, heads, size), dtype)
    key = jax.ShapeDtypeStruct((total, kept, length, size), dtype)
    for causal in (False, True):
        mask = _mask(np.ones((total, length), np.int32), causal, attention.window)
        with sharding.use(mesh, experiment.mesh):
            way = kernels.choose(attention.kernel, query, key, mask, biased=False, dropped=False)
        if way == "blocks":
            continue
        window = f", window {attention.window}" if attention.window else ""
        sizes = sharding.mesh_text(mesh.shape, "one device")
        kind = ("causal" if causal else "full") + window
        shape = f"{heads} heads of {size}, {kept} of keys"
        for alone in (True, False) if way == "cudnn" else (False,):  # cuDNN gets rows of one segment in another way.
            of_rows = ", one segment" if alone else ""
            yield Check(
                f"{way} attention ({shape}, {kind}{of_rows}, {jnp.dtype(dtype)}, {sizes})",
                f"{where}.attention.kernel=blocks",
                functools.partial(_attend, attention.kernel, dtype, causal, attention.window),
                functools.partial(_attend, "blocks", jnp.float32, causal, attention.window),
                _attention_rows((length, heads, kept, size), alone),
            )


def _attend(kernel: kernels.Kernel, dtype: Any, causal: bool, window: int | None, arrays: Arrays) -> jax.Array:
    """Computes attention from the arrays `query`, `key`, `value` and `segments`. Sets the output at padding to 0,
    because implementations return different values there.
    """
    query, key, value = (arrays[name].astype(dtype) for name in ("query", "key", "value"))
    segments = arrays["segments"]
    options = AttendOptions(mask=_mask(segments, causal, window), kernel=kernel)
    output = attend(query, KeyValue(key, value), options)
    return jnp.where((segments > 0)[..., None, None], output, 0)


def _mask(segments: Any, causal: bool, window: int | None) -> Mask:
    length = segments.shape[1]
    mask = Mask.causal(length, segments) if causal else Mask.of_segments(segments, segments)
    return mask if window is None else mask.windowed(window, length)


def _attention_rows(sizes: tuple[int, int, int, int], alone: bool) -> dict[str, np.ndarray]:
    """Returns random inputs of attention, including the segments: the number of the segment of each position, and 0 at
    the padding that ends most rows.

    Args:
      sizes: length, number of query heads, number of key/value heads, and size of a head.
      alone: whether each row has only one segment. Otherwise, most rows have several.
    """
    (length, heads, groups, size), random = sizes, np.random.default_rng(0)
    shapes = {
        "query": (ROWS, length, heads, size),
        "key": (ROWS, groups, length, size),
        "value": (ROWS, groups, length, size),
        "cotangent": (ROWS, length, heads, size),
    }
    ends = random.integers(length // 2, length, (ROWS, 1))
    ends[0] = length
    index = np.arange(length)[None]
    several = 1 + (index >= length // 3) + (index >= length // 2)
    segments = np.where(index < ends, 1 if alone else several, 0)
    return {name: _normal(random, shape) for name, shape in shapes.items()} | {"segments": segments.astype(np.int32)}


def _expert_check(mesh, stack, mlp, where: str) -> Check:
    """Returns the check of a stack's expert layer on the mesh of the run. Its inputs include random choices of experts
    for each token.
    """
    random, width, length = np.random.default_rng(0), EXPERT_WIDTH, 64
    chosen = np.argsort(random.random((ROWS, length, mlp.experts)), axis=-1)[..., : mlp.top_k].astype(np.int32)
    rows = {
        "x": _normal(random, (ROWS, length, width)),
        "weights": random.random((ROWS, length, mlp.top_k)).astype(np.float32),
        "cotangent": _normal(random, (ROWS, length, width)),
        "chosen": chosen,
    }
    names = ("gate", "up", "down") if mlp.gated else ("up", "down")
    shared = {name: _normal(random, (mlp.experts, width, width)) / width**0.5 for name in names}
    with jax.set_mesh(mesh):
        dtype = compute_dtype(stack.dtype)
    sizes = sharding.mesh_text(mesh.shape, "one device")
    kind = "dropless" if mlp.capacity is None else "with capacity"
    return Check(
        f"experts ({mlp.experts}, {mlp.top_k} a token, {mlp.activation}, {kind}, {jnp.dtype(dtype)}, {sizes})",
        f"{where}.mlp.capacity={1.25 if mlp.capacity is None else None}",
        functools.partial(_experts, mlp, dtype, True),
        functools.partial(_experts, mlp, jnp.float32, False),
        rows,
        shared,
    )


def _experts(mlp, dtype: Any, fast: bool, arrays: Arrays) -> jax.Array:
    """Computes an expert layer. `arrays` also contains which experts each token is sent to.

    Args:
      mlp: config of the expert layer.
      dtype: dtype of the computation.
      fast: whether to use the implementation of the run, with capacity for all tokens. Otherwise, every expert is
        computed for every token.
      arrays: inputs `x`, the chosen experts and their weights for each token (`chosen`, `weights`), and the kernels.
    """
    x, gate = arrays["x"].astype(dtype), arrays.get("gate")
    up, down = arrays["up"].astype(dtype), arrays["down"].astype(dtype)
    given = Kernels(None if gate is None else gate.astype(dtype), up, down, mlp.activation)
    routes = Routes(arrays["chosen"], arrays["weights"], jnp.ones(x.shape[:2], jnp.float32))
    if not fast:
        return dispatch.dense(x, routes, given)
    if mlp.capacity is None:
        return dispatch.dropless(x, routes, given)
    return dispatch.limited(x, routes, given, capacity=mlp.experts / mlp.top_k)[0]


def _pipeline_check(experiment: Experiment, mesh: jax.sharding.Mesh, stack) -> Check:
    """Returns the check of the pipeline that runs a stack on the mesh of the run. It compares small blocks that run in
    this pipeline with the same blocks in a loop.
    """
    schedule = Schedule.of(mesh, experiment.mesh)
    small = pipeline_check.small_stack(stack, schedule, mesh)
    sizes = sharding.mesh_text(mesh.shape, "one device")
    numbers = f"micro-batches {schedule.micro_batches}, repeats {schedule.repeats}, period {len(stack.kinds)}"
    compute = functools.partial(pipeline_check.output, small)
    return Check(
        f"pipeline ({numbers}, remat {stack.remat}, {sizes})",
        "mesh.pipeline=1",
        fast=compute,
        plain=compute,  # Without the mesh, the blocks run in a loop.
        rows=pipeline_check.random_rows(small, ROWS),
        shared={"params": pipeline_check.random_params(small)},
        # The stages are among the parts into which the mesh splits a batch.
        parts=schedule.micro_batches // schedule.stages,
    )


def _normal(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def _file(device: str) -> Any:
    """Returns the path of the file that stores which checks have passed on a kind of device, for the current versions
    of jaxformer and its dependencies. None if there is no compilation cache.
    """
    home = jax.config.values["jax_compilation_cache_dir"]
    if home is None:
        return None
    versions = json.dumps([device, sorted(start.facts("train").items())])
    name = f"{hashlib.sha256(versions.encode()).hexdigest()[:16]}.json"
    return storage.path(os.path.join(home, FOLDER)) / name


def _read(device: str) -> set[tuple[str, str]]:
    """Reads the stored names of the checks that have passed on a kind of device. Returns pairs (kind of device,
    name).
    """
    file = _file(device)
    with contextlib.suppress(OSError, ValueError):
        if file is not None:
            return {(device, name) for name in json.loads(file.read_text(encoding="utf-8"))["passed"]}
    return set()


def _write(device: str, done: set[tuple[str, str]]) -> None:
    """Stores the names of the checks in `done` that have passed on a kind of device. Does nothing if the compilation
    cache cannot be written to.
    """
    file = _file(device)
    with contextlib.suppress(OSError):
        if file is not None:
            names = sorted(name for kind, name in done if kind == device)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps({"device": device, "passed": names}, indent=2), encoding="utf-8")
