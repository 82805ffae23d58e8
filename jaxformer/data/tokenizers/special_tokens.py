"""The names of special tokens, in the vocabularies made here and in those of other families."""

PAD, UNK, CLS, SEP, MASK = SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

# By these names vocabularies of the BERT, ALBERT, RoBERTa, T5, GPT and LLaMA families call them. A vocabulary made here
# begins and ends a text with the tokens that begin and end a sentence.
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
    """The name of a sentinel of span corruption, which stands for one span (Raffel et al. 2020)."""
    return f"<extra_id_{number}>"


def sentinels(ids: dict[str, int]) -> list[int]:
    """The ids of the sentinels 0, 1, 2, ... that a vocabulary (ids by piece) has, up to the first that it lacks."""
    found = []
    while (name := sentinel(len(found))) in ids:
        found.append(ids[name])
    return found


def special(ids: dict[str, int]) -> list[int]:
    """The ids of all special pieces that a vocabulary (ids by piece) has, sentinels included; each once."""
    names = [name for names in NAMES.values() for name in names]
    return list(dict.fromkeys([ids[name] for name in names if name in ids] + sentinels(ids)))
