"""Deterministic training of SentencePiece models, WordPiece vocabularies and byte-level BPE."""

import collections
import functools
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from jaxformer.data.messages import note
from jaxformer.data.sources.columns import check_text, sentences, strings
from jaxformer.data.sources.sources import record, skippable
from jaxformer.data.tokenizers import special_tokens
from jaxformer.data.tokenizers.special_tokens import CLS, MASK, PAD, SEP, SPECIALS, UNK
from jaxformer.errors import InputError
from jaxformer.progress import phase

_ALPHABET = 1000  # Maximum number of characters in a WordPiece vocabulary.
_LONGEST_SENTENCE = 65_536  # Maximum length of a sentence in bytes.


@phase("training the tokenizer")
def train_sentencepiece(
    documents: Sequence[dict[str, Any]],
    sample: int,
    vocab: int,
    model_type: str,
    lowercase: bool,
    sentinels: int = 0,
) -> bytes:
    """Trains a SentencePiece model with `vocab` entries (Kudo & Richardson 2018), and returns it in serialized form.

    Special tokens have the first ids, and sentinels the last ones. If the text has too few different entries, the
    vocabulary is smaller and a note is printed. `sample` is the maximum number of documents to use.

    Raises:
      InputError: If the text has more distinct characters than fit in `vocab` entries, or no characters.
    """
    train = functools.partial(
        _sentencepiece,
        model_type=model_type,
        vocab_size=vocab - sentinels,
        normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
    )
    try:
        model = train(texts(documents, sample))
    except RuntimeError as error:
        if "too high" not in str(error):
            raise InputError(_too_low(vocab, sentinels, str(error))) from error
        # Only as a second attempt: without the hard limit, a text with enough pieces could get different ones.
        model = train(texts(documents, sample), hard_vocab_limit=False)
    model = with_sentinels(model, sentinels) if sentinels else model
    if (size := _pieces(model)) < vocab:
        note(f"tokenizer.vocab={vocab}: the text has fewer different pieces; the vocabulary has {size}")
    return model


def _sentencepiece(found: Iterator[str], **settings: Any) -> bytes:
    """Trains a SentencePiece model on an iterator of texts, and returns it in serialized form. `settings` are options
    of the SentencePiece trainer.

    Raises:
      RuntimeError: If SentencePiece fails.
      InputError: If the iterator raised it while reading the texts.
    """
    import sentencepiece

    model, failed = io.BytesIO(), []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_kept_error(found, failed),
            model_writer=model,
            max_sentence_length=_LONGEST_SENTENCE,
            pad_id=0,
            pad_piece=PAD,
            unk_id=1,
            unk_piece=UNK,
            bos_id=-1,
            eos_id=-1,
            control_symbols=[CLS, SEP, MASK],
            num_threads=1,  # More threads sum in a different order, which gives a different model.
            minloglevel=2,
            **settings,
        )
    except RuntimeError as error:
        if failed:
            raise failed[0] from None
        raise RuntimeError(reason(error)) from error
    return model.getvalue()


def _too_low(vocab: int, sentinels: int, message: str) -> str:
    """Returns the error message for a vocabulary that is too small for SentencePiece training. If SentencePiece's own
    `message` names the required size, so does the result.
    """
    without = f" ({vocab - sentinels} without its sentinels)" if sentinels else ""
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        needed = int(found[1]) + sentinels
        return f"tokenizer.vocab={vocab}{without}: the text's characters alone need {needed}; expected {needed} or more"
    return f"tokenizer.vocab={vocab}{without}: SentencePiece cannot train it on this text: {message.split('] ')[-1]}"


def parsed(model: bytes) -> Any:
    """Parses a serialised SentencePiece model into a protocol buffer."""
    from sentencepiece import sentencepiece_model_pb2

    # The module makes its classes when it is imported.
    return sentencepiece_model_pb2.ModelProto.FromString(model)  # pyright: ignore[reportAttributeAccessIssue]


def _pieces(model: bytes) -> int:
    return len(parsed(model).pieces)


def with_sentinels(model: bytes, count: int) -> bytes:
    """Appends `count` sentinel tokens to the vocabulary of a serialized SentencePiece model, and returns the new model.

    Their order is descending: sentinel 0 has the last id (Raffel et al. 2020).
    """
    return with_pieces(model, [special_tokens.sentinel(number) for number in reversed(range(count))])


def with_pieces(model: bytes, names: Sequence[str]) -> bytes:
    """Appends entries to the vocabulary of a serialized SentencePiece model, and returns the new model.

    The new entries are control symbols, so encoding a text never produces them.
    """
    proto = parsed(model)
    for name in names:
        proto.pieces.add(piece=name, score=0.0, type=proto.SentencePiece.CONTROL)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return proto.SerializeToString()


def wordpiece(vocab: dict[str, int], lowercase: bool, unk: str = UNK, **normalizer: Any):
    """Creates a `tokenizers.Tokenizer` that works like BERT's WordPiece tokenizer.

    Args:
      vocab: maps vocabulary entries to ids.
      lowercase: whether to convert text to lower case and strip accents.
      unk: name of the unknown token.
      normalizer: further options of `tokenizers.normalizers.BertNormalizer`.
    """
    import tokenizers

    model = tokenizers.models.WordPiece(vocab, unk_token=unk, max_input_chars_per_word=100)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lowercase, **normalizer)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    return tokenizer


