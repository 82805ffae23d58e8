"""Converts SentencePiece models (Kudo & Richardson 2018) to a tokenizer.json for the `tokenizers` library. Token ids do
not change.

The `tokenizers` library applies the character replacements of a SentencePiece model (its normalization table) to whole
graphemes, and may drop the end of a grapheme. Therefore texts are first normalized to Unicode NFKC. The result is the
same as that of SentencePiece's standard table `nmt_nfkc`, except for texts with combining marks that are not in
canonical order or that follow a replaced character, such as a ligature.
"""

import unicodedata
from typing import Any

from jaxformer.data.tokenizers import training
from jaxformer.data.tokenizers.sentence_piece import SPACE
from jaxformer.errors import InputError

STAND_INS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Characters that temporarily replace characters which normalization must not change. They are Unicode noncharacters,
which do not occur in texts.
"""


def to_json_tokenizer(model: bytes) -> Any:
    """Converts a SentencePiece model to a `tokenizers.Tokenizer`. Control symbols become special tokens.

    Raises:
      InputError: If the `tokenizers` library does not support this kind of model.
    """
    import tokenizers

    proto = training.parsed(model)
    kinds = {proto.trainer_spec.UNIGRAM: _unigram, proto.trainer_spec.BPE: _bpe}
    if proto.trainer_spec.model_type not in kinds or proto.trainer_spec.treat_whitespace_as_suffix:
        raise InputError("unsupported SentencePiece model; expected unigram or BPE with spaces before words")
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
    """Converts a SentencePiece BPE model (the protobuf `proto`) to the BPE model of the `tokenizers` library. Every
    split of a vocabulary entry into two other entries becomes a merge. Merges are ordered by the score of the entry
    that they result in, highest first.
    """
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
    """Adds the normalizer, pre-tokenizer and decoder of the SentencePiece model `proto` to a tokenizer of the
    `tokenizers` library.
    """
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers

    spec, steps = proto.normalizer_spec, _characters(proto)
    prefix = "first" if spec.add_dummy_prefix else "never"
    if spec.remove_extra_whitespaces:
        # A space at the start merges with the dummy prefix.
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
    """Returns the steps of a `tokenizers` normalizer that replace characters in the same way as the normalization table
    of a SentencePiece model (`proto`). Returns an empty list if the model has no table.
    """
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
    # The rules of NMT keep the fullwidth tilde.
    others = [one for one in changed if given(one) != wanted(one)]
    kept = [one for one in others if wanted(one) == one]
    if len(kept) < len(others) or len(kept) > len(STAND_INS):
        return [normalizers.NFC(), steps[-1]]
    pairs = list(zip(kept, STAND_INS, strict=False))
    hidden = [normalizers.Replace(one, other) for one, other in pairs]
    return hidden + steps + [normalizers.Replace(other, one) for one, other in pairs]


def _native(proto: Any):
    """Returns a function from text to text: the normalization that the SentencePiece library performs for the model
    `proto`, except that spaces are not changed.
    """
    import sentencepiece

    copy = type(proto).FromString(proto.SerializeToString())
    spec = copy.normalizer_spec
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = spec.escape_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=copy.SerializeToString()).normalize
