"""Shell completion, and what `jaxformer` prints without a command."""

import re
import shlex
import shutil
import subprocess

import pytest

from jaxformer import cli, config_files
from jaxformer.completion import COMMON, OPTIONS, SHELLS, script
from jaxformer.next_steps import next_steps

ELSEWHERE = ("train", "launch", "plan", "drill")
"""Commands whose help is not that of a parser alone."""


def completed(*words):
    """The completions that bash offers after these words."""
    quoted = " ".join(map(shlex.quote, words))
    lines = [script("bash"), f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}", "_jaxformer"]
    lines.append('printf "%s\\n" "${COMPREPLY[@]}"')
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_configs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert_mine.py").touch()
    assert completed("jaxformer", "re") == ["report", "replay"]
    assert completed("jaxformer", "report", "run", "--no") == ["--no-examples"]
    assert completed("jaxformer", "completion", "z") == ["zsh"]
    assert set(completed("jaxformer", "train", "bert_")) == {
        "bert_mine.py",
        *(name for name in config_files.named() if name.startswith("bert_")),
    }


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_can_read_their_scripts(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}: apt-get install {shell}")
    (tmp_path / "script").write_text(script(shell))
    done = subprocess.run([shell, "--no-execute", str(tmp_path / "script")], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_all_commands_and_options_are_completed(capsys):
    assert cli.main(["nothing"]) == 2
    listed = re.search(r"expected (.*)", capsys.readouterr().err)[1].split(", ")
    assert sorted(listed) == sorted(OPTIONS)
    for command in set(OPTIONS) - set(ELSEWHERE):
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        # Of the spellings of an option, one is enough.
        found = {name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]+)", capsys.readouterr().out)}
        named = {name.replace("-", "_") for name in (*OPTIONS[command], *COMMON)}
        assert named == found - {"num_return_sequences"}, command
    assert all(f"-l {name}" in script("fish") for names in OPTIONS.values() for name in names)
    assert set(SHELLS) == {"bash", "zsh", "fish"}


def test_the_next_steps_depend_on_the_folder(tmp_path):
    text = next_steps(tmp_path)
    assert "jaxformer train bert_quickstart" in text and "jaxformer new NAME" in text
    assert "Configs by name: bert_quickstart, gpt_quickstart, " in text
    (tmp_path / "mine.py").write_text("import jaxformer as jf\n\nexperiment = jf.Experiment()\n")
    (tmp_path / "other.py").write_text("print()\n")
    text = next_steps(tmp_path)
    assert "jaxformer train mine.py" in text and "other.py" not in text
    run = tmp_path / "runs" / "my run"
    (run / "checkpoints" / "100").mkdir(parents=True)
    (run / "experiment.json").touch()
    (tmp_path / "runs" / "second").mkdir()
    (tmp_path / "runs" / "second" / "experiment.json").touch()
    text = next_steps(tmp_path)
    assert "list and compare all 2 runs" in text
    assert f"jaxformer predict {shlex.quote(str(run))} INPUT" in text or "it has no checkpoint yet" in text
    (run / "checkpoints" / "200").mkdir()
    assert "jaxformer new NAME" not in text
