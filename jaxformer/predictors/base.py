"""Base classes of predictors and their answers. A predictor computes the answers of a model to requests, such as texts
to classify.
"""

import abc
import dataclasses
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from jaxformer import html_page
from jaxformer.data.tasks.turns import Turn, TurnTemplate
from jaxformer.decoding.ctc import CtcSearch
from jaxformer.decoding.flow import Sampling
from jaxformer.decoding.scoring import Score
from jaxformer.decoding.settings import Decoding
from jaxformer.decoding.speaking import Speaking
from jaxformer.decoding.transcribing import Transcribing

ModelT = TypeVar("ModelT")
PAGES = (".html", ".htm")
"""File name extensions of HTML pages. An answer that is saved to such a file is shown as in a notebook."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Answer(abc.ABC):
    """Base class of answers. An answer is the result of a model for one request, such as a text and its labels. A
    subclass is a frozen dataclass.

    `str(answer)` is the text that is printed in a terminal. By default, an answer is saved as JSON, and a notebook
    displays the same text. Answers that are images or audio override `save` and `_repr_html_`.
    """

    pair_names: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Maps the name of each field whose value is a sequence of pairs to the two keys under which the parts of a pair
    are written to JSON, such as `{"labels": ("label", "probability")}`.
    """
    display_fields: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that are only used to display the answer. They are not saved to JSON."""

    @abc.abstractmethod
    def __str__(self) -> str:
        """Formats the answer for the terminal."""

    def to_json(self) -> dict[str, Any]:
        """Converts the answer to a dict that can be written as JSON, keyed by field name. Arrays become lists, and
        pairs become objects with the keys in `pair_names`.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: _plain(value, self.pair_names.get(name))
            for name, value in values.items()
            if name not in self.display_fields
        }

    def save(self, path: Path) -> None:
        """Writes the answer to a file: an HTML page if its extension is in `PAGES`, otherwise JSON."""
        if path.suffix.lower() in PAGES:
            path.write_text(answers_page([self]), encoding="utf-8")
        else:
            path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def save_all(cls, answers: Sequence["Answer"], path: Path) -> None:
        """Writes several answers to one file: an HTML page if its extension is in `PAGES`, otherwise a JSON list.

        Subclasses with other formats, such as images, override this method to write a folder of files.
        """
        if path.suffix.lower() in PAGES:
            path.write_text(answers_page(answers), encoding="utf-8")
            return
        values = [answer.to_json() for answer in answers]
        path.write_text(json.dumps(values, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor(abc.ABC, Generic[ModelT]):
    """Computes answers to requests: texts, pairs of texts or images, as returned by `Task.prepare_requests`.

    Subclasses with further abilities also inherit from interfaces: `Generates`, `Draws`, `Streams`, `Replies`,
    `Chats`, `Transcribes`, `Searches`, `Speaks`, `ScoresContinuations`, `RanksCandidates`, `Embeds`. The methods must
    be called inside a `with sharding.use(...)` block with the mesh of the parameters.
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
        """Computes predictions for a held-out batch, and returns lines of text that show them, for example in the
        training log. Empty by default.
        """
        return []


class Draws(abc.ABC):
    """Interface of predictors that generate images with a flow model."""

    sampling: Sampling
    """Settings for generating images, such as the number of steps."""


class Generates(abc.ABC):
    """Interface of predictors that generate tokens, such as continuations of a text."""

    decoding: Decoding
    """Settings for generating tokens, such as the temperature or the number of beams."""


class Transcribes(Generates):
    """Interface of predictors that transcribe speech in recordings."""

    transcribing: Transcribing
    """Settings of transcription, such as the language."""


class Searches(abc.ABC):
    """Interface of predictors that search for the most likely text of a sound (CTC), perhaps with a language model."""

    search: CtcSearch
    """Settings of the search, such as the number of beams."""

    @abc.abstractmethod
    def with_language_model(self, predictor: "ScoresContinuations") -> Any:
        """Returns a copy of the predictor that uses a language model which scores continuations of texts."""


class Speaks(abc.ABC):
    """Interface of predictors that speak texts."""

    speaking: Speaking
    """Settings of the speech, such as its speed."""

    @abc.abstractmethod
    def with_vocoder(self, model: Any, params: Any) -> Any:
        """Returns a copy of the predictor that converts spectrograms to sounds with a vocoder: a model and its
        parameters. Without a vocoder, it uses Griffin–Lim.
        """


class Streams(Generates):
    """Interface of predictors that can yield parts of an answer while it is being generated. This is not possible with
    beam search.
    """

    @abc.abstractmethod
    def stream(self, text: str) -> Iterator[str]:
        """Yields the answer to a text in parts, as soon as they are generated. The answer is the concatenation of the
        parts.

        Raises:
          InputError: If `predict` would raise it for this text, or `decoding` requests beam search.
        """


class Chats(Streams):
    """Interface of predictors that answer in dialogues."""

    template: TurnTemplate | None
    """Template that formats dialogues as text. If None, the predictor cannot answer in dialogues."""

    @abc.abstractmethod
    def chat(self, turns: Sequence[Turn]) -> Iterator[str]:
        """Yields parts of the answer to a dialogue as soon as they are generated.

        Raises:
          InputError: If there is no template, the template refuses the dialogue, or the dialogue is too long.
        """

    @abc.abstractmethod
    def count_tokens(self, turns: Sequence[Turn]) -> int:
        """Returns the number of tokens in the prompt for the next answer of a dialogue."""


class Replies(abc.ABC):
    """Interface of predictors that answer a text with a text, such as the answer to a question, or a translation."""

    @abc.abstractmethod
    def reply(self, request: Any) -> Iterator[str]:
        """Yields the answer to a request in parts, as soon as they are generated. Unlike those of `Streams.stream`, the
        parts never contain the text of the request.

        Raises:
          InputError: If `predict` would raise it for this request.
        """


class ScoresContinuations(abc.ABC):
    """Interface of predictors that compute how likely given continuations of texts are."""

    @abc.abstractmethod
    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """Computes the log-probability of each continuation given the text before it. `texts` and `continuations` have
        the same length.

        Raises:
          InputError: If a continuation has no tokens or exceeds the maximum length of the model.
        """


class RanksCandidates(abc.ABC):
    """Interface of predictors that rank given candidates, such as images, by how well they fit a request, such as a
    text.
    """

    @abc.abstractmethod
    def rank(self, requests: Sequence[Any], candidates: Sequence[Any]) -> list[Answer]:
        """Ranks the candidates for each request, best first. Returns one answer per request.

        Args:
          requests: requests, as returned by `Task.prepare_requests`.
          candidates: candidates, prepared by the same method.

        Raises:
          InputError: If a request cannot be compared with a candidate.
        """


class Embeds(abc.ABC):
    """Interface of predictors that compute embedding vectors of texts or images by a method of their own.

    For other predictors, `Run.embed` uses the last layer of the model.
    """

    @abc.abstractmethod
    def embed(self, requests: Sequence[Any]) -> np.ndarray:
        """Computes the embedding vector of each request, float32 [requests, embed]."""


def answers_page(answers: Sequence[Answer]) -> str:
    """Returns an HTML page with a grid of answers, each as a notebook displays it. Pictures are part of the page."""
    name = "1 answer" if len(answers) == 1 else f"{len(answers):,} answers"
    return html_page.page(name, f"<h1>{name}</h1>{html_page.grid([answer._repr_html_() for answer in answers])}")


def _plain(value: Any, pair: tuple[str, str] | None) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple) and pair and len(value) == 2 and isinstance(value[0], str):
        return dict(zip(pair, value, strict=True))
    return [_plain(item, pair) for item in value] if isinstance(value, tuple) else value
