"""The tokenizer of a small Whisper, and sounds."""

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

RATE, SECONDS = 16_000, 2
"""Sampling rate, and length of a window in seconds."""
FRAMES, MELS = 100 * SECONDS, 16
SPECIAL = ("endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm", "startofprev")
SPECIAL += ("nospeech", "notimestamps")
TEXT = ("hello there, how are you today?", "the press of a button", "please enter your number followed by pound")


def tokenizer_json() -> str:
    """A byte-level BPE with the special tokens of Whisper."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in SPECIAL])
    start, quiet, end = (tokenizer.token_to_id(f"<|{name}|>") for name in (SPECIAL[1], SPECIAL[-1], SPECIAL[0]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftranscript|> <|notimestamps|> $A <|endoftext|>",
        pair="<|startoftranscript|> <|notimestamps|> $A $B <|endoftext|>",
        special_tokens=[("<|startoftranscript|>", start), ("<|notimestamps|>", quiet), ("<|endoftext|>", end)],
    )
    return tokenizer.to_str()


def ids() -> dict[str, int]:
    """The ids of the special tokens, by name without their marks."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json())
    return {name: tokenizer.token_to_id(f"<|{name}|>") for name in SPECIAL}


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A sound of tones and noise, float32 [samples]."""
    rng, times = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    tones = np.sin(2 * np.pi * (300 + 200 * seed) * times * (1 + 0.3 * np.sin(5 * times)))
    return (0.3 * tones * (times % 0.5) + 0.02 * rng.normal(size=len(times))).astype(np.float32)
