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
      products: as of `compare`.
      turns: timed steps of each side, unless a flag says otherwise.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--turns", type=int, default=turns, help="timed steps of each side")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    sides = {OURS: ours, "eager": functools.partial(theirs, compiled=False)}
    if not options.no_compile:
        sides["compiled"] = functools.partial(theirs, compiled=True)
    return conclude(compare(benchmark, take_turns(sides, options.turns), goals, tokens, products))


def use_one_core() -> None:
    """All threads of this process, those of libraries too, on one core from now on."""
    if hasattr(os, "sched_setaffinity"):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), {min(os.sched_getaffinity(0))})


def compare(
    benchmark: str,
    seconds: Mapping[str, float],
    goals: Mapping[str, float],
    tokens: int,
    products: float = 0.0,
    unit: str = "tokens",
) -> list[dict]:
    """Prints each side's speed, and returns how many times the first side's is each of the others'.

    Args:
      benchmark: its name.
      seconds: of each side's step.
      goals: by the name of the side compared with, what the ratio should be.
      tokens: of a step.
      products: floating-point operations of the matrix products in a step of the first side. If there are any, each
        result has `most` too: the ratio of a step that did nothing else, at the speed of a large product here.
      unit: what `tokens` counts.
    """
    for name, time_ in seconds.items():
        print(f"{name:10} {tokens / time_:8,.{1 if unit != 'tokens' else 0}f} {unit}/s   {time_ * 1e3:7.0f} ms a step")
    ours = next(iter(seconds.values()))
    least = 0.0
    if products:
        speed = product_speed()
        least = products / speed
        print(f"products   {products / 1e9:8,.0f} GFLOP      {least * 1e3:7.0f} ms at {speed / 1e9:,.0f} GFLOP/s")
    results = []
    for name in (name for name in goals if name in seconds):
        ratio, most = seconds[name] / ours, {"most": round(seconds[name] / least, 2)} if least else {}
        goal = {"goal": goals[name], "met": ratio >= goals[name]}
        results.append({"benchmark": f"{benchmark}/{name}", "ratio": round(ratio, 2), **goal, **most})
    return results


def product_speed(size: int = 2048, times: int = 15) -> float:
    """Floating-point operations a second of a large matrix product in JAX, in a process of its own: the best time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return 2 * size**3 / pool.apply(_fastest_product, (size, times))


def _fastest_product(size: int, times: int) -> float:
    import jax
    import jax.numpy as jnp

    x, product, seconds = jnp.ones((size, size)), jax.jit(jnp.matmul), []
    for _ in range(times):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def conclude(results: list[dict]) -> int:
    """Prints the results as a line of JSON; the exit status, 0 where all goals are met."""
    print(json.dumps(results))
    return 0 if all(result["met"] for result in results) else 1
