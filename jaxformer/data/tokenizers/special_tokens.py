"""Names of the special tokens, in vocabularies trained by this library and in those of other model families."""

PAD, UNK, CLS, SEP, MASK = SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# Names of special tokens in the vocabularies of the BERT, ALBERT, RoBERTa, T5, GPT and LLaMA families. In vocabularies
# trained by this library, [CLS] and [SEP] also serve as BOS and EOS.
NAMES = {
    "pad": (PAD, "<pad>"),
    "unk": (UNK, "<unk>"),
    "cls": (CLS, "<cls>", "<s>"),
    "sep": (SEP, "<sep>", "</s>"),
    "mask": (MASK, "<mask>"),
    "bos": ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", CLS, "<cls>"),
    "eos": ("</s>", "<eos>", "[EOS]", "<|end_of_text|>", "<|endoftext|>", SEP, "<sep>"),
}


def sentinel(number: int) -> str:
    """Returns the name of sentinel token `number`, such as `<extra_id_0>`. In span corruption, a sentinel replaces a
    hidden span (Raffel et al. 2020).
    """
    return f"<extra_id_{number}>"


def sentinels(ids: dict[str, int]) -> list[int]:
    """Returns the ids of sentinels 0, 1, 2, ..., ending before the first one that is not in the vocabulary.

    Args:
      ids: maps vocabulary entries to ids.
    """
    found = []
    while (name := sentinel(len(found))) in ids:
        found.append(ids[name])
    return found


def special(ids: dict[str, int]) -> list[int]:
    """Returns the ids of all special tokens, including sentinels, that are in the vocabulary, without duplicates.

    Args:
      ids: maps vocabulary entries to ids.
    """
    names = [name for names in NAMES.values() for name in names]
    return list(dict.fromkeys([ids[name] for name in names if name in ids] + sentinels(ids)))
