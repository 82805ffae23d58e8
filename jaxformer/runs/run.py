"""Opens runs from their folders. A run's folder contains:

experiment.json   the whole experiment
tokenizer/        the tokenizer
checkpoints/      one folder per step
data.json         fingerprints of the data, and the changes of the data that the user has accepted
metrics.jsonl     one JSON object per line: step, split, metrics
sessions.jsonl    one JSON object per line: what was trained on, and what the time was spent on
tensorboard/      the same metrics for TensorBoard
damaged/          corrupted checkpoints
origin.json       only in an imported run: metadata of its Hugging Face folder
"""

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxformer import storage
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
from jaxformer.predictors.base import (
    Draws,
    Generates,
    Predictor,
    RanksCandidates,
    Replies,
    ScoresContinuations,
    Searches,
    Speaks,
    Streams,
    Transcribes,
)
from jaxformer.predictors.embedding import embed
from jaxformer.progress import phase
from jaxformer.runs import summaries
from jaxformer.runs.files import read_tokenizer
from jaxformer.runs.folder import CHECKPOINTS
from jaxformer.runs.history import METRICS, read_history
from jaxformer.runs.parameters import mesh_for, no_checkpoint, read_params, read_reference
from jaxformer.runs.settings import check_samples, with_settings
from jaxformer.runs.writing import read_experiment
from jaxformer.training.evaluation import Evaluator


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained or imported run: experiment, tokenizer and parameters, for predicting, evaluating and exporting."""

    folder: Path
    """Path of the run's folder."""
    experiment: Experiment
    """Experiment of the run, as stored in its `experiment.json`."""
    tokenizer: Tokenizer | None
    """Tokenizer of the run. None if its data does not contain text."""
    step: int
    """Number of training steps after which the parameters were saved."""
    params: Any
    """Parameters of the model on `mesh`. If the run computes a moving average of the parameters, these are the
    average.
    """
    mesh: jax.sharding.Mesh
    """Device mesh of the parameters: the mesh of the experiment, or a data-parallel mesh if that does not fit the
    available devices.
    """
    stopped: str | None = None
    """Name of the signal that stopped the training that returned this run, such as SIGTERM. `fit` then continues it.
    None if the training has ended, or the run was opened.
    """

    vocoder: tuple[Model, Any] | None = None
    """Vocoder with its parameters, which converts spectrograms to sounds if the run's model speaks. If None,
    Griffin–Lim is used.
    """

    @property
    def model(self) -> Model:
        """Model of the run, without parameters."""
        return self.experiment.model

    def require_tokenizer(self) -> Tokenizer:
        """Returns the tokenizer. Raises InputError if the run does not use text."""
        if self.tokenizer is None:
            raise InputError(f"{self.folder}: the run reads no text, and has no tokenizer")
        return self.tokenizer

    @property
    def objective(self) -> Objective:
        """Objective of the run, which defines the loss, the metrics and the behaviour of `predict`."""
        return self.experiment.objective

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The object that answers requests with this model (see `predict`), created by the run's objective. Call its
        methods in a `sharding.use` block with the run's mesh. Raises InputError if the objective has none.
        """
        found = self.objective.predictor(self.model, self.params, self.tokenizer)
        if found is None:
            raise InputError(f"{self.folder}: {type(self.objective).__name__} has no predictor; it can only be trained")
        if self.vocoder is not None and isinstance(found, Speaks):
            return found.with_vocoder(*self.vocoder)
        return _with_language_model(found) if isinstance(found, Searches) else found

    @property
    def history(self) -> list[dict[str, Any]]:
        """Lines of `metrics.jsonl`, as dicts with `step`, `split` and the value of each metric. Empty if the run was
        imported.
        """
        lines, damaged = read_history(self.folder / METRICS)
        for problem in damaged:
            warnings.warn(f"{problem}, and is left out", stacklevel=2)
        return lines

    def summary(self) -> str:
        """Returns a summary: the parts of the model with their sizes, the training data, and the last evaluation."""
        return summaries.summary(self)

    def __repr__(self) -> str:
        return summaries.one_line(self)

    def _repr_html_(self) -> str:
        return summaries.card(self)

    def encode(self, text: Any) -> dict[str, np.ndarray]:
        """Converts a text, the path of an image, or a sequence of them to the arguments of the model, as `predict`
        does.

        `run.model.apply({"params": run.params}, **run.encode("some text"))` is the model's output. Texts become arrays
        [batch, length], padded at the end, where `segments` is 0. For BERT they include [CLS] and [SEP].
        """
        return self.predictor.encode(self.prepare_requests(as_list(text)))

    def embed(self, text: Any) -> np.ndarray:
        """Computes the vector of a text, or of the image at a path, float32 [embed]. For a sequence of texts or paths,
        [texts, embed].

        For a sentence embedding model, this is the vector that the model was trained to compute. For a classifier or an
        image model, it is the input of the head. For any other text model, it is the mean of the last hidden states.

        Raises:
          InputError: If the model has no such vectors, or `predict` would refuse the text.
        """
        with sharding.use(self.mesh, self.experiment.mesh):
            vectors = embed(self, as_list(text))
        return vectors[0] if is_single(text) else vectors

    def predict(self, text: Any, num_samples: int = 1) -> Any:
        """Fills masks in a text, continues or answers it, or labels an image, depending on the objective.

        Args:
          text: a text; an image as a path, file content, pixels or Pillow image; or a sequence of these.
          num_samples: number of sampled answers per text. More than one needs a model that samples tokens.

        Returns:
          One answer for one text, or a list for a sequence. `str` of an answer is readable text. With several samples,
          each answer is a list.

        Raises:
          InputError: If the model cannot answer a text, or `num_samples` > 1 and the model does not sample.
        """
        check_samples(self, num_samples)
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
          request: one request or a sequence, in the forms that `predict` accepts.
          candidates: texts or images. The path of a folder is replaced by the images in the folder.

        Returns:
          One answer for one request, or a list of answers for a sequence. An answer contains all candidates, best
          first.

        Raises:
          InputError: If the run's model cannot rank candidates, or a candidate is of the wrong kind, such as a text for
            a text.
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
        """Converts texts or images to requests, the form in which the methods of `predictor` take them.

        Raises:
          InputError: If a text is not valid Unicode, for example from a command line with bytes that are not UTF-8.
        """
        if self.tokenizer is not None:
            for number, one in enumerate(inputs, 1):
                if isinstance(one, str):
                    columns.check_text(one, f"text {number}")
        return list(self.experiment.data.task.prepare_requests(inputs))

    def stream(self, text: str) -> Iterator[str]:
        """Generates the answer to a text, and yields it in pieces as they are generated. Yields the whole answer at
        once if `streams` is False.
        """
        predictor = self.predictor
        if not isinstance(predictor, Streams) or not self.streams:
            yield str(self.predict(text))
            return
        self.prepare_requests([text])
        yield from self.pieces(predictor.stream(text))

    def reply(self, text: str) -> Iterator[str]:
        """Answers a text with a text, such as the answer to a question, a label or a translation. Yields it in pieces
        as they are generated, without the text itself.

        Raises:
          InputError: If the run's model does not answer texts with texts.
        """
        predictor = self.predictor
        if not isinstance(predictor, Replies):
            raise InputError(f"{self.folder}: {type(self.objective).__name__} does not answer texts with texts")
        (request,) = self.prepare_requests([text])
        yield from self.pieces(predictor.reply(request))

    def pieces(self, pieces: Iterator[str]) -> Iterator[str]:
        """Yields the pieces of an answer of the predictor, each computed on the mesh of the run."""
        while True:
            with sharding.use(self.mesh, self.experiment.mesh):  # Not while the caller's code runs.
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """Computes the log-probability of each continuation after its text. Raises InputError if the run's model does
        not generate text.
        """
        predictor = self.predictor
        if not isinstance(predictor, ScoresContinuations):
            raise InputError(
                f"{self.folder}: {type(self.objective).__name__} does not generate text; expected a model that does"
            )
        with sharding.use(self.mesh, self.experiment.mesh):
            return predictor.log_likelihoods(texts, continuations)

    @property
    def streams(self) -> bool:
        """Whether `stream` yields an answer in pieces while it is generated. True for a language model without beam
        search.
        """
        return isinstance(self.predictor, Streams) and self.predictor.decoding.num_beams == 1

    def with_decoding(self, **settings: Any) -> "Run":
        """Returns a copy of the run with other `Decoding` settings: `run.with_decoding(temperature=0,
        max_new_tokens=200)`. For a recognizer of speech with CTC, they are `CtcSearch` settings, and for a flow model
        of images `Sampling` settings.

        Raises:
          InputError: If a setting does not exist, or the run's model does not generate text.
        """
        if settings and isinstance(self.predictor, Searches):
            return with_settings(self, "search", settings, Searches, "")
        if settings and isinstance(self.predictor, Draws):
            return with_settings(self, "sampling", settings, Draws, "")
        return with_settings(self, "decoding", settings, Generates, "does not generate text")

    def with_transcribing(self, **settings: Any) -> "Run":
        """Returns a copy of the run with other `Transcribing` settings: `run.with_transcribing(word_times=True)`.

        Raises:
          InputError: If a setting does not exist, or the run's model does not transcribe sounds.
        """
        return with_settings(self, "transcribing", settings, Transcribes, "transcribes no sounds")

    def with_speaking(self, **settings: Any) -> "Run":
        """Returns a copy of the run with other `Speaking` settings: `run.with_speaking(speed=1.2)`.

        Raises:
          InputError: If a setting does not exist, or the run's model does not speak.
        """
        return with_settings(self, "speaking", settings, Speaks, "does not speak")

    def with_vocoder(self, model: Model, params: Any) -> "Run":
        """Returns a copy of the run that converts spectrograms to sounds with a vocoder:
        `run.with_vocoder(*jf.import_hf("microsoft/speecht5_hifigan"))`.

        Raises:
          InputError: If the run's model does not speak, or `model` is not a vocoder.
        """
        if not isinstance(self.predictor, Speaks):
            raise InputError(f"vocoder: {type(self.objective).__name__} does not speak; leave it out")
        found = dataclasses.replace(self, vocoder=(model, params))
        _ = found.predictor  # Raises an error if the model is not a vocoder.
        return found

    @phase("trying held-out examples")
    def demonstrate(self) -> list[str]:
        """Computes predictions for the first held-out examples, and formats them as lines of text. Empty if there is no
        held-out data, if the run cannot predict, or if there are several processes.
        """
        if jax.process_count() > 1:
            return []  # Only process 0 prints, and it cannot compute alone on a mesh of all processes.
        data, seed = self.experiment.data, self.experiment.seed
        if data.validation is None:
            return []
        batch = next(evaluation_batches(data.validation, data, self.tokenizer, seed, range(data.batch)))
        with sharding.use(self.mesh, self.experiment.mesh):
            predictor = self.objective.predictor(self.model, self.params, self.tokenizer)
            return [] if predictor is None else predictor.demonstrate(batch)

    def evaluate(self, name: str | None = None) -> dict[str, float]:
        """Computes the metrics on held-out data. Returns a dict that maps metric names to values.

        Args:
          name: name of an evaluation of the experiment. Defaults to the evaluation on `data.validation`, or to the
            first evaluation if there is none.

        Raises:
          InputError: If the experiment has no held-out data, or no evaluation with this name.
        """
        known = self.experiment.all_evaluations
        if not known:
            raise InputError(f"{self.folder}: data.validation is None: the run has no held-out data to evaluate on")
        name = next(iter(known)) if name is None else name
        if name not in known:
            raise InputError(f"{name}: no such evaluation; expected {', '.join(known)}")
        reference = None
        if self.objective.needs_reference:
            reference = read_reference(self.folder, self.experiment, self.mesh, self.step)
        evaluator = Evaluator(self.experiment, self.tokenizer, self.mesh, known[name])
        return evaluator(self.params, reference=reference) or {}


def _with_language_model(predictor: Searches) -> Any:
    """Returns a copy of the predictor with the run that it names as its language model, or the predictor itself if it
    names none, or a file.
    """
    path = predictor.search.language_model
    if not path or not storage.path(os.path.expanduser(path)).is_dir():
        return predictor
    run = open_run(os.path.expanduser(path))
    scorer = run.predictor
    if not isinstance(scorer, ScoresContinuations):
        raise InputError(
            f"objective.search.language_model={path}: {type(run.objective).__name__} does not score words; expected a "
            "run of a Gpt"
        )
    return predictor.with_language_model(scorer)


@dataclasses.dataclass(frozen=True)
class RunTokenizer:
    """Config of a tokenizer that is copied from another run. Used by runs that start from the parameters of that
    run.
    """

    run: str
    """Path of the other run's folder."""

    def build(self, open_source: Callable[[], Sequence], folder: str) -> Tokenizer:
        """Loads the tokenizer from `folder`. If the folder does not contain one yet, first copies the other run's
        tokenizer there. `open_source` is not used.
        """
        if not saved(folder):
            home = storage.path(self.run)
            read_experiment(home)  # Raises InputError if the folder is not a run's.
            read_tokenizer(home).save(folder)
        return load_tokenizer(folder)


