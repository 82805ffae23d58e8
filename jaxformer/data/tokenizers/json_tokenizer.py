"""A `tokenizer.json` of the `tokenizers` library, whatever its model; subclasses say how its pieces spell words."""

import abc
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.tokenizers.template import Template, template_of
from jaxformer.data.tokenizers.tokenizer import Tokenizer, without_spaces

ROLES = "special_tokens_map.json"
"""Name of the file beside tokenizer.json that says which tokens are special for what, as transformers writes it."""


class JsonTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, without special tokens around a text; use one of its subclasses."""

    file = "tokenizer.json"

    def __init__(self, model: str, roles: Mapping[str, str] | None = None):
        """`roles`: the special tokens whose names do not show their role: `{"eos": "<|im_end|>"}`."""
        import tokenizers

        self._model = model
        self._tokenizer = tokenizers.Tokenizer.from_str(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [""] * (max(ids.values(), default=-1) + 1)
        for piece, number in ids.items():
            pieces[number] = piece
        self._unknown = _unknown(self.config["model"])
        special = [token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special]
        # A vocabulary may have a word of such a name, as Qwen's have `<s>`, where the special tokens are others.
        super().__init__(pieces, self._starts(pieces), roles, [*special, *self._unknown], by_name=not special)
        self._encoder = self._of_text(lambda config: None)

    def __reduce__(self):
        return type(self), (self._model, self.roles)

    @property
    def config(self) -> dict[str, Any]:
        """The content of the tokenizer.json."""
        return json.loads(self._model)

    @functools.cached_property
    def own_template(self) -> Template | None:
        return template_of(self.config.get("post_processor"))

    @abc.abstractmethod
    def _starts(self, pieces: list[str]) -> np.ndarray:
        """bool [vocab]: does the piece begin a word?"""

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._encoder.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self._encoder.encode(text, add_special_tokens=False)
        return np.array(encoded.ids, np.int32), without_spaces(text, encoded.offsets)

    def _encode_continuation(self, text: str) -> np.ndarray:
        return np.array(self._continuing.encode(text, add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _continuing(self):
        """The same without the space that some write before every text."""
        return self._of_text(_without_prefix)

    def _of_text(self, change: Callable[[dict[str, Any]], None]):
        """The `tokenizers.Tokenizer` of a changed config, for which special tokens spelt out in a text are text."""
        import tokenizers

        config = self.config
        change(config)
        vocab = config["model"].get("vocab")
        if isinstance(vocab, list):
            # A unigram model would find them as pieces; by these names it does not.
            hidden = {self.pieces[number] for number in self.special_ids} - set(self._unknown)
            config["model"]["vocab"] = [[f"\uffff{name}" if name in hidden else name, *rest] for name, *rest in vocab]
            config["added_tokens"] = [token for token in config["added_tokens"] if token["content"] not in hidden]
            config["post_processor"] = None  # It names them.
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(config))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _visible(self, ids: Sequence[int]) -> list[int]:
        """The ids that `decode` shows something of."""
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
    """The piece for what the model has no piece for, if there is one."""
    number, name = model.get("unk_id"), model.get("unk_token")
    return [name] if name else [] if number is None else [model["vocab"][number][0]]


def parts(config: Mapping[str, Any], *names: str) -> Iterator[dict[str, Any]]:
    """The components of a tokenizer.json, such as of its `normalizer`, those of a sequence one by one."""
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
            part.pop("add_prefix_space", None)  # Its older name.
            part["prepend_scheme"] = "never"
        elif part["type"] == "ByteLevel":
            part["add_prefix_space"] = False
        elif part["type"] == "Prepend":
            part.clear()  # In place, for it may be one of a sequence: what nothing is left of.
            part.update({"type": "Strip", "strip_left": False, "strip_right": False})
