"""Parsing of command line arguments, and options that several commands share."""

import argparse
from collections.abc import Sequence

from jaxformer import classes
from jaxformer.errors import InputError


class Parser(argparse.ArgumentParser):
    """Argument parser of a jaxformer command. Adds the option `--allow PACKAGE`, which lets a run use classes of this
    package. Reports an error as an InputError with a message of one line.
    """

    def __init__(self, command: str, description: str):
        super().__init__(prog=f"jaxformer {command}", description=description)
        meaning = "a package of your own whose classes a run may use; can be repeated"
        self.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help=meaning)

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parses the arguments, in which options and positional arguments may be mixed, and allows the packages given
        by `--allow` (see `classes.allow`).
        """
        options = self.parse_intermixed_args(arguments)
        classes.allow(*options.allow)
        return options

    def error(self, message: str):
        raise InputError(f"{self.prog.removeprefix('jaxformer ')}: {message}")


def add_step(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--step`, which selects a checkpoint."""
    meaning = "step of the checkpoint to use; by default the latest, or the best if the config sets checkpoint.best"
    parser.add_argument("--step", metavar="N", type=int, help=meaning)


def add_weights_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that import or export Hugging Face folders: `--dtype`, the data type of the weights,
    and `--no-certificate`, which skips the comparison of the model's outputs with PyTorch.
    """
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    parser.add_argument("--no-certificate", action="store_true", help="skip the comparison with PyTorch")


def take(arguments: list[str], flag: str, expected: str) -> tuple[list[str], list[str]]:
    """Removes every `--flag VALUE` and `--flag=VALUE` from the arguments.

    Args:
      arguments: command line arguments.
      flag: name of the flag, without `--`.
      expected: description of the value, for the error message.

    Returns:
      The remaining arguments, and the values of the flag.

    Raises:
      InputError: If the flag has no value.
    """
    rest, values = [], []
    words = iter(arguments)
    for word in words:
        if word == f"--{flag}" or word.startswith(f"--{flag}="):
            value = word.partition("=")[2] or next(words, None)
            if not value or value.startswith("-"):
                raise InputError(f"--{flag}: expected {expected}")
            values.append(value)
        else:
            rest.append(word)
    return rest, values


def take_switch(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    """Removes every `--flag` from the arguments. Returns the remaining arguments, and whether the flag was among
    them.
    """
    rest = [word for word in arguments if word != f"--{flag}"]
    return rest, len(rest) < len(arguments)


def field_flags(argv: Sequence[str]) -> dict[str, list[str]]:
    """Groups command line words by flag. Returns a dict that maps the dotted field path of each flag to the list of its
    values. Raises InputError if there is a word before the first flag.

    Flags have the form `--path value ...` or `--path=value ...`. `-` in a path is read as `_`.
    """
    flags = {}
    for argument in argv:
        if argument.startswith("--"):
            name, equals, word = argument[2:].partition("=")
            words = flags[name.replace("-", "_")] = [word] if equals else []
        elif flags:
            words.append(argument)
        else:
            raise InputError(f"{argument}: expected a field, such as --steps 200")
    return flags
