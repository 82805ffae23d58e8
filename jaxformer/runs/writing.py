"""Claims the folder of a run and writes its experiment and tokenizer."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxformer import config, digests, fields, storage
from jaxformer.config import Experiment
from jaxformer.data.messages import tolerating
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.loading import saved
from jaxformer.differences import differences
from jaxformer.errors import InputError
from jaxformer.runs.bucket import claim_bucket
from jaxformer.runs.files import check_tokenizer_files, experiment_text, read_tokenizer, seal_tokenizer
from jaxformer.runs.folder import EXPERIMENT, TOKENIZER, Claim, claim, write_at_once

MAY_CHANGE = (
    *("steps", "mesh", "init", "fork", "fork_step", "evaluation", "evaluations", "checkpoint", "log"),
    *("data.workers", "data.prefetch", "data.timeout", "data.skip_bad_records"),
    *("objective.decoding", "objective.scored", "objective.scores"),
    *("objective.sampling", "objective.guidance", "objective.pictures"),
    "optimizer.offload",
)
"""Fields of the experiment that may change when a run is resumed, because the parameters trained so far remain
valid.
"""


def read_experiment(folder: Path, known: Experiment | None = None) -> Experiment:
    """Reads the experiment of a run. Its classes must be allowed (see `classes.allow`), or be classes of the experiment
    `known`.

    Raises:
      InputError: If the folder does not contain a run, or its experiment contains other classes or cannot be read.
    """
    text = experiment_text(folder)
    try:
        return config.from_json(text, folder, known)
    except InputError as error:
        raise InputError(f"{folder / EXPERIMENT}: {error}") from error


@contextlib.contextmanager
def writer(folder: Path, experiment: Experiment) -> Iterator[Claim]:
    """Context manager that claims write access to a folder for a run of an experiment. See `claim`.

    Raises:
      InputError: Under the same conditions as `claim`, or if the folder contains a run of another experiment, or the
        experiment cannot be represented in JSON.
    """
    config.to_json(experiment)
    claimed_by = claim_bucket if storage.is_remote(folder) else claim
    with claimed_by(folder, functools.partial(_check_belongs, folder, experiment)) as claimed:
        yield claimed


def prepare_tokenizer(folder: Claim, experiment: Experiment) -> Tokenizer | None:
    """Returns the run's tokenizer. For a new run, process 0 first trains the tokenizer or copies it from another run.
    Raises InputError if an existing run has no tokenizer.
    """
    if experiment.tokenizer is None:
        return None
    if jax.process_index() == 0:
        if folder.is_run and not saved(str(folder.tokenizer)):
            raise InputError(f"--workdir {folder.folder}: the run's {TOKENIZER}/ is missing or empty; put it back")
        check_tokenizer_files(folder.tokenizer)
        if experiment.fork is not None and not folder.is_run:
            forked = storage.path(experiment.fork)
            read_experiment(forked, known=experiment)  # Raises InputError if the folder is not a run's.
            read_tokenizer(forked).save(str(folder.tokenizer))
        with tolerating(experiment.data.skip_bad_records):
            experiment.tokenizer.build(experiment.data.train.open, str(folder.tokenizer))
        if not folder.is_run:
            seal_tokenizer(folder.tokenizer)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("tokenizer")
    return read_tokenizer(folder.tokenizer.parent)


def write_experiment(folder: Path, experiment: Experiment) -> None:
    """Writes the experiment of a run atomically, with its digest."""
    write_at_once(folder / EXPERIMENT, digests.seal(config.to_json(experiment)))


def _check_belongs(folder: Path, experiment: Experiment) -> None:
    """Raises InputError if the folder contains a run whose experiment differs from `experiment` in other fields than
    `MAY_CHANGE`.
    """
    if not (folder / EXPERIMENT).exists():
        return
    stored = read_experiment(folder, known=experiment)
    sizes = {f"model.{path}": value for path, _, value in fields.walk(stored.model)}
    known = {path: sizes[path] for path in config.unset_vocabulary_fields(experiment) if path in sizes}
    changed = [
        difference
        for difference in differences(stored, config.override(experiment, known))
        if not difference.within(*MAY_CHANGE)
    ]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise InputError(f"--workdir {folder}: another experiment's run: {changed[0]}{more}; use another folder")
