"""Templates, such as [CLS] A [SEP], which define the special tokens and token types that a tokenizer adds to a text or
to a pair of texts.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import InputError


class Element(NamedTuple):
    """One element of a template: a text, or a special token."""

    content: str | int
    """`A` for the first text, `B` for the second text, or the id of a special token."""
    token_type: int = 0
    """Token type id of all tokens of this element, 0 or 1 as in BERT."""


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
    """Defines which special tokens are added to a single text, such as [CLS] A [SEP], and to a pair of texts."""

    single: tuple[Element, ...]
    """Elements for a single text `A`."""
    pair: tuple[Element, ...]
    """Elements for a pair of texts `A` and `B`."""

    def elements(self, pair: bool) -> tuple[Element, ...]:
        """Returns the elements of the template for a pair of texts if `pair` is True, otherwise for a single text."""
        return self.pair if pair else self.single

    def num_special_tokens(self, pair: bool = False) -> int:
        """Returns the number of special tokens that are added to a pair of texts if `pair` is True, otherwise to a
        single text.
        """
        return sum(isinstance(element.content, int) for element in self.elements(pair))

    def without_end(self, token: int | None) -> "Template":
        """Returns this template without its last elements if these are the special token `token`, such as EOS. If
        `token` is None, nothing is removed.
        """

        def cut(elements: tuple[Element, ...]) -> tuple[Element, ...]:
            return cut(elements[:-1]) if token is not None and elements[-1].content == token else elements

        return Template(cut(self.single), cut(self.pair))

    def lay_out(self, first: np.ndarray, second: np.ndarray | None = None) -> LaidOut:
        """Adds special tokens and token types to a text (`first`), or to a pair of texts if `second` is given. Both are
        int [tokens].
        """
        texts = {"A": first, "B": second}
        parts, types, starts, size = [], [], [], 0
        for content, token_type in self.elements(second is not None):
            part = texts[content] if isinstance(content, str) else [content]
            starts += [size] if isinstance(content, str) else []
            parts.append(np.asarray(part, np.int32))
            types.append(np.full(len(part), token_type, np.int32))
            size += len(part)
        return LaidOut(np.concatenate(parts), np.concatenate(types), tuple(starts))


PLAIN = Template((Element("A"),), (Element("A"), Element("B", 1)))
"""Template that adds no special tokens. In a pair, the second text has token type 1."""


def encoder_template(cls: int, sep: int) -> Template:
    """Returns BERT's template (Devlin et al. 2019): [CLS] A [SEP] for a text, and [CLS] A [SEP] B [SEP] for a pair,
    with token type 1 from B on.

    Args:
      cls: id of [CLS].
      sep: id of [SEP].
    """
    single = (Element(cls), Element("A"), Element(sep))
    return Template(single, (*single, Element("B", 1), Element(sep, 1)))


def roberta_template(cls: int, sep: int) -> Template:
    """Returns the template of RoBERTa (Liu et al. 2019) and BART: <s> A </s> for a text, and <s> A </s></s> B </s> for
    a pair. All token types are 0.

    Args:
      cls: id of <s>.
      sep: id of </s>.
    """
    single = (Element(cls), Element("A"), Element(sep))
    return Template(single, (*single, Element(sep), Element("B"), Element(sep)))


def decoder_template(end: int) -> Template:
    """Returns a template that adds the EOS token, with id `end`, after each text (Radford et al. 2018)."""
    return Template(
        (Element("A"), Element(end)),
        (Element("A"), Element(end), Element("B", 1), Element(end, 1)),
    )


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
    """Converts a template to the `post_processor` object of a tokenizer.json.

    Args:
      template: template to convert.
      pieces: vocabulary entries, in the order of their ids.
      beside: another post-processor that adds no tokens, such as `ByteLevel`. If given, the result is a sequence of it
        and the converted template.
    """

    def part(element: Element) -> dict[str, Any]:
        if isinstance(element.content, int):
            return {"SpecialToken": {"id": pieces[element.content], "type_id": element.token_type}}
        return {"Sequence": {"id": element.content, "type_id": element.token_type}}

    ids = sorted(
        {element.content for element in (*template.single, *template.pair) if isinstance(element.content, int)}
    )
    tokens = {pieces[number]: {"id": pieces[number], "ids": [number], "tokens": [pieces[number]]} for number in ids}
    single, pair = (list(map(part, elements)) for elements in (template.single, template.pair))
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}
    return {"type": "Sequence", "processors": [beside, processor]} if beside else processor


def _of_parts(processor: Mapping[str, Any]) -> Template:
    def elements(part: Mapping[str, Any]) -> list[Element]:
        [(kind, said)] = part.items()
        if kind == "Sequence":
            return [Element(said["id"], said["type_id"])]
        return [Element(int(number), said["type_id"]) for number in processor["special_tokens"][said["id"]]["ids"]]

    single, pair = (
        tuple(element for part in processor[name] for element in elements(part)) for name in ("single", "pair")
    )
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
