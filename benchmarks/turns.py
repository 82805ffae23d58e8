"""Shared by benchmarks that compare two programs: each side in a process of its own, in turns."""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping
from unittest import mock

Step = Callable[[], object]
OURS = "jaxformer"
"""The name of our side, with which the names of several begin."""
PRODUCTS = "products"
"""The name of the side that only multiplies large matrices, with as many operations as the products of our step."""
WARM = 3
"""Steps before a timed one, as a training's follow each other. In the others' turns a process has lost the caches; a
virtual machine may have given free memory back to its host, and two steps' buffers may be there at once."""


def take_turns(sides: Mapping[str, Callable[[], Step]], turns: int, warm: int = WARM) -> dict[str, float]:
    """Returns the median seconds per step of each side.

    The sides run in turns, so that neither a noisy machine nor the other's threads favour one of them.

    Args:
      sides: by name, a function at the top of a module that makes a step. It runs in a new process; all are made at
        the same time.
      turns: timed steps of each side, each after `warm` that are not; two more come first.
      warm: steps before a timed one.

    Raises:
      EOFError: If the process of a side has died.
    """
    spawn, pipes, seconds = multiprocessing.get_context("spawn"), {}, {name: [] for name in sides}
    for name, make in sides.items():
        pipes[name], theirs = spawn.Pipe()
        with surroundings(name):
            spawn.Process(target=_serve, args=(make, theirs, warm), daemon=True).start()
        theirs.close()  # So that a side that dies ends the wait for it.
    for pipe in pipes.values():
        pipe.recv()
    for _ in range(turns):
        for name, pipe in pipes.items():
            pipe.send(True)
            seconds[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return {name: statistics.median(times) for name, times in seconds.items()}


def surroundings(name: str) -> contextlib.AbstractContextManager:
    """Processes started in it belong to the named side; ours start as the command line does (`training.host`)."""
    from jaxformer.training import host

    return mock.patch.dict(os.environ, {"GLIBC_TUNABLES": host.HUGE_PAGES} if name.startswith(OURS) else {})


def alone(name: str, function: Callable, *arguments):
    """Calls a function at the top of a module in a process of its own, for the side of that name."""
    with surroundings(name), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _serve(make: Callable[[], Step], pipe, warm: int) -> None:
    step = make()
    step()
    step()
    pipe.send(None)
    while pipe.recv():
        for _ in range(warm):
            step()
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)


def training_step(experiment, batch, steps: int = 1) -> Step:
    """Returns a function that runs the training step of `fit` a number of times on one batch of arrays, then waits."""
    import jax

    from jaxformer.parallel.sharding import batch_sharding, make_mesh
    from jaxformer.training.loop import compile_step
    from jaxformer.training.state import abstract_state, init_state

    mesh = make_mesh(experiment.mesh)
    state = init_state(experiment, abstract_state(experiment, mesh))
    batch = jax.device_put(batch, batch_sharding(mesh))
    compiled = compile_step(experiment, mesh)

    def step():
        nonlocal state
        for _ in range(steps):
            state, means = compiled(state, batch)
        jax.block_until_ready((state, means))

    return step


def compare_with_torch(
    benchmark: str,
    description: str,
    ours: Callable[[], Step],
    theirs: Callable[[bool], Step],
    goals: Mapping[str, float],
    tokens: int,
    products: float,
    turns: int,
) -> int:
    """The program of a benchmark of training steps, here and in PyTorch; its exit status.

    Args:
      benchmark: its name.
      description: what it does; the first line is its help's.
      ours: a function at the top of a module that makes our step.
      theirs: one that makes PyTorch's, given `compiled`, whether by torch.compile.
      goals: what the ratios to `eager` and to `compiled` should be.
      tokens: of a step.
      products: floating-point operations of the matrix products in our step, for the side `PRODUCTS`.
      turns: timed steps of each side, unless a flag says otherwise.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--turns", type=int, default=turns, help="timed steps of each side")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    sides = {OURS: ours, "eager": functools.partial(theirs, compiled=False)}
    if not options.no_compile:
        sides["compiled"] = functools.partial(theirs, compiled=True)
    sides[PRODUCTS] = functools.partial(products_step, products)
    return conclude(compare(benchmark, take_turns(sides, options.turns), goals, tokens))


def use_one_core() -> None:
    """All threads of this process, those of libraries too, on one core from now on."""
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})


def compare(
    benchmark: str, seconds: Mapping[str, float], goals: Mapping[str, float], tokens: int, unit: str = "tokens"
) -> list[dict]:
    """Prints each side's speed, and returns how many times the first side's is each of the others'.

    Args:
      benchmark: its name.
      seconds: of each side's step. If `PRODUCTS` is one of the sides, each other result has `most` too: the ratio of a
        step that did nothing else.
      goals: by the name of the side compared with, what the ratio should be. That of `PRODUCTS` is the share of the
        first side's step that the products alone take.
      tokens: of a step.
      unit: what `tokens` counts.
    """
    for name, time_ in seconds.items():
        print(f"{name:10} {tokens / time_:8,.{1 if unit != 'tokens' else 0}f} {unit}/s   {time_ * 1e3:7.0f} ms a step")
    ours, least, results = next(iter(seconds.values())), seconds.get(PRODUCTS), []
    for name in (name for name in goals if name in seconds):
        ratio = seconds[name] / ours
        most = {"most": round(seconds[name] / least, 2)} if least and name != PRODUCTS else {}
        goal = {"goal": goals[name], "met": ratio >= goals[name]}
        results.append({"benchmark": f"{benchmark}/{name}", "ratio": round(ratio, 2), **goal, **most})
    return results


def products_step(operations: float, size: int = 2048) -> Step:
    """Returns a function that computes float32 matrix products of about `size` × `size`, with this number of
    floating-point operations in total, in JAX.
    """
    import jax
    import jax.numpy as jnp

    times = max(1, round(operations / (2 * size**3)))
    size = round((operations / (2 * times)) ** (1 / 3))
    x, product = jnp.ones((size, size)), jax.jit(jnp.matmul)
    return lambda: jax.block_until_ready([product(x, x) for _ in range(times)])


def conclude(results: list[dict]) -> int:
    """Prints the results as a line of JSON; the exit status, 0 where all goals are met."""
    print(json.dumps(results))
    return 0 if all(result["met"] for result in results) else 1