def open_run(
    folder: str | os.PathLike, in_memory: bool = True, step: int | None = None, known: Experiment | None = None
) -> Run:
    """Opens a run with the parameters of its latest checkpoint, or of its best one if the config sets
    `checkpoint.best`.

    If this checkpoint is corrupted, prints a warning and reads the next one.

    Args:
      folder: the run's folder.
      in_memory: whether to read the parameters now. If False, they are `StoredArray`s, which `np.asarray` or `loaded`
        reads. With LoRA they are always read, because the adapters are merged.
      step: step of the checkpoint to read. If None, the latest or the best one.
      known: experiment whose classes are accepted even if their packages are not allowed.

    Raises:
      InputError: If the folder does not contain a run or a readable checkpoint, or if the experiment contains a class
        that is neither part of jaxformer nor of a package passed to `allow`.
    """
    folder = storage.path(folder)
    experiment = read_experiment(folder, known)
    if not (folder / CHECKPOINTS).is_dir():
        raise no_checkpoint(folder, experiment.checkpoint)
    mesh = sharding.make_mesh(mesh_for(experiment, len(jax.devices())))
    step, params = read_params(folder, experiment, mesh, in_memory, step)
    tokenizer = None if experiment.tokenizer is None else read_tokenizer(folder)
    return Run(folder, experiment, tokenizer, step, params, mesh)
