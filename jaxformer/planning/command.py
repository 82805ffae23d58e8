"""Command line interface of planning: `jaxformer plan`."""

import argparse
import json
import sys

import jax
from rich.console import Console

from jaxformer import classes, config
from jaxformer.errors import InputError
from jaxformer.planning import compiling, plans, report, topologies
from jaxformer.planning.search import COMPILED, search_plans
from jaxformer.planning.search_report import print_search, search_json

WIDTH = 180
"""Width of tables in characters if the output is not a terminal."""
USAGE = "jaxformer plan CONFIG --topology v5p:4x4x4 [--field value ...]"
EPILOG = (
    "Topologies: v4, v5e, v5p, v6e and tpu7x with the shape of a slice, such as v5p:4x4x4, or 2xv5e:16x16 for two "
    "slices; h100, h200 and b200 with the number of GPUs, such as h100:64. All other flags are fields of the "
    "experiment, as in `jaxformer train`."
)


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises InputError for invalid arguments, instead of printing the usage and exiting."""

    def error(self, message: str):
        raise InputError(f"plan: {message}")


def _parser() -> _Parser:
    what = "Predicts the memory, communication, time and cost of a run on hardware that is not attached."
    parser = _Parser(prog="jaxformer plan CONFIG", description=what, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("--topology", metavar="NAME", required=True, help="such as v5p:4x4x4 or h100:64")
    parser.add_argument("--price", metavar="USD", type=float, help="price of one device per hour")
    meaning = (
        "compare meshes, rematerialisation policies and numbers of micro-batches, and print the flags of the fastest"
    )
    parser.add_argument("--search", action="store_true", help=meaning)
    meaning = f"with --search, maximum number of candidates to compile; {COMPILED} by default"
    parser.add_argument("--compiled", metavar="N", type=int, default=COMPILED, help=meaning)
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    meaning = "a package of your own whose classes the config may use; can be repeated"
    parser.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help=meaning)
    return parser


def run(arguments: list[str]) -> None:
    """Runs `jaxformer plan`: predicts memory, communication and time of the experiment in a config file, and prints
    them (the plan). With `--search`, prints the comparison of several ways to run it.

    Args:
      arguments: command line arguments after `plan`.

    Raises:
      InputError: If an argument is wrong, or planning fails (see `plans.plan` and `search_plans`).
    """
    parser = _parser()
    if arguments in (["-h"], ["--help"]):
        parser.print_help()
        return
    if not arguments or arguments[0].startswith("-"):
        raise InputError("plan: expected a config file first, such as configs/bert_base.py, or the name bert_base")
    path, *flags = arguments
    options, rest = parser.parse_known_args(flags)
    if options.price is not None and not options.price > 0:
        raise InputError(f"--price {options.price:g}: expected the price of one device for an hour, above 0")
    classes.allow(*options.allow)
    # Planning only compiles programs, so it does not occupy the devices of this machine.
    jax.config.update("jax_platforms", "cpu")
    compiling.prepare()
    topology = topologies.parse(options.topology)
    experiment = config.parse(path, rest, USAGE)
    width = None if sys.stdout.isatty() else WIDTH
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True, width=width)
    if options.search:
        search = search_plans(experiment, topology, price=options.price, compiled=options.compiled)
        if options.json:
            print(json.dumps(search_json(search), indent=2))
        else:
            print_search(search, console)
        return
    plan = plans.plan(experiment, topology, price=options.price)
    if options.json:
        print(json.dumps(report.plan_json(plan), indent=2))
    else:
        report.print_plan(plan, console)