@phase("training the tokenizer")
def train_wordpiece(documents: Sequence[dict[str, Any]], sample: int, vocab: int, lowercase: bool) -> dict[str, int]:
    """Trains a WordPiece vocabulary (Devlin et al. 2019). Returns a dict that maps vocabulary entries to ids, in which
    special tokens have the first ids.

    Args:
      documents: documents to train on, each a dict of columns.
      sample: maximum number of documents to use.
      vocab: maximum number of vocabulary entries.
      lowercase: whether to convert text to lower case and strip accents.
    """
    import tokenizers

    tokenizer = wordpiece({}, lowercase)
    counts = collections.Counter()
    for text in texts(documents, sample):
        counts.update("".join(tokenizer.normalizer.normalize_str(text).split()))
    alphabet = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:_ALPHABET]
    # The trainer orders the characters that continue a word by a hash table, and breaks ties by id. Passing them as
    # special tokens fixes their order, which makes the vocabulary deterministic.
    continuations = ["##" + character for character in alphabet]
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab,
        special_tokens=SPECIALS + continuations,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(documents, sample), trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def vocab_of_lines(content: bytes) -> dict[str, int]:
    """Parses the content of a vocab.txt, which has one vocabulary entry per line, into a dict that maps entries to ids
    (line numbers from 0).
    """
    # Not `splitlines`: some pieces are Unicode line separators.
    lines = content.decode(errors="replace").removesuffix("\n").split("\n")
    return {piece.removesuffix("\r"): number for number, piece in enumerate(lines)}


def byte_level(vocab: dict[str, int], merges: list[tuple[str, str]], prefix: bool = False):
    """Creates a `tokenizers.Tokenizer` that works like GPT-2's byte-level BPE tokenizer.

    Args:
      vocab: maps vocabulary entries to ids.
      merges: pairs of vocabulary entries to merge, in order of priority.
      prefix: whether to add a space before every text.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    names = [name for names in special_tokens.NAMES.values() for name in names]
    tokenizer.add_special_tokens([name for name in dict.fromkeys(names) if name in vocab])
    return tokenizer


@phase("training the tokenizer")
def train_byte_level(documents: Sequence[dict[str, Any]], sample: int, vocab: int):
    """Trains a byte-level BPE tokenizer (Radford et al. 2019), and returns it as a `tokenizers.Tokenizer`. Special
    tokens have the first ids, followed by the 256 bytes.

    Args:
      documents: documents to train on, each a dict of columns.
      sample: maximum number of documents to use.
      vocab: maximum number of vocabulary entries.
    """
    import tokenizers

    tokenizer = byte_level({}, [])
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(documents, sample), trainer)
    return tokenizer


def texts(documents: Sequence[dict[str, Any]], sample: int) -> Iterator[str]:
    """Yields the texts of at most `sample` documents. If there are more, documents at equal intervals are used. A
    document may have several texts, such as its sentences.
    """
    count = min(len(documents), sample)
    for number in range(count):
        index = number * len(documents) // count
        found: list[str] = []
        with skippable(documents, index):
            found = _example_texts(record(documents, index))
        yield from found


def _kept_error(found: Iterator[str], failed: list[InputError]) -> Iterator[str]:
    """Yields the texts of `found`. If reading a text raises InputError, appends the error to `failed` before raising it
    again.

    SentencePiece, which reads this iterator, replaces the error by a RuntimeError. The caller then raises the error in
    `failed` instead.
    """
    try:
        yield from found
    except InputError as error:
        failed.append(error)
        raise


def _example_texts(example: dict[str, Any]) -> list[str]:
    """Returns the texts of a document to train a tokenizer on: its sentences, or if it has a list of words, these
    joined by spaces.

    If it has neither, returns the values of all its text columns, such as both languages of a translation pair, and the
    contents of the messages of dialogues.
    """
    if "sentences" in example or "text" in example:
        return sentences(example)
    if isinstance(example.get("words"), list):
        return [" ".join(strings(example, "words", "data.task.words"))]
    found = [(name, value) for name, value in example.items() if isinstance(value, str) and value.strip()]
    for name, value in found:
        check_text(value, f"column {name!r}")
    return [value for _, value in found] + [content for value in example.values() for content in _contents(value)]


def _contents(value: Any) -> list[str]:
    """Returns the contents of messages, in the forms that the task `Dialogue` reads: a list of dicts with the key
    `content`, or a dict with a list under this key. Empty for another value.
    """
    if isinstance(value, list | tuple):
        found = [message.get("content") for message in value if isinstance(message, dict)]
    else:
        found = value.get("content") if isinstance(value, dict) else []
    contents = [content for content in found if isinstance(content, str)] if isinstance(found, list) else []
    for content in contents:
        check_text(content, "the content of a message")
    return contents


def reason(error: Exception) -> str:
    """Returns the message of an exception, with line breaks and repeated spaces replaced by single spaces."""
    return " ".join(str(error).split())
