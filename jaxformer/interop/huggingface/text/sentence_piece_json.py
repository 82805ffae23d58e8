"""A SentencePiece model (Kudo & Richardson 2018) as a tokenizer.json of the `tokenizers` library, with the same ids.

The library applies a model's table of normalization by graphemes, and may drop their ends, so texts are
brought into their compatibility form (NFKC) first. That is what the table of `nmt_nfkc` does to all but texts whose
combining marks are not in canonical order or follow a sign that is itself replaced, such as a ligature.
"""

import unicodedata
from typing import Any

from jaxformer.data.tokenizers.sentence_piece import SPACE
from jaxformer.errors import InputError

STAND_INS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that no text has: Unicode keeps them free."""


def to_json_tokenizer(model: bytes) -> Any:
    """The `tokenizers.Tokenizer` of a SentencePiece model; control symbols are special tokens of it.

    Raises:
        InputError: a kind of model that the library does not have.
    """
    import tokenizers
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    kinds = {proto.trainer_spec.UNIGRAM: _unigram, proto.trainer_spec.BPE: _bpe}
    if proto.trainer_spec.model_type not in kinds or proto.trainer_spec.treat_whitespace_as_suffix:
        raise InputError("the SentencePiece model is neither unigram nor BPE with spaces before words; expected one")
    tokenizer = tokenizers.Tokenizer(kinds[proto.trainer_spec.model_type](proto))
    _surround(tokenizer, proto)
    known = proto.SentencePiece
    for kind, special in ((known.USER_DEFINED, False), (known.CONTROL, True), (known.UNKNOWN, True)):
        pieces = [piece.piece for piece in proto.pieces if piece.type == kind]
        tokens = [tokenizers.AddedToken(piece, special=special, normalized=False) for piece in pieces]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)
    return tokenizer


def _unigram(proto):
    import tokenizers

    vocab = [(piece.piece, piece.score) for piece in proto.pieces]
    return tokenizers.models.Unigram(vocab, proto.trainer_spec.unk_id, proto.trainer_spec.byte_fallback)


def _bpe(proto):
    """Its merges: each division of a piece into two, the pieces by score."""
    import tokenizers

    normal = [piece for piece in proto.pieces if piece.type == proto.SentencePiece.NORMAL]
    names = {piece.piece for piece in normal}
    merges = []
    for piece in sorted(normal, key=lambda piece: -piece.score):
        divisions = ((piece.piece[:at], piece.piece[at:]) for at in range(1, len(piece.piece)))
        merges += [(left, right) for left, right in divisions if left in names and right in names]
    return tokenizers.models.BPE(
        {piece.piece: number for number, piece in enumerate(proto.pieces)},
        merges,
        unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )


def _surround(tokenizer: Any, proto: Any) -> None:
    """The changes of a text before the model, and of pieces after it."""
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    spec, steps = proto.normalizer_spec, _characters(proto)
    prefix = "first" if spec.add_dummy_prefix else "never"
    if spec.remove_extra_whitespaces:
        # A space at the beginning becomes the one that is written there anyway.
        outer = r" +\z" if spec.add_dummy_prefix else r"\A +| +\z"
        steps += [normalizers.Replace(Regex(outer), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        inside = any(SPACE in piece.piece[1:] for piece in proto.pieces if piece.type == proto.SentencePiece.NORMAL)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=prefix, split=not inside)
    else:
        steps += [normalizers.Prepend(SPACE)] if spec.add_dummy_prefix else []
        steps += [normalizers.Replace(" ", SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    if proto.trainer_spec.byte_fallback:
        ends = [decoders.Strip(" ", 1, 0)] if spec.add_dummy_prefix else []
        several = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
        tokenizer.decoder = decoders.Sequence(several)
    else:
        scheme = "always" if spec.add_dummy_prefix else "never"
        tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme=scheme)


def _characters(proto: Any) -> list[Any]:
    """The normalization of characters."""
    from tokenizers import normalizers

    table, name = proto.normalizer_spec.precompiled_charsmap, proto.normalizer_spec.name
    if not table:
        return []
    steps = [normalizers.Precompiled(table)]
    if "nfkc" not in name:
        return steps
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if name.endswith("_cf") else []), *steps]
    wanted, given = _native(proto), normalizers.Sequence(steps).normalize_str
    every = (chr(code) for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000)
    changed = [one for one in every if unicodedata.normalize("NFKC", one) != one or one.lower() != one]
    # NMT's rules keep the fullwidth tilde.
    others = [one for one in changed if given(one) != wanted(one)]
    kept = [one for one in others if wanted(one) == one]
    if len(kept) < len(others) or len(kept) > len(STAND_INS):
        return [normalizers.NFC(), steps[-1]]
    pairs = list(zip(kept, STAND_INS, strict=False))
    hidden = [normalizers.Replace(one, other) for one, other in pairs]
    return hidden + steps + [normalizers.Replace(other, one) for one, other in pairs]


def _native(proto: Any):
    """SentencePiece's own normalization, of characters alone."""
    import sentencepiece

    copy = type(proto).FromString(proto.SerializeToString())
    spec = copy.normalizer_spec
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = spec.escape_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=copy.SerializeToString()).normalize
