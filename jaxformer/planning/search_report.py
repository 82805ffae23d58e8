"""Formats the result of a planning search as text or JSON."""

from typing import Any

from rich.console import Console
from rich.table import Table

from jaxformer.planning.report import gib, plan_json, print_plan, seconds_text, topology_json
from jaxformer.planning.search import Ranked, Search

MAX_CANDIDATES = 24
"""Maximum number of candidates in the printed table. The JSON output has all of them."""


def print_search(search: Search, console: Console) -> None:
    """Prints a table of the best candidates with the reason why each is not the best, and the plan and flags of the
    best candidate.
    """
    ranking = search.ranking
    compiled = sum(one.plan is not None for one in ranking)
    console.print(f"{search.topology.name}: {len(ranking):,} candidates, {compiled} compiled")
    table = Table(box=None, pad_edge=False)
    for name, right in (("", True), ("GiB", True), ("step", True), ("candidate", False), ("why it loses", False)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for number, one in enumerate(ranking[:MAX_CANDIDATES], 1):
        table.add_row(str(number), _memory(one), _time(one), one.candidate.label, one.loses or "the best")
    console.print(table)
    if len(ranking) > MAX_CANDIDATES:
        console.print(f"and {len(ranking) - MAX_CANDIDATES:,} more; --json has all of them", style="dim")
    if search.best is None or search.best.plan is None:
        console.print("nothing that was compiled fits")
        return
    console.print()
    print_plan(search.best.plan, console)
    console.print(f"flags: {search.flags}")


def search_json(search: Search) -> dict[str, Any]:
    """Converts a search to a dict that can be written as JSON: all candidates, best first, and the plan and flags of
    the best one.
    """
    best = search.best
    return {
        "topology": topology_json(search.topology),
        "flags": search.flags,
        "best": plan_json(best.plan) if best and best.plan else None,
        "ranking": [
            {
                "candidate": one.candidate.label,
                "flags": one.candidate.flags(search.experiment),
                "compiled": one.plan is not None,
                "fits": one.plan.memory.fits if one.plan else None,
                "seconds": one.estimate.middle if one.estimate else None,
                "loses": one.loses,
            }
            for one in search.ranking
        ],
    }


def _memory(one: Ranked) -> str:
    return gib(one.plan.memory.peak) if one.plan and one.plan.memory.peak else ""


def _time(one: Ranked) -> str:
    if one.estimate is None:
        return ""
    return f"{'' if one.plan else '~'}{seconds_text(one.estimate.middle)}"
