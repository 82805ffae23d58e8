"""Templates: which special tokens a tokenizer adds to a text or to a pair of texts, and the type of each token."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import InputError


class Slot(NamedTuple):
    """One element of a template: a text, or a special token."""

    content: str | int
    """`A` for the first text, `B` for the second text, or the id of a special token."""
    token_type: int = 0
    """Token type that the model receives for the element, 0 or 1 as in BERT."""


class LaidOut(NamedTuple):
    """A text or a pair of texts, with special tokens added."""

    tokens: np.ndarray
    """Tokens of the text or texts with special tokens, int32 [length]."""
    token_types: np.ndarray
    """Token type of each token, int32 [length]."""
    starts: tuple[int, ...]
    """Index in `tokens` of the first token of each text."""


@dataclasses.dataclass(frozen=True)
class Template:
    """Which special tokens are added to a text, and to a pair of texts."""

    single: tuple[Slot, ...]
    """Elements for a single text `A`."""
    pair: tuple[Slot, ...]
    """Elements for a pair of texts `A` and `B`."""

    def slots(self, pair: bool) -> tuple[Slot, ...]:
        """Returns the elements for a pair of texts or for a single text."""
        return self.pair if pair else self.single

    def added(self, pair: bool = False) -> int:
        """Returns the number of special tokens that are added to a single text or to a pair."""
        return sum(isinstance(slot.content, int) for slot in self.slots(pair))

    def without_end(self, token: int | None) -> "Template":
        """Returns this template without the special tokens `token` at its end, such as EOS tokens."""

        def cut(slots: tuple[Slot, ...]) -> tuple[Slot, ...]:
            return cut(slots[:-1]) if token is not None and slots[-1].content == token else slots

        return Template(cut(self.single), cut(self.pair))

    def lay_out(self, first: np.ndarray, second: np.ndarray | None = None) -> LaidOut:
        """Adds special tokens to one text, int [tokens], or to a pair of texts."""
        texts = {"A": first, "B": second}
        parts, types, starts, size = [], [], [], 0
        for content, token_type in self.slots(second is not None):
            part = texts[content] if isinstance(content, str) else [content]
            starts += [size] if isinstance(content, str) else []
            parts.append(np.asarray(part, np.int32))
            types.append(np.full(len(part), token_type, np.int32))
            size += len(part)
        return LaidOut(np.concatenate(parts), np.concatenate(types), tuple(starts))


PLAIN = Template((Slot("A"),), (Slot("A"), Slot("B", 1)))
"""Template without special tokens."""


def encoder_template(cls: int, sep: int) -> Template:
    """Returns the BERT template (Devlin et al. 2019).

    The template is [CLS] A [SEP], and [CLS] A [SEP] B [SEP] with type 1 from B on.
    """
    single = (Slot(cls), Slot("A"), Slot(sep))
    return Template(single, (*single, Slot("B", 1), Slot(sep, 1)))


def roberta_template(cls: int, sep: int) -> Template:
    """Returns the template of RoBERTa (Liu et al. 2019) and BART.

    The template is <s> A </s>, and <s> A </s></s> B </s>. All token types are 0.
    """
    single = (Slot(cls), Slot("A"), Slot(sep))
    return Template(single, (*single, Slot(sep), Slot("B"), Slot(sep)))


def decoder_template(end: int) -> Template:
    """Returns a template that adds an EOS token after each text (Radford et al. 2018). `end` is its id."""
    return Template((Slot("A"), Slot(end)), (Slot("A"), Slot(end), Slot("B", 1), Slot(end, 1)))


def template_of(processor: Mapping[str, Any] | None) -> Template | None:
    """Converts the `post_processor` of a tokenizer.json to a template. Returns None if it does not add tokens.

    Raises:
      InputError: If the kind of post-processor is not supported.
    """
    if processor is None:
        return None
    kind = processor["type"]
    if kind == "Sequence":
        found = [template for part in processor["processors"] if (template := template_of(part)) is not None]
        if len(found) > 1:
            raise InputError("tokenizer: several post-processors add special tokens; expected at most one")
        return found[0] if found else None
    if kind not in PROCESSORS:
        raise InputError(f"tokenizer: post_processor {kind!r} is not known; expected one of {', '.join(PROCESSORS)}")
    return PROCESSORS[kind](processor)


def to_processor(template: Template, pieces: list[str], beside: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Converts a template to a `post_processor` for tokenizer.json.

    Args:
      template: template to convert.
      pieces: pieces (entries) of the vocabulary, in the order of their ids.
      beside: existing post-processor that does not add tokens. It is kept and applied before the template.
    """

    def part(slot: Slot) -> dict[str, Any]:
        if isinstance(slot.content, int):
            return {"SpecialToken": {"id": pieces[slot.content], "type_id": slot.token_type}}
        return {"Sequence": {"id": slot.content, "type_id": slot.token_type}}

    ids = sorted({slot.content for slot in (*template.single, *template.pair) if isinstance(slot.content, int)})
    tokens = {pieces[number]: {"id": pieces[number], "ids": [number], "tokens": [pieces[number]]} for number in ids}
    single, pair = (list(map(part, slots)) for slots in (template.single, template.pair))
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return {"type": "Sequence", "processors": [beside, processor]} if beside else processor


def _of_parts(processor: Mapping[str, Any]) -> Template:
    def slots(part: Mapping[str, Any]) -> list[Slot]:
        [(kind, said)] = part.items()
        if kind == "Sequence":
            return [Slot(said["id"], said["type_id"])]
        return [Slot(int(number), said["type_id"]) for number in processor["special_tokens"][said["id"]]["ids"]]

    single, pair = (tuple(slot for part in processor[name] for slot in slots(part)) for name in ("single", "pair"))
    return Template(single, pair)


def _of_bert(processor: Mapping[str, Any]) -> Template:
    return encoder_template(processor["cls"][1], processor["sep"][1])


def _of_roberta(processor: Mapping[str, Any]) -> Template:
    return roberta_template(processor["cls"][1], processor["sep"][1])


PROCESSORS: Mapping[str, Callable[[Mapping[str, Any]], Template | None]] = {
    "TemplateProcessing": _of_parts,
    "BertProcessing": _of_bert,
    "RobertaProcessing": _of_roberta,
    "ByteLevel": lambda processor: None,  # It only changes offsets.
}
