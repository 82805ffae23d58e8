"""Searches for the fastest way (mesh, rematerialisation policy, number of micro-batches) to run an experiment on a
topology, and gives a reason why each other way is worse.
"""

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
from jaxformer.planning.candidates import Candidate, candidates
from jaxformer.planning.formulas import Formulas
from jaxformer.planning.plans import Plan
from jaxformer.planning.report import gib, seconds_text, verdict
from jaxformer.planning.roofline import Roofline
from jaxformer.planning.topologies import Topology
from jaxformer.progress import display, phase

COMPILED = 6
"""Default value for the maximum number of candidates that a search compiles."""
PARTS = ("products", "memory", "fast", "slow")


@dataclasses.dataclass(frozen=True)
class Ranked:
    """A candidate (a way to run the experiment) in the ranking of a search."""

    candidate: Candidate
    estimate: Roofline | None
    """Times of the parts of a step, computed from the compiled program if there is one, otherwise estimated by
    formulas. None if the candidate cannot run, or if the formulas or the compiler reject it because it does not fit in
    memory.
    """
    plan: Plan | None
    """Plan of the candidate. None if it was not compiled."""
    loses: str = ""
    """Reason why this is not the best candidate. Empty for the best candidate."""


@dataclasses.dataclass(frozen=True)
class Search:
    """Result of a search: the ranking of all candidates."""

    experiment: Experiment
    topology: Topology
    ranking: tuple[Ranked, ...]
    """All candidates, best first: candidates that were compiled and fit in memory, by step time; then those that were
    not compiled; then those that do not fit or cannot run.
    """

    @property
    def best(self) -> Ranked | None:
        """Fastest candidate that was compiled and fits in memory. None if there is no such candidate."""
        first = self.ranking[0]
        return first if first.plan is not None and first.plan.memory.fits else None

    @property
    def flags(self) -> str:
        """Command line flags of `jaxformer train` that run the experiment like the best candidate. Empty if there is no
        best candidate.
        """
        return self.best.candidate.flags(self.experiment) if self.best else ""


def search_plans(
    experiment: Experiment | str | os.PathLike,
    topology: Topology | str,
    overrides: Mapping[str, Any] | None = None,
    price: float | None = None,
    compiled: int = COMPILED,
) -> Search:
    """Ranks ways to run an experiment on a topology (mesh, rematerialisation policy and number of micro-batches) by the
    time of a step.

    Estimates all these candidates by formulas, then compiles those with the shortest estimated times. Does not change
    the batch size.

    Args:
      experiment: experiment, or the path of a config file (see `load`).
      topology: name of a topology, such as `v5p:4x4x4`.
      overrides: maps dotted paths of fields of the experiment, such as `data.batch`, to values that replace theirs.
      price: price of one device per hour.
      compiled: maximum number of candidates to compile. If 0, all times are estimates by formulas, and no compiler is
        needed.

    Raises:
      InputError: If the topology does not exist, the compiler is needed and not installed, or no candidate can run.
    """
    compiling.prepare()
    if not isinstance(experiment, Experiment):
        experiment = config.load(experiment)
    experiment = config.override(experiment, overrides or {})
    topology = topologies.parse(topology) if isinstance(topology, str) else topology
    if compiled < 0:
        raise InputError(f"--compiled {compiled}: expected at least 0")
    plans.check_vocabulary(experiment)
    if compiled:
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
    """Estimates all candidates by formulas. Returns two lists: the candidates that may run, ordered by estimated time,
    and those that cannot run or do not fit in memory, with the reason.
    """
    ordered, lost = [], []
    for candidate in map(formulas.scheduled, candidates(experiment, topology)):
        problem = formulas.problem(candidate) or _too_large(candidate, topology, formulas)
        if problem:
            lost.append(Ranked(candidate, None, None, problem))
        else:
            ordered.append(Ranked(candidate, formulas.roofline(candidate), None))
    return sorted(ordered, key=lambda one: one.estimate.middle if one.estimate else 0.0), lost


def _too_large(candidate: Candidate, topology: Topology, formulas: Formulas) -> str | None:
    """Returns the reason why a candidate cannot fit in memory, from a lower bound of its memory use. Returns None if it
    may fit.
    """
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
    """Returns all candidates, best first (see `Search.ranking`), with the reason why each of them is not the best one.

    Args:
      tried: candidates that were compiled and fit in memory.
      waiting: candidates that were not compiled, because the maximum number was reached.
      lost: candidates that do not fit in memory or cannot run, with the reason.
    """
    in_order = sorted(tried, key=_middle)
    if not in_order and not any(one.plan for one in lost):  # Nothing was compiled: the order is that of the formulas.
        first = min(waiting, key=_middle, default=None)
        return (*(dataclasses.replace(one, loses=_slower(one, first)) for one in waiting), *lost)
    if not in_order:
        not_compiled = "was not compiled; --compiled says how many are"
        return (*lost, *(dataclasses.replace(one, loses=not_compiled) for one in waiting))
    best = in_order[0]
    slower = [dataclasses.replace(one, loses=_slower(one, best)) for one in in_order[1:]]
    # Estimates by formulas are compared with each other only, because they differ from estimates by compiled programs.
    first = min(waiting, key=_middle, default=None)
    guesses = [
        dataclasses.replace(one, loses=f"not compiled: by formulas {_slower(one, first) or 'the next to try'}")
        for one in waiting
    ]
    return (best, *slower, *guesses, *lost)


def _middle(one: Ranked) -> float:
    return one.estimate.middle if one.estimate else float("inf")


def _slower(one: Ranked, best: Ranked | None) -> str:
    """Describes how many times slower a candidate is than the fastest one, and which part of the step (such as
    communication) causes it. Empty if an estimate is missing, or both are the same.
    """
    if best is None or one is best or one.estimate is None or best.estimate is None:
        return ""
    found, fastest = one.estimate, best.estimate
    more = {part: getattr(found, part) - getattr(fastest, part) for part in PARTS}
    part = max(more, key=lambda name: more[name])
    names = {"products": "more computed again", "memory": "more memory traffic", "fast": "more communication"}
    if one.candidate.waiting > best.candidate.waiting:
        names["products"] = "stages of the pipeline wait longer"
    reason = names.get(part, "more communication between slices or nodes")
    times = f"{found.middle / fastest.middle:.2f} times the time"
    if more[part] <= 0:
        return times
    return f"{times}: {reason}, {seconds_text(getattr(found, part))} against {seconds_text(getattr(fastest, part))}"
