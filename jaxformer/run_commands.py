"""The commands `jaxformer verify` (compares the files of a run with their digests), `replay` (prints the batch of a
training step) and `drill` (damages copies of a small run on purpose), and the function by which commands open a run.
None of them changes the files of a run.
"""

from typing import TYPE_CHECKING

from jaxformer import classes, storage
from jaxformer.command_arguments import Parser, take
from jaxformer.errors import InputError
from jaxformer.training import host

if TYPE_CHECKING:
    from jaxformer.runs.run import Run


def opened(folder: str, in_memory: bool = True, step: int | None = None) -> "Run":
    """Opens a run, while the terminal shows what is being done.

    Args:
      folder: the run's folder.
      in_memory: whether to read the parameters now, as in `open_run`.
      step: step of the checkpoint to read. If None, the best or the latest one, as in `open_run`.
    """
    from jaxformer.progress import display, phase

    with display(stderr=True), phase(f"opening {folder}"):
        host.start_jax()
        from jaxformer.runs.run import open_run

        return open_run(folder, in_memory, step)


def verify(arguments: list[str]) -> None:
    """Runs `jaxformer verify`: compares the files of a run with the digests that were stored when they were written.
    Prints one line for each file, tokenizer folder and checkpoint.

    Raises:
      InputError: If any of them is damaged.
    """
    parser = Parser("verify", "Reads everything in a run's folder and compares it with its digests. Changes nothing.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    folder = storage.path(parser.parse(arguments).run)
    from jaxformer.progress import display
    from jaxformer.runs import verification

    parts = []
    with display(stderr=True):
        for part in verification.verify(folder):
            parts.append(part)
            print(part, flush=True)
    if damaged := [part.name for part in parts if part.problem]:
        raise InputError(f"{folder}: {len(damaged)} of {len(parts)} parts are damaged: {', '.join(damaged)}")


def replay(arguments: list[str]) -> None:
    """Runs `jaxformer replay`: prints the decoded batch of a training step, with the loss of each of its rows."""
    parser = Parser("replay", "Rebuilds the batch of a training step, decodes it, and computes the loss of each row.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--step", metavar="N", type=int, required=True, help="number of the step, counted from 1")
    parser.add_argument(
        "--rows", metavar="R", type=int, nargs="+", help="rows to print, counted from 0; by default all"
    )
    options = parser.parse(arguments)
    host.start_jax()
    from jaxformer.progress import display
    from jaxformer.training.replay import replay

    with display(stderr=True):
        found = replay(storage.path(options.run), options.step)
    if wrong := [row for row in options.rows or () if not 0 <= row < len(found.rows)]:
        raise InputError(f"--rows {wrong[0]}: expected 0 to {len(found.rows) - 1}")
    used = "" if found.checkpoint_step is None else f" · losses by the parameters of step {found.checkpoint_step:,}"
    print(f"{options.run} · step {found.step:,} · {len(found.rows)} rows{used}")
    for row in found.rows:
        if options.rows is None or row.index in options.rows:
            print(row)


def drill(arguments: list[str]) -> None:
    """Runs `jaxformer drill`: trains a small run in a folder that the user names, damages its checkpoints and its data
    on purpose, and reports whether each damage is detected.
    """
    arguments, allowed = take(arguments, "allow", "a package")
    classes.allow(*allowed)
    host.start_jax()
    from jaxformer.drills import command

    command.run(arguments, allowed)
