"""The names of classes in a config.json."""

from collections.abc import Sequence
from typing import Any

from jaxformer.interop.settings import Settings


def read_labels(settings: Settings) -> tuple[str, ...]:
    """The names in the order of their numbers; `LABEL_0`, ... where there is only their count, which is 2 by default.

    Raises:
      InputError: the numbers are not 0, 1, 2, ..., or a name is none.
    """
    named = settings.get("id2label")
    if named is None:
        return tuple(f"LABEL_{number}" for number in range(settings.integer("num_labels", 2)))
    expected = list(map(str, range(len(named)))) if isinstance(named, dict) else None
    if expected is None or sorted(map(str, named)) != sorted(expected):
        raise settings.error("id2label", named, "a name for each of the numbers 0, 1, 2, ...")
    names = {str(number): name for number, name in named.items()}
    if wrong := [name for name in names.values() if not isinstance(name, str)]:
        raise settings.error("id2label", wrong[0], "names")
    return tuple(names[number] for number in expected)


def label_fields(labels: Sequence[str]) -> dict[str, Any]:
    """What a config.json says of the names."""
    named = {str(number): name for number, name in enumerate(labels)}
    return {"id2label": named, "label2id": {name: number for number, name in enumerate(labels)}}
