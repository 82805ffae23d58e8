"""How the examples of language tasks lie in rows: text alone, or inputs and targets with or without an encoder."""

import dataclasses

import numpy as np

from jaxformer.data.tasks.base import Example, Feature
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import LaidOut
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Document:
    """An encoded text without special tokens."""

    tokens: np.ndarray
    """int32 [n]."""
    size: int
    """Characters of the text."""


def document(text: str, tokenizer: Tokenizer) -> Document:
    """A text, encoded."""
    return Document(tokenizer.encode(text), len(text))


def text_row(length: int) -> dict[str, Feature]:
    """Rows of `tokens`, `targets` int32 and `weights` float32 [b, length]."""
    return {"tokens": Feature(length), "targets": Feature(length), "weights": Feature(length, "float32")}


def pair_row(input_length: int | None, length: int) -> dict[str, Feature]:
    """Rows of pairs: as `text_row`, and `inputs` int32 [b, input_length] of an encoder.

    Without an encoder (`input_length` None) `prefix` int32 [b, length] instead: 1 where a token is one of the inputs.
    """
    other = {"prefix": Feature(length)} if input_length is None else {"inputs": Feature(input_length)}
    return text_row(length) | other


def text_example(ids: np.ndarray, prefix: int | None = None) -> Example:
    """Each of the ids, int [n + 1], predicted from those before it: arrays [n].

    Args:
        ids: what is read and written.
        prefix: how many of the first ids are given, and not predicted; None is one, without an array that says so.
    """
    weights = np.ones(len(ids) - 1, np.float32)
    example = {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}
    if prefix is not None:
        # The last token of the prefix predicts what is after it.
        weights[: prefix - 1] = 0
        example["prefix"] = (np.arange(len(weights)) < prefix).astype(np.int32)
    return example


def pair_example(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer, encoder: bool) -> Example:
    """Targets to be written after reading inputs, both int32 and with their end tokens.

    With an encoder the decoder begins with padding (Raffel et al. 2020); without one the targets follow the inputs.
    """
    if not encoder:
        return text_example(np.concatenate([inputs, targets]), len(inputs))
    tokens = np.concatenate([[tokenizer.pad_id], targets[:-1]]).astype(np.int32)
    return {"inputs": inputs, "tokens": tokens, "targets": targets, "weights": np.ones(len(targets), np.float32)}


def ended(tokens: np.ndarray, tokenizer: Tokenizer, limit: int | None = None) -> np.ndarray:
    """The tokens and the end token, int32, cut to at most `limit` of both."""
    kept = tokens if limit is None else tokens[: limit - 1]
    return np.append(kept, tokenizer.eos_id).astype(np.int32)


def lay_out(
    tokenizer: Tokenizer, form: Form, length: int, first: np.ndarray, second: np.ndarray | None = None
) -> LaidOut:
    """A text or a pair with its special tokens, cut to at most `length` tokens.

    A pair that is too long loses the end of its longer text.

    Args:
        tokenizer: gives the template.
        form: the kind of model.
        length: tokens of the result, at most.
        first: int [n], without special tokens.
        second: int [n] of a pair's second text.
    """
    template = tokenizer.template(form)
    room = max(length - template.added(second is not None), 0)
    if second is None:
        return template.lay_out(first[:room])
    return template.lay_out(*cut_longest(first, second, room))


def encoder_inputs(tokens: np.ndarray, tokenizer: Tokenizer, limit: int) -> tuple[np.ndarray, bool]:
    """What an encoder–decoder reads, int32 of at most `limit` tokens, and whether none was cut off.

    The end token follows the text. BART's beginning token comes first, as the template of an imported tokenizer says.
    """
    own = tokenizer.own_template
    first = [] if own is None else [slot.content for slot in own.single[:1] if isinstance(slot.content, int)]
    inputs = ended(np.array([*first, *tokens], np.int32), tokenizer, limit)
    return inputs, len(inputs) == len(first) + len(tokens) + 1


def check_template(tokenizer: Tokenizer, form: Form, length: int, pair: bool = False) -> None:
    """Raises InputError if the special tokens are missing from the vocabulary, or leave no room for text."""
    added = tokenizer.template(form).added(pair)
    if added >= length:
        raise InputError(
            f"task.length {length}: leaves no room for text; the tokenizer adds {added} special tokens: set it to "
            f"{added + 1} or more"
        )


def cut_longest(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Two texts cut to `room` tokens together, the last token of the longer one first."""
    size = min(len(first), max(room - len(second), (room + 1) // 2))
    return first[:size], second[: room - size]


def at_least(field: str, value: int | None, least: int) -> None:
    """Raises InputError if there is a value and it is below `least`."""
    if value is not None and value < least:
        raise InputError(f"task.{field} {value}: must be {least} or more")


def check_packing(examples_per_row: int, pack: bool) -> None:
    """Raises InputError where rows have room for another number of examples than they are packed with."""
    if examples_per_row > 1 and not pack:
        raise InputError(
            f"task.examples_per_row {examples_per_row}: without data.pack a row holds one example; set data.pack or "
            "task.examples_per_row 1"
        )
    if pack and examples_per_row == 1:
        raise InputError("data.pack: task.examples_per_row 1 leaves nothing to pack; set it to 4, for example")
