"""Functions that text tasks share. They lay out one text, or an input and a target text, as the arrays of a training
example, for models with or without an encoder.
"""

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
    """Tokens of the text, int32 [tokens]."""
    size: int
    """Number of characters in the text, which counts as its size in the cache of encoded documents."""


@dataclasses.dataclass(frozen=True)
class TextPair:
    """Two encoded texts without special tokens."""

    inputs: np.ndarray
    """Tokens of the input text, or the first text, int32 [tokens]."""
    targets: np.ndarray
    """Tokens of the target text, or the second text, int32 [tokens]."""
    size: int
    """Number of characters in both texts, which counts as their size in the cache of encoded documents."""


def text_row(length: int) -> dict[str, Feature]:
    """Returns the layouts of the arrays in a batch row for language modeling, keyed by name: `tokens`, `targets` int32
    and `weights` float32 [batch, length].
    """
    return {"tokens": Feature(length), "targets": Feature(length), "weights": Feature(length, "float32")}


def pair_row(input_length: int | None, length: int) -> dict[str, Feature]:
    """Returns the layouts of the arrays in a batch row for generating a target text from an input text, keyed by name.

    These are the arrays of `text_row` and one more: for an encoder-decoder, `inputs` int32 [batch, input_length]; for a
    decoder-only model (`input_length` is None), `prefix` int32 [batch, length], which is 1 at input tokens.
    """
    other = {"prefix": Feature(length)} if input_length is None else {"inputs": Feature(input_length)}
    return text_row(length) | other


def text_example(ids: np.ndarray, prefix: int | None = None) -> Example:
    """Returns a training example in which each token is predicted from the tokens before it: the arrays `tokens`,
    `targets`, `weights` and, if `prefix` is given, `prefix`.

    Args:
      ids: the text with its special tokens, int [length + 1]. The arrays of the example have one entry less.
      prefix: number of ids at the start that are given to the model, so that they are not targets. If None, all ids
        except the first are targets.
    """
    weights = np.ones(len(ids) - 1, np.float32)
    example = {"tokens": ids[:-1], "targets": ids[1:], "weights": weights}
    if prefix is not None:
        # The last token of the prefix predicts the first token after the prefix.
        weights[: prefix - 1] = 0
        example["prefix"] = (np.arange(len(weights)) < prefix).astype(np.int32)
    return example


def pair_example(inputs: np.ndarray, targets: np.ndarray, tokenizer: Tokenizer, encoder: bool) -> Example:
    """Returns a training example for generating a target text from an input text: the arrays of `pair_row`.

    With an encoder, the decoder input starts with the padding token (Raffel et al. 2020). Without an encoder, the
    targets follow the inputs.

    Args:
      inputs: tokens of the input text with the EOS token, int32 [tokens].
      targets: tokens of the target text with the EOS token, int32 [tokens].
      tokenizer: tokenizer with a padding token.
      encoder: whether the model is an encoder-decoder.
    """
    if not encoder:
        return text_example(np.concatenate([inputs, targets]), len(inputs))
    tokens = np.concatenate([[tokenizer.pad_id], targets[:-1]]).astype(np.int32)
    return {"inputs": inputs, "tokens": tokens, "targets": targets, "weights": np.ones(len(targets), np.float32)}


def ended(tokens: np.ndarray, tokenizer: Tokenizer, limit: int | None = None) -> np.ndarray:
    """Appends the EOS token to the tokens of a text, and truncates the text so that the result has at most `limit`
    tokens. Returns int32 [tokens].
    """
    kept = tokens if limit is None else tokens[: limit - 1]
    return np.append(kept, tokenizer.eos_id).astype(np.int32)


def overlapping(ids: np.ndarray, length: int) -> list[np.ndarray]:
    """Splits the tokens of a text into chunks of up to `length` + 1 tokens. Each chunk begins with the last token of
    the previous chunk, so that every token except the first of the text is a target in exactly one chunk.
    """
    return [ids[start : start + length + 1] for start in range(0, len(ids) - 1, length)]


def lay_out(
    tokenizer: Tokenizer, form: Form, length: int, first: np.ndarray, second: np.ndarray | None = None
) -> LaidOut:
    """Adds special tokens to a text or a text pair, such as [CLS] and [SEP], after truncating it so that the result has
    at most `length` tokens.

    If a pair is too long, the end of its longer text is cut.

    Args:
      tokenizer: tokenizer, which determines the special tokens and where they are added.
      form: whether the model is an encoder or a decoder.
      length: maximum number of tokens.
      first: tokens of the first text without special tokens, int [tokens].
      second: tokens of the second text, int [tokens]. None for a single text.
    """
    template = tokenizer.template(form)
    room = max(length - template.num_special_tokens(second is not None), 0)
    if second is None:
        return template.lay_out(first[:room])
    return template.lay_out(*cut_longest(first, second, room))


def encoder_inputs(tokens: np.ndarray, tokenizer: Tokenizer, limit: int) -> tuple[np.ndarray, bool]:
    """Adds special tokens to the input text of an encoder-decoder, and truncates it to at most `limit` tokens.

    The EOS token follows the text. If an imported tokenizer adds a BOS token, as for BART, it is added before the text.

    Returns:
      The tokens, int32 [tokens], and whether all tokens of the text fit in them.
    """
    own = tokenizer.own_template
    first = [] if own is None else [slot.content for slot in own.single[:1] if isinstance(slot.content, int)]
    inputs = ended(np.array([*first, *tokens], np.int32), tokenizer, limit)
    return inputs, len(inputs) == len(first) + len(tokens) + 1


def cut_longest(first: np.ndarray, second: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Truncates two texts at their ends to `room` tokens in total. A text that is shorter than half of `room` is kept
    completely; if both are longer, each keeps half. Returns the truncated texts.
    """
    size = min(len(first), max(room - len(second), (room + 1) // 2))
    return first[:size], second[: room - size]


def check_template(
    tokenizer: Tokenizer, form: Form, length: int, pair: bool = False, path: str = "data.task.length"
) -> None:
    """Checks that the vocabulary contains the special tokens that the model needs, and that they leave room for text in
    a row of `length` tokens. Raises InputError otherwise.

    Args:
      tokenizer: tokenizer, which determines the special tokens.
      form: whether the model is an encoder or a decoder.
      length: number of tokens per row.
      pair: whether a row contains two texts.
      path: config field that sets `length`, for error messages.
    """
    num_special_tokens = tokenizer.template(form).num_special_tokens(pair)
    if num_special_tokens >= length:
        problem = f"the tokenizer adds {num_special_tokens} special tokens, which leave no room for text"
        raise FieldError(path, f"={length}: {problem}; expected at least {num_special_tokens + 1}")


def check_packing(examples_per_row: int, pack: bool) -> None:
    """Raises InputError if `examples_per_row` does not fit the packing setting `pack`: it must be above 1 with packing,
    and 1 without packing.
    """
    if examples_per_row > 1 and not pack:
        raise FieldError(
            "data.task.examples_per_row",
            f"={examples_per_row}: without data.pack a row holds one example; expected 1, or data.pack=True",
        )
    if pack and examples_per_row == 1:
        raise InputError("data.pack=True: expected data.task.examples_per_row above 1, for example 4")
