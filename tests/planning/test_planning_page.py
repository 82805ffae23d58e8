"""The page docs/planning.md: its commands run, and its errors are the errors."""

import shlex
from pathlib import Path

import pytest

from jaxformer import cli
from jaxformer.errors import InputError
from jaxformer.planning import compiling, topologies

PAGE = (Path(__file__).parent.parent.parent / "docs" / "planning.md").read_text(encoding="utf-8")
REFUSED = ("--topology v5p:4x4x5", "--topology v5e:16x16 --mesh.data 3", "--topology v5e:16x16")


def blocks(language):
    return [text.partition("\n")[2] for text in PAGE.split("```")[1::2] if text.partition("\n")[0] == language]


def test_the_errors_that_it_quotes(capsys):
    _, quoted = blocks("")
    for flags, line in zip(REFUSED, quoted.splitlines(), strict=True):
        assert cli.main(["plan", "gpt_quickstart", *flags.split()]) == 2
        assert capsys.readouterr().err.strip() == line


def run_here(name):
    try:
        compiling.check_compiler(topologies.parse(name))
    except InputError as error:
        pytest.skip(str(error))
    compiling.prepare()


_, *LISTED = blocks("bash")
COMMANDS = "".join(LISTED).replace("\\\n", " ").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_that_it_lists(line, capsys):
    words = shlex.split(line)
    run_here(words[words.index("--topology") + 1])
    assert words[0] == "jaxformer" and cli.main(words[1:]) == 0
    printed = capsys.readouterr().out
    assert '"fits": true' in printed if "--json" in words else "fits: " in printed


@pytest.mark.slow
def test_the_python_that_it_shows(capsys):
    run_here("h100:8")
    (code,) = blocks("python")
    exec(code, {})
    assert capsys.readouterr().out.startswith("True ")
