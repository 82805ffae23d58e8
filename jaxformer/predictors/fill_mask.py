"""Fills the `[MASK]` tokens of a text with a masked language model."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.decoding.rules import without_pieces
from jaxformer.errors import InputError
from jaxformer.models.bert import Bert
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.padding import stacked

ROWS, BUCKET = 16, 32


@dataclasses.dataclass(frozen=True)
class Filled(Answer):
    """A text with `[MASK]` tokens, and the most likely tokens for each of them."""

    pair_names: ClassVar = {"blanks": ("token", "probability")}

    text: str
    """Text of the request, with its `[MASK]` tokens."""
    blanks: tuple[tuple[tuple[str, float], ...], ...]
    """For each `[MASK]`, pairs of a likely token and its probability, most likely first."""
    filled: str = ""
    """The text in which each `[MASK]` is replaced by its most likely token, as decoded by the tokenizer. Not printed if
    empty.
    """

    def __str__(self) -> str:
        lines = [self.text, *([f"  {self.filled}"] if self.filled else [])]
        for number, blank in enumerate(self.blanks, 1):
            lines += [f"  blank {number}"] if len(self.blanks) > 1 else []
            lines += [f"  {probability:6.1%}  {piece}" for piece, probability in blank]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class FillMask(Predictor[Bert]):
    """Predictor that predicts the tokens at the `[MASK]` tokens of texts."""

    model_inputs: tuple[str, ...] = ()
    """Names of the batch arrays that `demonstrate` passes to the model. `predict` does not use it."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenizes texts, each between [CLS] and [SEP], and returns them as arguments of the model: padded arrays
        [texts, length], keyed by argument name.
        """
        return stacked([encode(text, self.tokenizer, self.model.max_length) for text in texts])

    def predict(self, texts: Sequence[str]) -> list[Filled]:
        return fill_masks(self.model, self.params, self.tokenizer, texts)

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Predicts the masked tokens in the first rows of a held-out batch, and formats them for display."""
        inputs = {name: array for name, array in batch.items() if name in self.model_inputs}
        return demonstrate(self.model, self.params, self.tokenizer, batch, inputs)


def fill_masks(model: Bert, params, tokenizer: Tokenizer, texts: Sequence[str], top: int = 5) -> list[Filled]:
    """Predicts the `top` most likely tokens for each `[MASK]` of each text.

    Raises:
      InputError: If a text has no `[MASK]` or exceeds the maximum length of the model.
    """
    rows = [encode(text, tokenizer, model.max_length) for text in texts]
    for text, tokens in zip(texts, rows, strict=True):
        if tokenizer.mask_id not in tokens:
            shown = text if len(text) < 60 else text[:57] + "..."
            raise InputError(f"{shown!r}: no [MASK] to fill; write [MASK] where a word is missing")
    filled = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        probabilities, pieces = _predict(model, params, tokenizer, part, top)
        for index, tokens in enumerate(part):
            places = np.flatnonzero(tokens == tokenizer.mask_id)
            blanks = (zip(pieces[index, place], probabilities[index, place], strict=True) for place in places)
            named = tuple(tuple((tokenizer.piece(int(p)), float(q)) for p, q in blank) for blank in blanks)
            best = tokens.copy()
            best[places] = pieces[index, places, 0]
            filled.append(Filled(texts[start + index], named, tokenizer.decode(best)))
    return filled


def demonstrate(
    model: Bert,
    params,
    tokenizer: Tokenizer,
    batch: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
    count: int = 4,
) -> list[str]:
    """Predicts the masked tokens in the first `count` rows of a batch, and formats them for display.

    A correct prediction is shown as `[light]`, a wrong one as `[dark, was light]`. `inputs` contains the arrays of the
    batch that are passed to the model, keyed by argument name.
    """
    batch, inputs = ({name: array[:count] for name, array in part.items()} for part in (batch, inputs))
    logits = jax.jit(model.apply)({"params": params}, **inputs).logits
    lines = []
    for row, guesses in enumerate(np.asarray(jnp.argmax(without_pieces(logits, tokenizer.vocab_size), -1))):
        used = batch["weights"][row] > 0
        places, targets = batch["masked_positions"][row][used], batch["targets"][row][used]
        line, start = "", 0
        for place, target, guess in sorted(zip(places, targets, guesses[used], strict=True)):
            right, said = _shown(tokenizer, target), _shown(tokenizer, guess)
            line += _text(tokenizer, batch["tokens"][row, start:place]) + " " * bool(tokenizer.word_start[target])
            line += f"[{right}]" if guess == target else f"[{said}, was {right}]"
            start = place + 1
        lines.append((line + _text(tokenizer, batch["tokens"][row, start:])).strip())
    return lines


def encode(text: str, tokenizer: Tokenizer, longest: int) -> np.ndarray:
    """Tokenizes a text and adds special tokens such as [CLS] and [SEP]. Returns token ids, int32 [tokens]. Each
    `[MASK]` in the text becomes the mask token.

    Raises:
      InputError: If there are more than `longest` tokens.
    """
    tokens = tokenizer.template("encoder").lay_out(tokenizer.encode_with_masks(text)).tokens
    if len(tokens) > longest:
        shown = text if len(text) < 60 else text[:57] + "..."
        raise InputError(f"{shown!r}: {len(tokens)} tokens; the model has positions for {longest}")
    return tokens


def _predict(model, params, tokenizer, rows, top):
    """Computes the `top` most likely tokens at every position of `rows`, a list of tokenized texts. Returns their
    probabilities and their token ids, both [rows, length, top].
    """
    longest = max(map(len, rows))
    length = min(model.max_length, -(-longest // BUCKET) * BUCKET)  # Few lengths, so that few programs are compiled.
    tokens = np.full((len(rows), length), tokenizer.pad_id, np.int32)
    segments = np.zeros_like(tokens)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
        segments[index, : len(row)] = 1
    pieces = tokenizer.vocab_size
    return jax.device_get(_top(model, params, tokens, segments, min(top, pieces), pieces))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _top(model, params, tokens, segments, top, pieces):
    logits = without_pieces(model.apply({"params": params}, tokens, segments).logits, pieces)
    return jax.lax.top_k(jax.nn.softmax(logits), top)


def _shown(tokenizer: Tokenizer, token: int) -> str:
    """Formats a token as readable text. A token without letters or digits is put in quotation marks."""
    piece = tokenizer.piece(token)
    return piece if any(map(str.isalnum, piece)) else f"'{piece}'"


def _text(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """Decodes tokens, without special tokens. The text starts with a space if the first token starts a word."""
    shown = tokens[~tokenizer.is_special[tokens]]
    return " " * bool(len(shown) and tokenizer.word_start[shown[0]]) + tokenizer.decode(shown)
