"""The text that `jaxformer` prints without a command: what one can do next, depending on the configs and runs in the
current directory.
"""

import shlex
from pathlib import Path

import jaxformer
from jaxformer import config_files

EXPERIMENT, CHECKPOINTS, RUNS = "experiment.json", "checkpoints", "runs"
"""Names of the files and folders by which runs are recognised, as in `runs.folder`, which would import JAX."""
FEW = 3
"""Maximum number of configs and of runs that are named."""
WIDTH = 52
"""Number of characters of the column of commands."""


def next_steps(home: Path = Path()) -> str:
    """Returns a text with commands that make sense next. `home` is the current directory."""
    runs, configs = _runs(home / RUNS), _configs(home)
    parts = [f"jaxformer {jaxformer.__version__} · pretrain, fine-tune and export Transformers in JAX", ""]
    if runs:
        parts += ["Your latest run:", *_of_run(runs[0])]
        if len(runs) > 1:
            parts.append(_line(f"jaxformer runs {RUNS}", f"list and compare all {len(runs)} runs there"))
    elif configs:
        parts.append("Your configs:")
    for config in configs:
        parts.append(_line(f"jaxformer train {shlex.quote(config)}", f"train it, or resume it, in {RUNS}/"))
    start = [_line("jaxformer train bert_quickstart", "pretrain a small BERT on two CPU cores in minutes")]
    start.append(_line("jaxformer new NAME", "write a commented config to start from"))
    if not runs:
        parts += [*([""] if configs else []), "To begin:", *start]
        parts.append(_line("jaxformer import HF_DIR RUN", "use a model of the Hugging Face hub, or a folder of one"))
    named = sorted(config_files.named(), key=lambda name: ("quickstart" not in name, name))
    names = ", ".join(named[:FEW])
    parts += ["", f"Configs by name: {names}, … · all commands: jaxformer --help"]
    return "\n".join(parts)


def _of_run(run: Path) -> list[str]:
    name = shlex.quote(str(run))
    if not any((run / CHECKPOINTS).glob("[0-9]*")):
        return [_line(f"jaxformer report {name}", "write a page about it; it has no checkpoint yet")]
    return [
        _line(f"jaxformer report {name} --open", "a page with curves, times, results and examples"),
        _line(f"jaxformer evaluate {name}", "metrics on held-out data"),
        _line(f"jaxformer predict {name} INPUT", "answers to a text, picture or sound"),
        _line(f"jaxformer explain {name} INPUT --out page.html", "why it answers so"),
        _line(f"jaxformer export {name} hf/{shlex.quote(run.name)}", "a folder that transformers loads"),
    ]


def _line(command: str, meaning: str) -> str:
    return f"  {command:{WIDTH}}  {meaning}"


def _runs(folder: Path) -> list[Path]:
    """Returns the runs in a folder, the one that was changed last first."""
    found = [path.parent for path in folder.glob(f"*/{EXPERIMENT}")]
    return sorted(found, key=lambda run: (run / CHECKPOINTS if (run / CHECKPOINTS).exists() else run).stat().st_mtime)[
        ::-1
    ]


def _configs(home: Path) -> list[str]:
    """Returns the names of the config files in a folder, which define an `experiment`."""
    found = []
    for path in sorted(home.glob("*.py")):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if "\nexperiment = " in text or "\nexperiment: " in text:
            found.append(path.name)
    return found[:FEW]
