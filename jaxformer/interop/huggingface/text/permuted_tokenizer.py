"""Reorders a tokenizer's vocabulary. The new tokenizer splits texts into the same tokens, but the tokens have other
ids.
"""

import json
from typing import Any

import numpy as np

from jaxformer.data.tokenizers import Tokenizer, training
from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer
from jaxformer.data.tokenizers.marian import MarianTokenizer
from jaxformer.data.tokenizers.sentence_piece import SentencePieceTokenizer
from jaxformer.errors import InputError

PAD = "<pad>"
"""Name that the padding token has in Marian folders. Other programs find the padding token by this name."""


def permuted(tokenizer: Tokenizer, order: np.ndarray) -> Tokenizer:
    """Returns a tokenizer with the same tokens in another order. The padding token is renamed to `<pad>`.

    Args:
      tokenizer: tokenizer to reorder.
      order: Old token ids, in the order of the new ids: the token with the new id i has the old id order[i].

    Raises:
      InputError: If this kind of tokenizer cannot be reordered, or a token other than padding is named `<pad>`.
    """
    pad = tokenizer.pieces[tokenizer.pad_id]
    if pad != PAD and PAD in tokenizer.pieces:
        raise InputError(f"tokenizer: {PAD} is not the padding piece, {pad}; expected only one of them")
    if pad == PAD and np.array_equal(order, np.arange(len(order))):
        return tokenizer
    if isinstance(tokenizer, SentencePieceTokenizer):
        return SentencePieceTokenizer(_sentencepiece(tokenizer.serialize(), order, pad))
    if isinstance(tokenizer, MarianTokenizer):
        source, target, vocab = tokenizer.files().values()
        pieces = json.loads(vocab)
        named = {PAD if tokenizer.pieces[old] == pad else tokenizer.pieces[old]: new for new, old in enumerate(order)}
        if len(named) != len(pieces):
            raise InputError("vocab.json: expected a piece for each id")
        return MarianTokenizer(source, target, json.dumps(named, ensure_ascii=False).encode())
    if isinstance(tokenizer, JsonTokenizer):
        roles = {key: PAD if name == pad else name for key, name in tokenizer.roles.items()}
        return type(tokenizer)(json.dumps(_config(tokenizer.config, order, pad), ensure_ascii=False), roles)
    raise InputError(f"tokenizer: the pieces of a {type(tokenizer).__name__} cannot be reordered")


def _sentencepiece(model: bytes, order: np.ndarray, pad: str) -> bytes:
    proto = training.parsed(model)
    pieces = [proto.pieces[number] for number in order]
    places = {int(old): new for new, old in enumerate(order)}
    result = type(proto).FromString(model)
    del result.pieces[:]
    result.pieces.extend(pieces)
    for piece in result.pieces:
        if piece.piece == pad:
            piece.piece = PAD
    spec = result.trainer_spec
    for name in ("unk_id", "bos_id", "eos_id", "pad_id"):
        if (number := getattr(spec, name)) in places:
            setattr(spec, name, places[number])
    spec.pad_piece = PAD
    return result.SerializeToString()


def _config(config: dict[str, Any], order: np.ndarray, pad: str) -> dict[str, Any]:
    """Reorders the vocabulary in the parsed content of a tokenizer.json. Returns the changed content.

    Args:
      config: content of tokenizer.json.
      order: Old token ids, in the order of the new ids: the token with the new id i has the old id order[i].
      pad: name of the padding token, which is renamed to `<pad>`.
    """
    places = {int(old): new for new, old in enumerate(order)}

    def name(piece: str) -> str:
        return PAD if piece == pad else piece

    model = config["model"]
    if isinstance(model["vocab"], list):
        by_place = {places[number]: [name(piece), *rest] for number, (piece, *rest) in enumerate(model["vocab"])}
        if sorted(by_place) != list(range(len(by_place))):
            raise InputError(
                "tokenizer.json: the padding piece is an added token of a unigram model; expected it in the vocabulary"
            )
        model["vocab"] = [by_place[number] for number in range(len(by_place))]
        model["unk_id"] = places.get(model.get("unk_id"))
    else:
        model["vocab"] = {name(piece): places[number] for piece, number in model["vocab"].items()}
    for token in config["added_tokens"]:
        token |= {"id": places[token["id"]], "content": name(token["content"])}
    config["added_tokens"].sort(key=lambda token: token["id"])
    for special in (config.get("post_processor") or {}).get("special_tokens", {}).values():
        special["ids"] = [places[number] for number in special["ids"]]
    return config
