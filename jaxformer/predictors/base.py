"""The contract of predictors, which turn requests into answers, and of answers."""

import abc
import dataclasses
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from jaxformer.decoding.scoring import Score
from jaxformer.decoding.settings import Decoding

ModelT = TypeVar("ModelT")


class Answer(abc.ABC):
    """The answer of a model to one request. A subclass is a frozen dataclass.

    `str` is for the terminal. By default an answer is saved as JSON, and shown in a notebook as its `str`; an answer
    that is a picture or a sound overrides `save` and `_repr_html_`.
    """

    pair_names: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """In JSON, the names of both parts of each pair in a field: `{"labels": ("label", "probability")}`."""
    display_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that only say how the answer is printed."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """The answer for the terminal."""

    def to_json(self) -> dict[str, Any]:
        """The fields as values that JSON has: numbers, vectors as lists, pairs as objects."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: _plain(value, self.pair_names.get(name))
            for name, value in values.items()
            if name not in self.display_fields
        }

    def save(self, path: Path) -> None:
        """Writes the answer to a file."""
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def save_all(cls, answers: Sequence["Answer"], path: Path) -> None:
        """Writes several answers: by default to one JSON file, or to a folder of files if they are not JSON."""
        values = [answer.to_json() for answer in answers]
        path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(abc.ABC, Generic[ModelT]):
    """Turns requests into answers: a text, a pair of texts, an image, as `Task.prepare_requests` returns them.

    What else it can do is a class that it also inherits from: `Generates`, `Streams`, `ScoresContinuations`,
    `RanksCandidates`, `Embeds`.
    Its methods are called under the mesh of the parameters.
    """

    model: ModelT
    """The model."""
    params: Any
    """Its parameters; None only to `encode`."""
    tokenizer: Any
    """The run's tokenizer; None where it reads no text."""

    @abc.abstractmethod
    def encode(self, requests: Sequence[Any]) -> dict[str, np.ndarray]:
        """The arguments of the model for the requests."""

    @abc.abstractmethod
    def predict(self, requests: Sequence[Any]) -> list[Answer]:
        """An answer to each request.

        Raises:
          InputError: the model cannot answer a request.
        """

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Lines that show predictions for a held-out batch; by default none."""
        return []


class Generates(abc.ABC):
    """A predictor that generates tokens."""

    decoding: Decoding
    """How it chooses them."""


class Streams(Generates):
    """A predictor that gives its answer piece by piece, but not by beam search."""

    @abc.abstractmethod
    def stream(self, text: str) -> Iterator[str]:
        """The pieces of the answer to a text as they are generated.

        Raises:
          InputError: as `predict`, or for a beam search.
        """


class ScoresContinuations(abc.ABC):
    """A predictor that knows how likely given texts are."""

    @abc.abstractmethod
    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """The log-probability of each continuation of its text.

        Raises:
          InputError: a continuation without a token, or longer than the model's positions.
        """


class RanksCandidates(abc.ABC):
    """A predictor that says how well given candidates fit a request."""

    @abc.abstractmethod
    def rank(self, requests: Sequence[Any], candidates: Sequence[Any]) -> list[Answer]:
        """The candidates for each request, the best first; both as `Task.prepare_requests` returns them.

        Raises:
          InputError: a request cannot be compared with a candidate.
        """


class Embeds(abc.ABC):
    """A predictor with vectors of its own, where others take the features of the model's last layer."""

    @abc.abstractmethod
    def embed(self, requests: Sequence[Any]) -> np.ndarray:
        """The vectors of the requests, float32 [n, d]."""


def _plain(value: Any, pair: tuple[str, str] | None) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple) and pair and len(value) == 2 and isinstance(value[0], str):
        return dict(zip(pair, value, strict=True))
    return [_plain(item, pair) for item in value] if isinstance(value, tuple) else value
