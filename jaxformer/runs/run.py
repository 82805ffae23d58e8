"""A run's folder: what is in it, and reading a run back.

experiment.json   the experiment, whole
tokenizer/        the tokenizer
checkpoints/      a folder a step
metrics.jsonl     one JSON object a line: step, split, metrics
tensorboard/      the same for TensorBoard
damaged/          checkpoints that could not be read, out of the way
origin.json       of an imported run: what its Hugging Face folder said beside the model
"""

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxformer import config, fields, storage
from jaxformer.config import Experiment
from jaxformer.data.pipeline.loader import evaluation_batches
from jaxformer.data.sources import columns
from jaxformer.data.sources.pictures import as_list, images_in, is_single
from jaxformer.data.tokenizers import Tokenizer, load_tokenizer
from jaxformer.data.tokenizers.loading import saved
from jaxformer.decoding.scoring import Score
from jaxformer.errors import InputError
from jaxformer.models.base import Model
from jaxformer.objectives.base import Objective
from jaxformer.parallel import sharding
from jaxformer.predictors.base import Generates, Predictor, RanksCandidates, ScoresContinuations, Streams
from jaxformer.predictors.embedding import embed
from jaxformer.progress import phase
from jaxformer.runs import summaries
from jaxformer.runs.bucket import claim_bucket
from jaxformer.runs.folder import CHECKPOINTS, EXPERIMENT, TOKENIZER, Claim, claim, write_at_once
from jaxformer.runs.history import METRICS, read_history
from jaxformer.runs.parameters import no_checkpoint, read_params
from jaxformer.training.evaluation import Evaluator

