"""Base classes of predictors and answers. A predictor turns requests, such as texts, into answers of a model."""

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
from jaxformer.decoding.transcribing import Transcribing

ModelT = TypeVar("ModelT")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Answer(abc.ABC):
    """Base class of answers of a model to one request. A subclass is a frozen dataclass.

    `str` gives the text for the terminal. By default, an answer is saved as JSON and displayed in a notebook as its
    `str`. Answers that are images or sounds override `save` and `_repr_html_`.
    """

    pair_names: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Maps the name of each field that contains pairs to the JSON keys of the two parts of a pair, such as
    `{"labels": ("label", "probability")}`.
    """
    display_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that only control how the answer is printed. They are not saved."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Formats the answer for the terminal."""

    def to_json(self) -> dict[str, Any]:
        """Converts the fields to JSON values: numbers, vectors as lists, pairs as objects."""
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
        """Writes several answers to one file as a JSON list.

        Answers in other formats override this method to write a folder of files.
        """
        values = [answer.to_json() for answer in answers]
        path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(abc.ABC, Generic[ModelT]):
    """Turns requests (texts, pairs of texts or images, as returned by `Task.prepare_requests`) into answers.

    Further capabilities are classes that a predictor also inherits from: `Generates`, `Streams`, `Transcribes`,
    `ScoresContinuations`, `RanksCandidates`, `Embeds`. Call the methods in a `sharding.use` block with the mesh of the
    parameters.
    """

    model: ModelT
    """Model that answers the requests."""
    params: Any
    """Parameters of the model. May be None if only `encode` is called."""
    tokenizer: Any
    """Tokenizer of the run. None if the model does not read text."""

    @abc.abstractmethod
    def encode(self, requests: Sequence[Any]) -> dict[str, np.ndarray]:
        """Converts requests to the arguments of the model: arrays, keyed by argument name."""

    @abc.abstractmethod
    def predict(self, requests: Sequence[Any]) -> list[Answer]:
        """Answers each request.

        Raises:
          InputError: If the model cannot answer a request.
        """

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Returns lines of text that show predictions for a held-out batch. Empty by default."""
        return []


class Generates(abc.ABC):
    """Interface of predictors that generate tokens. How they choose the tokens is set by `decoding`."""

    decoding: Decoding
    """Settings for generating tokens."""


class Transcribes(Generates):
    """Interface of predictors that write down what is said in sounds."""

    transcribing: Transcribing
    """Settings of transcription."""


class Streams(Generates):
    """Interface of predictors that can yield an answer piece by piece while it is generated. Not possible with beam
    search.
    """

    @abc.abstractmethod
    def stream(self, text: str) -> Iterator[str]:
        """Yields the pieces of the answer to a text as they are generated.

        Raises:
          InputError: If `predict` would refuse the text, or `decoding` requests beam search.
        """


class ScoresContinuations(abc.ABC):
    """Interface of predictors that can score given continuations of texts."""

    @abc.abstractmethod
    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """Computes the log-probability of each continuation given its text.

        Raises:
          InputError: If a continuation has no tokens or exceeds the maximum length of the model.
        """


class RanksCandidates(abc.ABC):
    """Interface of predictors that can rank given candidates by how well they fit a request."""

    @abc.abstractmethod
    def rank(self, requests: Sequence[Any], candidates: Sequence[Any]) -> list[Answer]:
        """Ranks the candidates for each request, best first.

        Args:
          requests: requests, as returned by `Task.prepare_requests`.
          candidates: candidates, in the same form.

        Raises:
          InputError: If a request cannot be compared with a candidate.
        """


class Embeds(abc.ABC):
    """Interface of predictors with their own way of computing vectors of texts or images.

    For other predictors, `Run.embed` uses the last layer of the model.
    """

    @abc.abstractmethod
    def embed(self, requests: Sequence[Any]) -> np.ndarray:
        """Computes the vector of each request, float32 [requests, embed]."""


def _plain(value: Any, pair: tuple[str, str] | None) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple) and pair and len(value) == 2 and isinstance(value[0], str):
        return dict(zip(pair, value, strict=True))
    return [_plain(item, pair) for item in value] if isinstance(value, tuple) else value
