"""Reads and writes the class names in a config.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader

SINGLE, MANY, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
"""Values of the config field `problem_type`: one label per example, any number of labels per example, and a number to
predict.
"""


def read_labels(reader: ConfigReader) -> tuple[str, ...]:
    """Reads the class names in a config, in the order of their indices.

    If `num_labels` differs from the number of names, the names are `LABEL_0`, `LABEL_1`, ..., as in the transformers
    library. Defaults to two unnamed labels.

    Raises:
      InputError: If the indices are not 0, 1, 2, ..., or a name is not a string.
    """
    named = reader.get("id2label")
    if named is None:
        return _unnamed(reader.integer("num_labels", 2))
    expected = list(map(str, range(len(named)))) if isinstance(named, dict) else None
    if expected is None or sorted(map(str, named)) != sorted(expected):
        raise reader.error("id2label", named, "a name for each of the numbers 0, 1, 2, ...")
    count = reader.integer("num_labels", len(named) or None)
    if count != len(named):
        reader.notes.append(
            f"num_labels={count} differs from the {len(named)} names of id2label: labels are LABEL_0 to "
            f"LABEL_{count - 1}, as in transformers"
        )
        return _unnamed(count)
    names = {str(number): name for number, name in named.items()}
    if wrong := [name for name in names.values() if not isinstance(name, str)]:
        raise reader.error("id2label", wrong[0], "names")
    return tuple(names[number] for number in expected)


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """Converts class names to the config fields `id2label` and `label2id`."""
    named = {str(number): name for number, name in enumerate(labels)}
    return {"id2label": named, "label2id": {name: number for number, name in enumerate(labels)}}


def read_problem_type(said: Mapping[str, Any], labels: Sequence[str], where: str) -> str:
    """Reads the problem type of a classifier: single-label, multi-label or regression.

    If the config has no `problem_type`, several labels mean single-label classification, and one label means
    regression, as in the losses of the transformers library.

    Raises:
      InputError: If `problem_type` is unknown, or does not match the number of labels.
    """
    found = said.get("problem_type") or (SINGLE if len(labels) > 1 else REGRESSION)
    if found not in (SINGLE, MANY, REGRESSION):
        raise InputError(f"{where}: problem_type={found!r}: expected one of {SINGLE}, {MANY}, {REGRESSION}")
    if found != MANY and (found == REGRESSION) != (len(labels) == 1):
        expected = "one label" if found == REGRESSION else "several labels"
        raise InputError(
            f"{where}: problem_type={found!r} with {len(labels)} labels is not supported; expected {expected}"
        )
    return found


def _unnamed(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{number}" for number in range(count))
