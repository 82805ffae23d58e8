"""Runs commands of jaxformer one after the other in one process of its own: a process takes seconds to start."""

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = {("jaxformer",): [], ("python", "train.py"): ["train"]}
"""The arguments that programs give before those of their command line."""


class Commands(contextlib.AbstractContextManager):
    """The process, with some variables changed."""

    def __init__(self, **variables: str):
        environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)

    def run(self, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs a line such as `jaxformer predict RUN TEXT > FILE` in a folder."""
        words, file = shlex.split(command, comments=True), None
        if words[-2:-1] == [">"]:
            *words, _, file = words
        ((program, first),) = [each for each in PROGRAMS.items() if words[: len(each[0])] == list(each[0])]
        print(json.dumps([[*first, *words[len(program) :]], str(folder)]), file=self._process.stdin, flush=True)
        status, out, err = json.loads(self._process.stdout.readline())
        if file:
            (folder / file).write_text(out, encoding="utf-8")
            out = ""
        return subprocess.CompletedProcess(command, status, out, err)

    def __exit__(self, *_) -> None:
        with self._process:
            self._process.stdin.close()


def main() -> None:
    """Reads the arguments and the folder of each command, and writes its status and what it printed, as JSON lines."""
    from jaxformer import cli

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print must not mix with the answers.
    for line in sys.stdin:
        arguments, folder = json.loads(line)
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            try:
                status = cli.main(arguments)
            except SystemExit as ended:  # After --help.
                status = ended.code or 0
        print(json.dumps([status, out.getvalue(), err.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
