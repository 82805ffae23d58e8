"""Texts changed at random, so that training sees few of them twice."""

import dataclasses

import numpy as np

from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class TextAugmentation:
    """Random deletion and swap of words (Wei & Zou 2019), and dropout of tokens (Bowman et al. 2016)."""

    deletion: float = 0.0
    """Probability of each word to be left out; one stays always."""
    swap: float = 0.0
    """Swaps of two words at random, as a share of the number of words."""
    dropout: float = 0.0
    """Probability of each token to become the unknown one."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if not 0 <= (rate := getattr(self, field.name)) < 1:
                raise InputError(f"task.augmentation.{field.name} {rate}: must be 0 or more, below 1")

    def __call__(self, tokens: np.ndarray, tokenizer: Tokenizer, rng: np.random.Generator) -> np.ndarray:
        """Tokens int32 [n] as this visit sees them: int32 [m], m from 1 to n; all of it is the generator's choice."""
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
