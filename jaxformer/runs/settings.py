"""Copies of runs with other settings of their predictors, such as those for generating text."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxformer import config, fields
from jaxformer.errors import InputError
from jaxformer.predictors.base import Generates

if TYPE_CHECKING:
    from jaxformer.runs.run import Run


def with_settings(run: "Run", field: str, settings: Mapping[str, Any], kind: type, problem: str) -> "Run":
    """Returns a copy of a run with other settings in a field of its objective. Without settings, returns the run
    itself, because a copy would create its predictor again.

    Args:
      run: the run.
      field: name of the field of the objective, such as `decoding`.
      settings: the new values, keyed by the names of the fields of this field.
      kind: class of predictors that use the settings.
      problem: end of the error message for other predictors, such as "does not generate text".

    Raises:
      InputError: If the predictor of the run is not of this kind, or there is no setting with this name.
    """
    if not settings:
        return run
    if not isinstance(run.predictor, kind):
        raise InputError(f"{next(iter(settings))}: {type(run.objective).__name__} {problem}; leave it out")
    overrides = {f"objective.{field}.{name}": value for name, value in settings.items()}
    return dataclasses.replace(run, experiment=config.override(run.experiment, overrides))


def check_samples(run: "Run", num_samples: int) -> None:
    """Raises InputError if a run cannot sample this number of different answers per request."""
    fields.at_least("num_samples", num_samples, 1)
    if num_samples == 1:
        return
    predictor = run.predictor
    if not isinstance(predictor, Generates):
        raise InputError(
            f"num_samples={num_samples}: {type(run.objective).__name__} does not generate text; expected 1"
        )
    if predictor.decoding.temperature == 0 or predictor.decoding.num_beams > 1:
        raise InputError(f"num_samples={num_samples}: all answers would be the same; set temperature=1 and num_beams=1")
