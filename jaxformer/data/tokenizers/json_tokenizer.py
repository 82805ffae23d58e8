"""Base class of tokenizers that are stored as a tokenizer.json and run by Hugging Face's `tokenizers` library."""

import abc
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.tokenizers.template import Template, template_of
from jaxformer.data.tokenizers.tokenizer import Ids, Tokenizer, without_spaces
from jaxformer.limits import VOCABULARY

ROLES = "special_tokens_map.json"
"""Name of the file next to tokenizer.json that maps roles, such as `eos_token`, to special tokens. The transformers
library writes the same file.
"""


class JsonTokenizer(Tokenizer):
    """Base class of tokenizers that are stored as a tokenizer.json and run by Hugging Face's `tokenizers` library.
    `encode` does not add special tokens, even if the file defines a template for them.
    """

    file = "tokenizer.json"

    def __init__(self, model: str, roles: Mapping[str, str] | None = None):
        """Initializes the tokenizer.

        Args:
          model: content of tokenizer.json.
          roles: maps roles, such as `eos`, to names of special tokens, such as `<|im_end|>`. Needed only for roles that
            cannot be inferred from common names such as `</s>`.
        """
        import tokenizers

        self._model = model
        self._tokenizer = tokenizers.Tokenizer.from_str(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        VOCABULARY.check(size := max(ids.values(), default=-1) + 1, "its largest id")
        pieces = [""] * size
        for piece, number in ids.items():
            pieces[number] = piece
        self._unknown = _unknown(self.config["model"])
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        # A vocabulary may contain an ordinary piece with the name of a special token, such as `<s>` in Qwen. If the
        # file marks special tokens, only these are special.
        super().__init__(pieces, self._starts(pieces), roles, [*special, *self._unknown], by_name=not special)
        self._encoder = self._plain_text_tokenizer(lambda config: None)

    def __reduce__(self):
        return type(self), (self._model, self.roles)

    @property
    def config(self) -> dict[str, Any]:
        """Parsed content of tokenizer.json."""
        return json.loads(self._model)

    @functools.cached_property
    def own_template(self) -> Template | None:
        return template_of(self.config.get("post_processor"))

    @abc.abstractmethod
    def _starts(self, pieces: list[str]) -> np.ndarray:
        """Returns whether each vocabulary entry begins a word, bool [vocab]."""

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoder.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._encoder.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32), without_spaces(text, encoded.offsets)

    def encode_with_special_tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32), np.array(encoded.offsets, np.int32).reshape(-1, 2)

    def _encode_continuation(self, text: str) -> np.ndarray:
        return np.array(self._no_prefix_tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _no_prefix_tokenizer(self):
        """Variant of the tokenizer that does not add a space before a text. It encodes text that directly follows
        `[MASK]` or a sentinel and continues the same word.
        """
        return self._plain_text_tokenizer(_without_prefix)

    def _plain_text_tokenizer(self, change: Callable[[dict[str, Any]], None]):
        """Creates a `tokenizers.Tokenizer` that encodes a special token's name in a text, such as `[MASK]`, as plain
        text.

        Args:
          change: function that modifies the parsed tokenizer.json in place before the tokenizer is created.
        """
        import tokenizers

        config = self.config
        change(config)
        vocab = config["model"].get("vocab")
        if isinstance(vocab, list):
            # A unigram model would find special tokens as pieces. Renaming them prevents that.
            hidden = {self.pieces[number] for number in self.special_ids} - set(self._unknown)
            config["model"]["vocab"] = [[f"\uffff{name}" if name in hidden else name, *rest] for name, *rest in vocab]
            config["added_tokens"] = [token for token in config["added_tokens"] if token["content"] not in hidden]
            config["post_processor"] = None  # It refers to the old names.
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(config))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _visible(self, ids: Ids) -> list[int]:
        """Removes the ids that `decode` omits: ids outside the vocabulary, and special tokens such as EOS, but not
        `[MASK]` and sentinels.
        """
        return [int(number) for number in ids if 0 <= number < self.vocab_size and not self._hidden[number]]

    @functools.cached_property
    def _hidden(self) -> np.ndarray:
        hidden = self.is_special.copy()
        hidden[list(self._shown)] = False
        return hidden

    def serialize(self) -> bytes:
        return self._model.encode()

    def files(self) -> dict[str, bytes]:
        roles = {f"{key}_token": name for key, name in self.roles.items()}
        return super().files() | ({ROLES: json.dumps(roles, ensure_ascii=False).encode()} if roles else {})


def _unknown(model: Mapping[str, Any]) -> list[str]:
    """Returns a list with the name of the unknown token, such as [UNK]. Empty if the model has none.

    Args:
      model: the `model` object of a tokenizer.json.
    """
    number, name = model.get("unk_id"), model.get("unk_token")
    return [name] if name else [] if number is None else [model["vocab"][number][0]]


def parts(config: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """Yields components of a tokenizer.json, such as its `normalizer`, as dicts. If a component is a sequence of other
    components, yields each of these instead.

    Args:
      config: parsed content of tokenizer.json.
      names: keys of the components.
    """
    for part in filter(None, map(config.get, names)):
        for several in ("normalizers", "pretokenizers", "decoders", "processors"):
            if several in part:
                yield from (one for item in part[several] for one in parts({"part": item}, "part"))
                break
        else:
            yield part


def _without_prefix(config: dict[str, Any]) -> None:
    for part in parts(config, "pre_tokenizer", "normalizer"):
        if part["type"] == "Metaspace":
            part.pop("add_prefix_space", None)  # Older name of the setting.
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Prepend":
            part.clear()  # Changed in place, because it may be part of a sequence. This Strip does nothing.
            part.update({"type": "Strip", "strip_left": False, "strip_right": False})
