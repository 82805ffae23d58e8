"""`search_plans`: the fastest way to run an experiment on a topology, and why each other way loses."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxformer import config
from jaxformer.config import Experiment
from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.planning import compiling, plans, topologies
from jaxformer.planning.candidates import Candidate, Formulas, candidates
from jaxformer.planning.plans import Plan
from jaxformer.planning.report import gib, seconds_text, verdict
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.topologies import Topology
from jaxformer.progress import display, phase

COMPILED = 6
"""Candidates that are compiled, unless more are asked for."""
PARTS = ("products", "memory", "fast", "slow")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate with its place in the ranking."""

    candidate: Candidate
    estimate: Roofline | None
    """By the compiled program if there is one, else by formulas; None if the candidate cannot run."""
    plan: Plan | None
    """None if it was not compiled."""
    loses: str = ""
    """Why it is not the best one; empty for the best."""


@dataclasses.dataclass(frozen=True)
class Search:
    """The ranking of all ways to run an experiment."""

    experiment: Experiment
    topology: Topology
    ranking: tuple[Ranked, ...]
    """The best first; then those that were compiled and fit, by time, those that formulas say are slower, and those
    that do not fit or cannot run."""

    @property
    def best(self) -> Ranked | None:
        """The best one; None if nothing that was compiled fits."""
        first = self.ranking[0]
        return first if first.plan is not None and first.plan.memory.fits else None

    @property
    def flags(self) -> str:
        """The flags of `jaxformer train` for the best one."""
        return self.best.candidate.flags(self.experiment) if self.best else ""


def search_plans(
    experiment: Experiment | str | os.PathLike,
    topology: Topology | str,
    overrides: Mapping[str, Any] | None = None,
    price: float | None = None,
    compiled: int = COMPILED,
) -> Search:
    """Ranks meshes, rematerialisation and micro-batches by the time of a step.

    Formulas order the candidates; then they are compiled, the most promising first. The batch stays the experiment's.

    Args:
      experiment: what is trained, or a config file, as `load` takes it.
      topology: such as `v5p:4x4x4`.
      overrides: fields of the experiment to replace, by dotted path.
      price: of one device for an hour.
      compiled: how many candidates to compile, at most.

    Raises:
      InputError: there is no such topology, the compiler is not installed, or no candidate can run.
    """
    compiling.prepare()
    if not isinstance(experiment, Experiment):
        experiment = config.load(experiment)
    experiment = config.override(experiment, overrides or {})
    topology = topologies.parse(topology) if isinstance(topology, str) else topology
    if compiled < 1:
        raise InputError(f"--compiled {compiled}: expected at least 1")
    plans.check_vocabulary(experiment)
    compiling.check_compiler(topology)
    with display(stderr=True):
        return _search(experiment, topology, price, compiled)


def _search(experiment: Experiment, topology: Topology, price: float | None, limit: int) -> Search:
    with phase("comparing meshes by formulas"):
        alone = sharding.make_mesh(sharding.Mesh(1), jax.devices()[:1])
        formulas = Formulas(experiment, topology, plans.model_flops(experiment, alone))
        ordered, lost = _order(experiment, topology, formulas)
    if not ordered:
        raise InputError(f"--search: no way to run it on {topology.name}: {lost[0].loses}")
    tried: list[Ranked] = []
    refused: list[Ranked] = []
    waiting: list[Ranked] = []
    for number, one in enumerate(ordered):
        larger = next((other for other in refused if one.candidate.needs_at_least(other.candidate)), None)
        if larger:
            loses = f"needs no less than {larger.candidate.label}, which does not fit"
            lost.append(dataclasses.replace(one, estimate=None, loses=loses))
        elif len(tried) + len(refused) == limit:
            waiting += ordered[number:]
            break
        else:
            found = _compile(one, experiment, topology, price)
            (tried if found.plan and found.plan.memory.fits else refused).append(found)
    return Search(experiment, topology, rank(tried, waiting, [*refused, *lost]))


def _order(experiment: Experiment, topology: Topology, formulas: Formulas) -> tuple[list[Ranked], list[Ranked]]:
    """The candidates that may run, the fastest by formulas first, and those that cannot, with the reason."""
    ordered, lost = [], []
    for candidate in candidates(experiment, topology):
        problem = formulas.problem(candidate) or _too_large(candidate, topology, formulas)
        if problem:
            lost.append(Ranked(candidate, None, None, problem))
        else:
            ordered.append(Ranked(candidate, formulas.roofline(candidate), None))
    return sorted(ordered, key=lambda one: one.estimate.middle if one.estimate else 0.0), lost


def _too_large(candidate: Candidate, topology: Topology, formulas: Formulas) -> str | None:
    """Why a candidate cannot fit, by what it needs at least."""
    state, room = formulas.state_bytes(candidate), topology.chip.memory
    if state > room:
        return f"does not fit: parameters and optimizer alone take {gib(state)} of {gib(room)} GiB"
    kept = formulas.activation_bytes(candidate)
    if state + kept > room:
        return f"does not fit: by formulas, kept activations alone take {gib(kept)} of {gib(room)} GiB"
    return None


def _compile(one: Ranked, experiment: Experiment, topology: Topology, price: float | None) -> Ranked:
    with phase(one.candidate.label):
        plan = plans.compiled_plan(one.candidate.applied(experiment), topology, price)
    loses = "" if plan.memory.fits else verdict(plan)
    return Ranked(one.candidate, plan.roofline, plan, loses)


def rank(tried: Sequence[Ranked], waiting: Sequence[Ranked], lost: Sequence[Ranked]) -> tuple[Ranked, ...]:
    """The ranking, with the reason why each but the best loses.

    Args:
      tried: compiled, and fit.
      waiting: not compiled.
      lost: do not fit or cannot run, with the reason.
    """
    in_order = sorted(tried, key=_middle)
    if not in_order:
        not_compiled = "was not compiled; --compiled says how many are"
        return (*lost, *(dataclasses.replace(one, loses=not_compiled) for one in waiting))
    best = in_order[0]
    slower = [dataclasses.replace(one, loses=_slower(one.estimate, best.estimate)) for one in in_order[1:]]
    # Formulas are compared with each other: what they say of the best one is not what was compiled.
    first = min((one.estimate for one in waiting if one.estimate), key=lambda found: found.middle, default=None)
    guesses = [
        dataclasses.replace(one, loses=f"not compiled: by formulas {_slower(one.estimate, first) or 'the next to try'}")
        for one in waiting
    ]
    return (best, *slower, *guesses, *lost)


def _middle(one: Ranked) -> float:
    return one.estimate.middle if one.estimate else float("inf")


def _slower(found: Roofline | None, best: Roofline | None) -> str:
    """By how much a step is slower than the best one's, and by what."""
    if found is None or best is None or found is best:
        return ""
    more = {part: getattr(found, part) - getattr(best, part) for part in PARTS}
    part = max(more, key=lambda name: more[name])
    names = {"products": "more computed again", "memory": "more memory traffic", "fast": "more communication"}
    reason = names.get(part, "more communication between slices or nodes")
    times = f"{found.middle / best.middle:.2f} times the time"
    if more[part] <= 0:
        return times
    return f"{times}: {reason}, {seconds_text(getattr(found, part))} against {seconds_text(getattr(best, part))}"
