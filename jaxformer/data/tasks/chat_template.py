"""Chat templates: Jinja templates that format dialogues as text, as in the tokenizer_config.json of chat models."""

import dataclasses
import datetime
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxformer import fields
from jaxformer.data.tasks.turns import ANSWERS, EncodedRow, Exchange, Turn, TurnTemplate, exchanges
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import FieldError, InputError

SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""Roles of special tokens. A template reads their names from variables such as `bos_token`."""
PLAIN, PLAIN_END, ANSWER, ANSWER_END = "\ufdd0\ufdd1\ufdd2\ufdd3"
"""Characters that are never part of a text. The first two surround names of special tokens in the contents of turns,
which are encoded as plain text. The last two surround answers that a template marks by `{% generation %}`.
"""
_MARKS = re.compile(f"[{PLAIN}{PLAIN_END}{ANSWER}{ANSWER_END}]")
_MARKED = re.compile(f"{PLAIN}([^{PLAIN}{PLAIN_END}]*){PLAIN_END}")
_PAIRED = re.compile(f"({_MARKED.pattern})|[{PLAIN}{PLAIN_END}]")
_GENERATION = re.compile(r"\{%[-+]?\s*generation\b")
SAMPLE = "7f3a"
"""Content of the answer in the sample that `ChatTemplate.end_ids` formats: a text that no template contains."""
LONGEST = 100
"""Maximum number of characters of an error of a template that an error message contains."""


@dataclasses.dataclass(frozen=True)
class ChatTemplate(TurnTemplate):
    """Jinja template of a chat model, as in its tokenizer_config.json. `jf.chat_template(FOLDER)` reads one.

    The text and the tokens of a dialogue equal those of `apply_chat_template` in the transformers library. A template
    is run in a sandbox, and cannot access files, modules or attributes of Python objects. Names of special tokens in
    the content of a turn are encoded as plain text, so that a user cannot end a turn.
    """

    text: str
    """Text of the Jinja template."""
    date: str | None = None
    """Date that the template may write, such as 2026-07-31. If None, the template has no access to a date, so that
    training does not depend on the day.
    """

    def __post_init__(self):
        fields.check(self)
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError as error:
                raise FieldError("data.task.template.date", f"={self.date!r}: expected a date: {error}") from error
        _compiled(self.text)

    @property
    def writes_beginning(self) -> bool:
        return True

    def turns(self, text: str) -> list[Turn]:
        return [("user", text)]

    def render(self, turns: Sequence[Turn], tokenizer: Tokenizer, asks: bool = False) -> str:
        """Formats a dialogue as text.

        Args:
          turns: turns of the dialogue.
          tokenizer: tokenizer, whose special tokens the template may write.
          asks: whether the text ends with the start of the next answer, such as the name of the role.

        Raises:
          InputError: If the template refuses the dialogue, or uses something that the sandbox does not permit.
        """
        return _MARKS.sub("", self._marked(turns, tokenizer, asks))

    def encode_rows(self, turns: Sequence[Turn], tokenizer: Tokenizer, longest: int) -> list[EncodedRow]:
        system = list(itertools.takewhile(lambda turn: turn[0] == "system", turns))
        rows, waiting = [], exchanges(turns[len(system) :])
        while waiting:
            count, row = 1, self._encode([*system, *waiting[0]], tokenizer)
            while count < len(waiting):
                more = self._encode([*system, *itertools.chain(*waiting[: count + 1])], tokenizer)
                if len(more.ids) > longest:
                    break
                count, row = count + 1, more
            rows.append(row)
            waiting = waiting[count:]
        return rows

    def encode_prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> np.ndarray:
        return _encoded(self._marked(turns, tokenizer, asks=True), tokenizer)[0]

    def encode_exchange(self, turns: Sequence[Turn], answer: str, tokenizer: Tokenizer) -> Exchange:
        whole = self._marked([*turns, (ANSWERS, answer)], tokenizer)
        size = self._before(turns, whole, tokenizer)
        ids, offsets = _encoded(whole, tokenizer)
        first = int(np.sum(offsets[:, 0] < size))
        return Exchange(ids[:first], ids[first:])

    def end_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Returns the ids of EOS and of the special token that the template writes after an answer, if any."""
        eos = tokenizer.special_id("eos")
        found = [] if eos is None else [eos]
        try:
            text = self.render([("user", SAMPLE), (ANSWERS, SAMPLE)], tokenizer)
        except InputError:  # A template for other dialogues, such as those with a system prompt.
            return tuple(found)
        after, _ = tokenizer.encode_with_special_tokens(text.rpartition(SAMPLE)[2])
        first = next((int(token) for token in after if tokenizer.is_special[token]), None)
        return tuple(found if first is None or first in found else [*found, first])

    def show_answer(self, text: str) -> str:
        return f"\n{text}"

    def _marked(self, turns: Sequence[Turn], tokenizer: Tokenizer, asks: bool = False) -> str:
        """Formats a dialogue as text. Names of special tokens in the contents of turns are between `PLAIN` and
        `PLAIN_END`.
        """
        return re.sub(f"[{ANSWER}{ANSWER_END}]", "", self._with_answers(turns, tokenizer, asks))

    def _with_answers(self, turns: Sequence[Turn], tokenizer: Tokenizer, asks: bool = False) -> str:
        """Formats a dialogue as `_marked` does. Answers in `{% generation %}` blocks are between `ANSWER` and
        `ANSWER_END`.
        """
        special = _special_names(tokenizer)
        messages = [{"role": role, "content": _protected(content, tokenizer)} for role, content in turns]
        variables: dict[str, Any] = {"messages": messages, "tools": None, "documents": None}
        if self.date is not None:
            variables["strftime_now"] = datetime.datetime.fromisoformat(self.date).strftime
        try:
            found = _compiled(self.text).render(**variables, add_generation_prompt=asks, **special)
        except Exception as error:  # A template may fail in any way that Python code may.
            raise InputError(f"chat template: {_reason(error)}") from error
        # A template that changes contents may have separated two marks.
        return _PAIRED.sub(lambda pair: pair[1] or "", found)

    def _encode(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> EncodedRow:
        text, spans = _marked_spans(self._with_answers(turns, tokenizer))
        if not _GENERATION.search(self.text):
            spans = self._answer_spans(turns, text, tokenizer)
        ids, offsets = _encoded(text, tokenizer)
        starts = offsets[:, 0]
        is_target = np.zeros(len(ids), bool)
        for start, end in spans:
            is_target |= (starts >= start) & (starts < end)
        return EncodedRow(ids, is_target)

    def _answer_spans(self, turns: Sequence[Turn], text: str, tokenizer: Tokenizer) -> list[tuple[int, int]]:
        """Returns the start and end (exclusive) of each answer in the text of a dialogue, as character indices. An
        answer begins after the prompt for it, and includes what the template writes after it.
        """
        spans = []
        for number, (role, _) in enumerate(turns):
            if role == ANSWERS:
                start = self._before(turns[:number], text, tokenizer)
                until = self._marked(turns[: number + 1], tokenizer)
                spans.append((start, _common(until, text)))
        return spans

    def _before(self, turns: Sequence[Turn], text: str, tokenizer: Tokenizer) -> int:
        """Returns the length of the prompt for an answer. Raises InputError if the text of the dialogue with the answer
        does not begin with it.
        """
        prompt = self._marked(turns, tokenizer, asks=True)
        if not text.startswith(prompt):
            raise InputError(
                "chat template: a dialogue with its answers does not begin with the prompt for each answer; expected a "
                "template that writes earlier turns in one way, or marks the answers by {% generation %}"
            )
        return len(prompt)


def _special_names(tokenizer: Tokenizer) -> dict[str, str]:
    ids = {f"{key}_token": tokenizer.special_id(key) for key in SPECIAL}
    return {name: tokenizer.pieces[number] for name, number in ids.items() if number is not None}


def _protected(content: str, tokenizer: Tokenizer) -> str:
    """Surrounds names of special tokens in a text with `PLAIN` and `PLAIN_END`."""
    names = tokenizer.special_pattern
    return names.sub(lambda name: f"{PLAIN}{name[0]}{PLAIN_END}", _MARKS.sub("", content))


def _encoded(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Encodes a text with marks. Names of special tokens become these tokens, except between `PLAIN` and `PLAIN_END`.

    Returns:
      Token ids, int32 [tokens], and the start and end of each token as indices into the text with its marks, int32
      [tokens, 2].
    """
    if PLAIN not in text:
        return tokenizer.encode_with_special_tokens(text)
    parts, place = [], 0
    for number, part in enumerate(_MARKED.split(text)):
        plain = number % 2 == 1
        place += plain
        if part:
            ids, offsets = (tokenizer.encode_with_offsets if plain else tokenizer.encode_with_special_tokens)(part)
            parts.append((ids, offsets + place))
        place += len(part) + plain
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _marked_spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Removes the marks around answers. Returns the text without them, and the start and end of each answer in it."""
    plain, spans, start = "", [], 0
    for part in re.split(f"([{ANSWER}{ANSWER_END}])", text):
        if part == ANSWER:
            start = len(plain)
        elif part == ANSWER_END:
            spans.append((start, len(plain)))
        else:
            plain += part
    return plain, spans


def _common(start: str, text: str) -> int:
    """Returns the number of characters with which both texts begin."""
    return next((index for index, pair in enumerate(zip(start, text, strict=False)) if pair[0] != pair[1]), len(start))


def _reason(error: Exception) -> str:
    """Describes an error of a template on one line."""
    said = " ".join(str(getattr(error, "message", None) or error).split()) or type(error).__name__
    text = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
    line = getattr(error, "lineno", None)
    return f"line {line}: {text}" if line else text


@functools.lru_cache(maxsize=32)
def _compiled(text: str) -> Any:
    """Compiles a template. Raises InputError if it is not a Jinja template, or Jinja is not installed."""
    try:
        from jinja2 import TemplateError
    except ImportError as error:
        raise InputError("a chat template needs Jinja: pip install 'jaxformer[chat]'") from error
    try:
        return _environment().from_string(text)
    except TemplateError as error:
        raise InputError(f"chat template: {_reason(error)}; expected a Jinja template") from error


@functools.cache
def _environment() -> Any:
    """Creates the sandbox for templates. The functions and filters that it adds to those of Jinja are the ones that the
    transformers library gives to chat templates.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The block `{% generation %}`, which marks the answers of the model."""

        tags: ClassVar[set[str]] = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_surround"), [], [], body).set_lineno(line)

        def _surround(self, caller: Callable[[], str]) -> str:
            return f"{ANSWER}{caller()}{ANSWER_END}"

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = raise_exception
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def default_template(templates: Any) -> str | None:
    """Returns the template for dialogues without tools, given the chat template of a tokenizer: the text of a template,
    a list of dicts {"name": ..., "template": ...}, or None.
    """
    if isinstance(templates, str) or templates is None:
        return templates
    named = {one.get("name"): one.get("template") for one in templates if isinstance(one, Mapping)}
    found = named.get("default")
    return found if isinstance(found, str) else None
