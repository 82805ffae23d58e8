"""Random augmentation of tokenized text."""

import dataclasses

import numpy as np

from jaxformer import fields
from jaxformer.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextAugmentation:
    """Random text augmentation: word deletion and swaps (Wei & Zou 2019), and token dropout (Bowman et al. 2016)."""

    deletion: float = 0.0
    """Probability of deleting a word. At least one word is kept."""
    swap: float = 0.0
    """Average number of swaps of two random words, divided by the number of words in the text."""
    dropout: float = 0.0
    """Probability of replacing a token by the unknown token."""

    def __post_init__(self):
        for name in ("deletion", "swap", "dropout"):
            fields.within(f"data.task.augmentation.{name}", getattr(self, name), 0, 1, below=True)

    def __call__(self, tokens: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> np.ndarray:
        """Augments the tokens of a text, int32 [tokens]. Returns the new tokens, int32, at least one and at most as
        many as before.
        """
        words = np.split(tokens, np.flatnonzero(tokenizer.word_start[tokens[1:]]) + 1)
        if self.deletion:
            kept = rng.random(len(words)) >= self.deletion
            kept[rng.integers(len(words))] |= not kept.any()
            words = [word for word, keep in zip(words, kept, strict=True) if keep]
        if len(words) > 1:
            for _ in range(rng.binomial(len(words), self.swap)):
                one, other = rng.choice(len(words), 2, replace=False)
                words[one], words[other] = words[other], words[one]
        tokens = np.concatenate(words)
        if self.dropout:
            tokens = np.where(rng.random(len(tokens)) < self.dropout, np.int32(tokenizer.unk_id), tokens)
        return tokens
