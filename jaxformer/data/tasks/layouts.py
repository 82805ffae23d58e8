"""How the examples of text tasks lie in rows: a text alone, or inputs and targets with or without an encoder."""

import dataclasses

import numpy as np

from jaxformer.data.examples import Example, Feature
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import LaidOut
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.errors import FieldError, InputError


@dataclasses.dataclass(frozen=True)
class Document:
    """An encoded text without special tokens."""

    tokens: np.ndarray
    """int32 [n]."""
    size: int
    """Characters of the text."""


@dataclasses.dataclass(frozen=True)
class TextPair:
    """Two encoded texts without special tokens."""

    inputs: np.ndarray
    """int32 [m]."""
    targets: np.ndarray
    """int32 [n]."""
    size: int
    """Characters of both."""


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
      ids: the text with its special tokens.
      prefix: how many of the first ids are given rather than predicted; None: one, without an array `prefix`.
    """
    weights = np.ones(len(ids) - 1, np.float32)
    example = {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}
    if prefix is not None:
        # The last token of the prefix predicts the first token after it.
        weights[: prefix - 1] = 0
        example["prefix"] = (np.arange(len(weights)) < prefix).astype(np.int32)
    return example


def pair_example(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer, encoder: bool) -> Example:
    """Targets to generate from inputs, both int32 and with their end tokens.

    With an encoder the decoder begins with padding (Raffel et al. 2020); without one the targets follow the inputs.
    """
    if not encoder:
        return text_example(np.concatenate([inputs, targets]), len(inputs))
    tokens = np.concatenate([[tokenizer.pad_id], targets[:-1]]).astype(np.int32)
    return {"inputs": inputs, "tokens": tokens, "targets": targets, "weights": np.ones(len(targets), np.float32)}


def ended(tokens: np.ndarray, tokenizer: Tokenizer, limit: int | None = None) -> np.ndarray:
    """The tokens and the end token, int32, cut to at most `limit` in total."""
    kept = tokens if limit is None else tokens[: limit - 1]
    return np.append(kept, tokenizer.eos_id).astype(np.int32)


def overlapping(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Stretches of up to `length` + 1 ids; each repeats the last id of the previous one."""
    return [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]


def lay_out(
    tokenizer: Tokenizer, form: Form, length: int, first: np.ndarray, second: np.ndarray | None = None
) -> LaidOut:
    """A text or a pair with its special tokens, cut to at most `length` tokens.

    A pair that is too long loses tokens at the end of its longer text.

    Args:
      tokenizer: has the template.
      form: the kind of model.
      length: tokens of the result, at most.
      first: int [n], without special tokens.
      second: int [n], the second text of a pair.
    """
    template = tokenizer.template(form)
    room = max(length - template.added(second is not None), 0)
    if second is None:
        return template.lay_out(first[:room])
    return template.lay_out(*cut_longest(first, second, room))


def encoder_inputs(tokens: np.ndarray, tokenizer: Tokenizer, limit: int) -> tuple[np.ndarray, bool]:
    """The inputs of an encoder–decoder, int32 of at most `limit` tokens, and whether they are complete.

    The end token follows the text. BART's beginning token comes first, if the template of an imported tokenizer has it.
    """
    own = tokenizer.own_template
    first = [] if own is None else [slot.content for slot in own.single[:1] if isinstance(slot.content, int)]
    inputs = ended(np.array([*first, *tokens], np.int32), tokenizer, limit)
    return inputs, len(inputs) == len(first) + len(tokens) + 1


def cut_longest(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Two texts cut to `room` tokens in total, the last token of the longer one first."""
    size = min(len(first), max(room - len(second), (room + 1) // 2))
    return first[:size], second[: room - size]


def check_template(
    tokenizer: Tokenizer, form: Form, length: int, pair: bool = False, path: str = "data.task.length"
) -> None:
    """Raises InputError if the vocabulary lacks the special tokens, or if they leave no room for text.

    Args:
      tokenizer: has the template.
      form: the kind of model.
      length: tokens in a row.
      pair: whether a row has two texts.
      path: the config field that says `length`.
    """
    added = tokenizer.template(form).added(pair)
    if added >= length:
        problem = f"the tokenizer adds {added} special tokens, which leave no room for text"
        raise FieldError(path, f"={length}: {problem}; expected at least {added + 1}")


def check_packing(examples_per_row: int, pack: bool) -> None:
    """Raises InputError if rows have room for more examples than packing gives them, or packing has no room."""
    if examples_per_row > 1 and not pack:
        raise FieldError(
            "data.task.examples_per_row",
            f"={examples_per_row}: without data.pack a row holds one example; expected 1, or data.pack=True",
        )
    if pack and examples_per_row == 1:
        raise InputError("data.pack=True: expected data.task.examples_per_row above 1, for example 4")
