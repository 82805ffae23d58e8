"""The command `jaxformer drill`: trains a small run, damages copies of it on purpose (checkpoints, data, killed
processes), and reports whether each fault is detected and survived.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from jaxformer import config, storage
from jaxformer.command_arguments import take
from jaxformer.config import Experiment
from jaxformer.drills import faults, processes, storage_faults
from jaxformer.drills.scratch import Outcome, Scratch, remove, small
from jaxformer.errors import InputError
from jaxformer.progress import display, phase
from jaxformer.runs import run as runs
from jaxformer.runs import writing
from jaxformer.runs.folder import EXPERIMENT

DRILLS: dict[str, Callable[[Scratch, int], Outcome]] = {
    "kill": processes.kills,
    "stop": processes.stops,
    "flip": faults.flips,
    "truncate": faults.truncations,
    "delete": faults.deletions,
    "foreign": faults.foreign,
    "data": faults.changed_data,
    "storage": storage_faults.storage_faults,
    "reader": storage_faults.readers,
}
"""Maps the names that `--only` accepts to functions that run a drill. A drill damages copies of the small run in one
way. Each function takes the small run and the number of faults to try.
"""
FOLDER = "drill"
"""Name of the subfolder in which `jaxformer drill` writes the small run and its damaged copies."""
COUNT = 20
"""Default of `--count`, the number of faults that each drill with random faults tries."""
HELP = f"""usage: jaxformer drill RUN_OR_CONFIG [--only NAME] [--count N] [--workdir FOLDER] [--field value ...]

Trains a small run with the parts of a run or of a config, harms it, and reports whether it survived. The small run is
written to a new subfolder `{FOLDER}` of RUN, or of FOLDER (by default runs/NAME for a config), which may be in a
bucket. The subfolder is removed if every fault was survived. Nothing else is changed.

  --only NAME   one of {", ".join(DRILLS)}; can be repeated; by default all of them
  --count N     number of kills, flips, truncations, edited documents and reads, by default {COUNT}
"""


def run(arguments: list[str], allowed: Sequence[str]) -> None:
    """Runs the command `jaxformer drill`.

    Args:
      arguments: command line arguments after `drill`.
      allowed: names of the user's packages whose classes the experiment may use.

    Raises:
      InputError: If an argument is wrong, the small run cannot be trained, or a fault was not survived.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    arguments, only = take(arguments, "only", f"one of {', '.join(DRILLS)}")
    arguments, counts = take(arguments, "count", "a number")
    arguments, workdir = take(arguments, "workdir", "a folder")
    if unknown := [name for name in only if name not in DRILLS]:
        raise InputError(f"--only {unknown[0]}: expected one of {', '.join(DRILLS)}")
    if counts and not (counts[-1].isdigit() and int(counts[-1])):
        raise InputError(f"--count {counts[-1]}: expected at least 1")
    experiment, home = planned(arguments, workdir[-1] if workdir else None)
    with display(stderr=True):
        outcomes = drill(experiment, home, only or list(DRILLS), int(counts[-1]) if counts else COUNT, allowed)
    show(outcomes)
    if problems := [problem for outcome in outcomes for problem in outcome.problems]:
        raise InputError(
            f"drill: {len(problems)} faults were not survived, first: {problems[0]}; the runs are in {home}"
        )
    remove(home)


def planned(arguments: Sequence[str], workdir: str | None) -> tuple[Experiment, Path]:
    """Returns the experiment of the small run that `jaxformer drill` damages, and the path of the new folder for it.
    Raises InputError if that folder exists already.

    Args:
      arguments: path of a run folder; or path of a config, followed by flags that override its fields.
      workdir: folder in which the new folder is created. If None, the run folder, or `runs/NAME` for a config.
    """
    name, *flags = arguments
    source = storage.path(name)
    if (source / EXPERIMENT).exists():
        if flags:
            raise InputError(f"{flags[0]}: fields can only be set for a config; leave it out")
        experiment, home = writing.read_experiment(source), source
        if experiment.tokenizer is not None:
            experiment = config.override(experiment, {"tokenizer": runs.RunTokenizer(name)})
    else:
        experiment = config.parse(name, flags, "jaxformer drill CONFIG.py")
        home = Path("runs") / Path(name).stem
    home = (storage.path(workdir) if workdir else home) / FOLDER
    if home.exists():
        raise InputError(f"{home}: exists already, perhaps from a drill that failed; remove it")
    return small(experiment), home


def drill(
    experiment: Experiment, home: Path, chosen: Sequence[str], count: int, allowed: Sequence[str] = ()
) -> list[Outcome]:
    """Trains the small run, runs the chosen drills on copies of it, and returns the outcome of each drill.

    Args:
      experiment: experiment of the small run.
      home: path of a new folder for the small run and its copies.
      chosen: names of the drills, which are keys of `DRILLS`.
      count: number of faults that each drill with random faults tries.
      allowed: names of the user's packages whose classes the experiment may use.
    """
    with tempfile.TemporaryDirectory(prefix="jaxformer-drill-") as local:
        with phase("training the undisturbed run"):
            scratch = Scratch(home, experiment, Path(local), allowed)
        outcomes = []
        for name in chosen:
            with phase(f"drill: {name}"):
                outcomes.append(DRILLS[name](scratch, count))
        return outcomes


def show(outcomes: Sequence[Outcome]) -> None:
    """Prints a table with one row per drill, followed by a line for each fault that was not survived."""
    table = Table("fault", "tried", "detected", "harmless", "lost steps", "seconds to recover")
    for outcome in outcomes:
        seconds = f"{median(outcome.seconds):.1f} (most {max(outcome.seconds):.1f})" if outcome.seconds else "-"
        values = (outcome.tried, outcome.detected, outcome.harmless, outcome.lost)
        table.add_row(outcome.fault, *map(str, values), seconds)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    for problem in (problem for outcome in outcomes for problem in outcome.problems):
        console.print(problem, markup=False)