MAY_CHANGE = (
    *("steps", "mesh", "init", "fork", "fork_step", "evaluation", "evaluations", "checkpoint", "log"),
    *("data.workers", "data.prefetch", "objective.decoding", "objective.scored", "objective.scores"),
)
"""Fields that may change when a run is resumed: they change no weight's meaning."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back from its folder."""

    folder: Path
    """Where it is."""
    experiment: Experiment
    """The experiment of the run."""
    tokenizer: Tokenizer | None
    """Its tokenizer; None where it reads no text."""
    step: int
    """Updates done to the parameters."""
    params: Any
    """Its parameters (their average, where the run keeps one), on `mesh`."""
    mesh: jax.sharding.Mesh
    """The run's own mesh, or one of the devices that are here."""

    @property
    def model(self) -> Model:
        """Its model."""
        return self.experiment.model

    def require_tokenizer(self) -> Tokenizer:
        """Its tokenizer.

        Raises:
          InputError: it reads no text.
        """
        if self.tokenizer is None:
            raise InputError(f"{self.folder}: the run reads no text, and has no tokenizer")
        return self.tokenizer

    @property
    def objective(self) -> Objective:
        """Its objective: the loss, the metrics and what `predict` does."""
        return self.experiment.objective

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor, which turns requests into answers; call its methods under the run's mesh.

        Raises:
          InputError: the objective has none.
        """
        found = self.objective.predictor(self.model, self.params, self.tokenizer)
        if found is None:
            raise InputError(f"{self.folder}: {type(self.objective).__name__} has no predictor; it only trains")
        return found

    @property
    def history(self) -> list[dict[str, Any]]:
        """The lines of its `metrics.jsonl`: `step`, `split` and the metrics by name; empty if it was imported."""
        return read_history(self.folder / METRICS)

    def summary(self) -> str:
        """The model by parts with their sizes, what it is trained on, and the last evaluation."""
        return summaries.summary(self)

    def __repr__(self) -> str:
        return summaries.one_line(self)

    def _repr_html_(self) -> str:
        return summaries.card(self)

    def encode(self, text: Any) -> dict[str, np.ndarray]:
        """The model's arguments for a text, or the path of an image, as `predict` lays it out; or for several.

        `run.model.apply({"params": run.params}, **run.encode("some text"))` is the model's output. A text of a BERT is
        between [CLS] and [SEP]; arrays are [b, t] with padding after the shorter texts, which `segments` marks with 0.
        """
        return self.predictor.encode(self.prepare_requests(as_list(text)))

    def embed(self, text: Any) -> np.ndarray:
        """The vector of a text, or of the image of a path, float32 [d]; of several, [n, d].

        The vectors of sentence embeddings are those that were trained. Any other model of texts gives the mean of its
        last hidden states, a classifier what its head reads, and a model of images what its head would read.

        Raises:
          InputError: the model has no such vectors, or a text is refused by `predict`.
        """
        with sharding.use(self.mesh, self.experiment.mesh):
            vectors = embed(self, as_list(text))
        return vectors[0] if is_single(text) else vectors

    def predict(self, text: Any, num_samples: int = 1) -> Any:
        """Predicts: fills the `[MASK]`s, continues the text, answers it or labels the image, as the objective says.

        Args:
          text: a text; the path of an image, the content of its file, its pixels or Pillow's picture; or a sequence.
          num_samples: answers to each text, drawn at random; more than one needs a model that draws tokens.

        Returns:
          One answer for one text, a list for several; `str` of an answer is readable text. With several samples, a list
          of them instead of each answer.

        Raises:
          InputError: a text that the model cannot answer, or several samples of a model that draws nothing.
        """
        self._check_samples(num_samples)
        requests = self.prepare_requests(as_list(text))
        requests = [one for one in requests for _ in range(num_samples)] if num_samples > 1 else requests
        with sharding.use(self.mesh, self.experiment.mesh):
            answers = self.predictor.predict(requests)
        if num_samples > 1:
            answers = [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]
        return answers[0] if is_single(text) else answers

    def rank(self, request: Any, candidates: Any) -> Any:
        """Ranks candidates by how well they fit a request: texts for an image, or images for a text.

        Args:
          request: as `text` of `predict`, or a sequence of them.
          candidates: texts, or images. The path of a folder stands for the images in it.

        Returns:
          One answer for one request, a list for several.

        Raises:
          InputError: the run's model ranks no candidates, or cannot compare these.
        """
        predictor = self.predictor
        if not isinstance(predictor, RanksCandidates):
            raise InputError(f"{self.folder}: {type(self.objective).__name__} ranks no candidates; leave them out")
        requests = self.prepare_requests(as_list(request))
        given = self.prepare_requests([one for part in as_list(candidates) for one in images_in(part)])
        with sharding.use(self.mesh, self.experiment.mesh):
            answers = predictor.rank(requests, given)
        return answers[0] if is_single(request) else answers

    def prepare_requests(self, inputs: list) -> list:
        """Texts or images as the objective's `predict` takes them.

        Raises:
          InputError: a text is not Unicode, as when a command line has bytes that are not UTF-8.
        """
        if self.tokenizer is not None:
            for number, one in enumerate(inputs, 1):
                if isinstance(one, str):
                    columns.check_text(one, f"text {number}")
        return list(self.experiment.data.task.prepare_requests(inputs))

    def _check_samples(self, num_samples: int) -> None:
        fields.at_least("num_samples", num_samples, 1)
        if num_samples > 1:
            predictor = self.predictor
            if not isinstance(predictor, Generates):
                raise InputError(
                    f"num_samples={num_samples}: {type(self.objective).__name__} does not generate text; expected 1"
                )
            if predictor.decoding.temperature == 0 or predictor.decoding.num_beams > 1:
                raise InputError(f"num_samples={num_samples}: all would be alike; set temperature=1 and num_beams=1")

    def stream(self, text: str) -> Iterator[str]:
        """Streams the answer to a text as pieces of a string, as the model generates them if it can."""
        predictor = self.predictor
        if not isinstance(predictor, Streams) or not self.streams:
            yield str(self.predict(text))
            return
        self.prepare_requests([text])
        pieces = predictor.stream(text)
        while True:
            with sharding.use(self.mesh, self.experiment.mesh):  # Not while the caller has its turn.
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """How likely the model, one that writes, finds each continuation of its text."""
        predictor = self.predictor
        if not isinstance(predictor, ScoresContinuations):
            raise InputError(
                f"{self.folder}: {type(self.objective).__name__} does not generate text; expected a model that does"
            )
        with sharding.use(self.mesh, self.experiment.mesh):
            return predictor.log_likelihoods(texts, continuations)

    @property
    def streams(self) -> bool:
        """Whether the model writes in pieces: a language model does, but not by beam search."""
        return isinstance(self.predictor, Streams) and self.predictor.decoding.num_beams == 1

    def with_decoding(self, **settings: Any) -> "Run":
        """The run with other settings of `Decoding`: `run.with_decoding(temperature=0, max_new_tokens=200)`.

        Raises:
          InputError: no such setting, or the run's model does not write.
        """
        if settings and not isinstance(self.predictor, Generates):
            raise InputError(
                f"{next(iter(settings))}: {type(self.objective).__name__} does not generate text; leave it out"
            )
        overrides = {f"objective.decoding.{name}": value for name, value in settings.items()}
        return dataclasses.replace(self, experiment=config.override(self.experiment, overrides))

    @phase("trying held-out examples")
    def demonstrate(self) -> list[str]:
        """Lines that show predictions for the first held-out examples; none in several processes."""
        if jax.process_count() > 1:
            return []  # Only the first process speaks, and a mesh of all of them does not compute for it alone.
        data, seed = self.experiment.data, self.experiment.seed
        if data.validation is None:
            return []
        batch = next(evaluation_batches(data.validation, data, self.tokenizer, seed, range(data.batch)))
        with sharding.use(self.mesh, self.experiment.mesh):
            predictor = self.objective.predictor(self.model, self.params, self.tokenizer)
            return [] if predictor is None else predictor.demonstrate(batch)

    def evaluate(self, name: str | None = None) -> dict[str, float]:
        """Metrics on held-out data.

        Args:
          name: one of the experiment's evaluations; None: that on `data.validation`, or else the first one.

        Raises:
          InputError: the experiment has no held-out data, or no evaluation of this name.
        """
        known = self.experiment.all_evaluations
        if not known:
            raise InputError(f"{self.folder}: data.validation is None: the run has no held-out data to evaluate on")
        name = next(iter(known)) if name is None else name
        if name not in known:
            raise InputError(f"{name}: no such evaluation; expected {', '.join(known)}")
        return Evaluator(self.experiment, self.tokenizer, self.mesh, known[name])(self.params) or {}


@dataclasses.dataclass(frozen=True)
class RunTokenizer:
    """The tokenizer of a run, for one that begins with its parameters."""

    run: str
    """The run's folder."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """The tokenizer kept in `folder`; the run's, saved there, if there is none yet."""
        if not saved(folder):
            home = storage.path(self.run)
            read_experiment(home)  # Raises InputError if the folder is not a run's.
            load_tokenizer(str(home / TOKENIZER)).save(folder)
        return load_tokenizer(folder)


def open_run(
    folder: str | os.PathLike, in_memory: bool = True, step: int | None = None, known: Experiment | None = None
) -> Run:
    """Reads a run: its latest checkpoint (the best, with `checkpoint.best`) and all that is needed to use it.

    A damaged checkpoint is named in a warning, and the newest good one (the best good one) is read instead.

    Args:
      folder: the run's.
      in_memory: whether to read the parameters now. Else they are `StoredArray`s, which `np.asarray` reads one by one
        and `loaded` all; those of LoRA, which are computed, are read in any case.
      step: which checkpoint to read, and no other.
      known: an experiment whose classes need not be allowed.

    Raises:
      InputError: the folder is not a run's, has no checkpoint yet or none of that step, or they are damaged; or its
        experiment names a class that is neither jaxformer's nor of a package that `allow` has been given.
    """
    folder = storage.path(folder)
    experiment = read_experiment(folder, known)
    if not (folder / CHECKPOINTS).is_dir():
        raise no_checkpoint(folder, experiment.checkpoint)
    mesh = sharding.make_mesh(_mesh_for(experiment, len(jax.devices())))
    step, params = read_params(folder, experiment, mesh, in_memory, step)
    tokenizer = None if experiment.tokenizer is None else load_tokenizer(str(folder / TOKENIZER))
    return Run(folder, experiment, tokenizer, step, params, mesh)


def read_experiment(folder: Path, known: Experiment | None = None) -> Experiment:
    """The experiment of a run, whose classes are allowed, or those of `known`.

    Raises:
      InputError: the folder is not a run's, or its experiment names other classes, or cannot be read.
    """
    if storage.is_remote(folder):
        storage.check_bucket(folder)
    try:
        text = storage.read_bytes(str(folder / EXPERIMENT)).decode()
    except OSError as error:
        reason = f"{EXPERIMENT}: {error.strerror or 'no such object'}" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: not a run's folder: {reason}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{folder / EXPERIMENT}: not UTF-8 text, at byte {error.start}") from error
    try:
        return config.from_json(text, folder, known)
    except InputError as error:
        raise InputError(f"{folder / EXPERIMENT}: {error}") from error


@contextlib.contextmanager
def writer(folder: Path, experiment: Experiment) -> Iterator[Claim]:
    """The right to write a run of an experiment to a folder; see `claim`.

    Raises:
      InputError: as `claim`; or the folder has another experiment's run, or the experiment has no form in JSON.
    """
    config.to_json(experiment)
    claimed_by = claim_bucket if storage.is_remote(folder) else claim
    with claimed_by(folder, functools.partial(_check_belongs, folder, experiment)) as claimed:
        yield claimed


def prepare_tokenizer(folder: Claim, experiment: Experiment) -> Tokenizer | None:
    """The run's tokenizer. A new run's is made by the first process, or comes from the run that it forks.

    Raises:
      InputError: a run that has begun has lost its tokenizer: one that is trained again may have other ids.
    """
    if experiment.tokenizer is None:
        return None
    if jax.process_index() == 0:
        if folder.is_run and not saved(str(folder.tokenizer)):
            raise InputError(f"--workdir {folder.folder}: the run's {TOKENIZER}/ is missing or empty; put it back")
        if experiment.fork is not None and not folder.is_run:
            forked = storage.path(experiment.fork)
            read_experiment(forked, known=experiment)  # Raises InputError if the folder is not a run's.
            load_tokenizer(str(forked / TOKENIZER)).save(str(folder.tokenizer))
        experiment.tokenizer.build(experiment.data.train.open, str(folder.tokenizer))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
    return load_tokenizer(str(folder.tokenizer))


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Writes the experiment of a run; at once or not at all."""
    write_at_once(folder / EXPERIMENT, config.to_json(experiment))


def _check_belongs(folder: Path, experiment: Experiment) -> None:
    """Raises InputError where a folder holds another experiment's run."""
    if not (folder / EXPERIMENT).exists():
        return
    stored = read_experiment(folder, known=experiment)
    sizes = {f"model.{path}": value for path, _, value in fields.walk(stored.model)}
    known = {path: sizes[path] for path in config.open_vocabularies(experiment) if path in sizes}
    changed = [
        difference
        for difference in config.differences(stored, config.override(experiment, known))
        if not difference.within(*MAY_CHANGE)
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise InputError(f"--workdir {folder}: another experiment's run: {changed[0]}{more}; use another folder")


def _mesh_for(experiment: Experiment, devices: int) -> sharding.Mesh:
    """The run's own mesh if the devices here can hold it, or as many copies as divide the batch."""
    with contextlib.suppress(InputError):
        sizes = experiment.mesh.sizes(devices)
        if experiment.data.batch % math.prod(sizes[name] for name in sharding.RULES["batch"]) == 0:
            return experiment.mesh
    return sharding.Mesh(data=math.gcd(experiment.data.batch, devices))
