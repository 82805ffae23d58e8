"""Prepares the data, the tokenizer and the evaluations of a run before its first step, and checks them."""

import jax

from jaxformer import config
from jaxformer.config import Experiment
from jaxformer.data.pipeline import loader
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.progress import phase
from jaxformer.runs import data_record, writing
from jaxformer.runs.data_record import DataRecord
from jaxformer.runs.folder import Claim
from jaxformer.training.evaluation import Evaluations
from jaxformer.training.state import TOKEN_ARRAYS


def prepare_data(experiment: Experiment, claim: Claim, accept: bool) -> tuple[Experiment, Tokenizer | None, DataRecord]:
    """Checks the documents of the experiment, and whether they have changed since the run began. Trains, copies or
    loads the tokenizer.

    Args:
      experiment: the experiment.
      claim: write access to the run's folder.
      accept: whether to accept data that has changed.

    Returns:
      The experiment with the tokenizer's vocabulary size filled in, the tokenizer, and the record of the data.
    """
    now = loader.check_documents(experiment.data)  # Checks them before a tokenizer is trained on them.
    for evaluation in experiment.evaluations:
        now |= loader.check_documents(evaluation.data(experiment.data), (f"evaluations.{evaluation.name}",))
    tokenizer = writing.prepare_tokenizer(claim, experiment)
    if tokenizer is not None:
        now[data_record.TOKENIZER] = data_record.tokenizer_fingerprint(claim.tokenizer)
    record = data_record.compared(claim, now, accept)
    experiment = config.with_vocabulary(experiment, tokenizer and tokenizer.vocab_size)
    check_tokenizer(experiment, tokenizer)
    return experiment, tokenizer, record


def prepare_evaluation(
    experiment: Experiment, tokenizer: Tokenizer | None, mesh: jax.sharding.Mesh
) -> Evaluations | None:
    """Prepares all evaluations and checks the held-out data. Returns None without held-out data."""
    if not experiment.all_evaluations:
        return None
    evaluate = Evaluations(experiment, tokenizer, mesh)
    with phase("checking the held-out data"):
        evaluate.check()  # Raises its errors before the first step.
    return evaluate


def check_tokenizer(experiment: Experiment, tokenizer: Tokenizer | None) -> None:
    """Raises InputError if the model's vocabulary is smaller than the tokenizer's, or the model's maximum length is
    below the number of tokens per row.
    """
    if tokenizer is None:
        return
    size, row = tokenizer.vocab_size, experiment.data.task.row
    limits = experiment.model.token_inputs()
    experiment.objective.check_tokenizer(experiment.model, tokenizer)
    for vocab in (experiment.model.output_vocab, *(limit.vocab for limit in limits.values())):
        if vocab is not None and vocab < size:
            raise InputError(f"model.vocab={vocab} is smaller than the tokenizer's {size}: expected at least {size}")
    longest = min((limit.max_length for limit in limits.values()), default=0)
    for array, field in TOKEN_ARRAYS.items():
        # If one encoder reads both texts of a pair, they share its maximum length.
        limit = limits[array].max_length if array in limits else longest
        if array in row and limits and limit < (length := row[array].capacity):
            raise InputError(f"model.max_length={limit} is shorter than data.task.{field}={length}")
