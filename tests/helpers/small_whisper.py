"""A small Whisper with its tokenizer, as a folder of the transformers library, and sounds."""

import json
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from jaxformer.data.fields.sound import write_wav

RATE, SECONDS = 16_000, 2
"""Sampling rate, and length of a window in seconds."""
FRAMES, LENGTH, MELS = 100 * SECONDS, 80, 16
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


def generation(multilingual: bool) -> dict:
    """The settings of generation of a folder."""
    numbers = ids()
    found = {
        "is_multilingual": multilingual,
        "no_timestamps_token_id": numbers["notimestamps"],
        "max_initial_timestamp_index": 50,
        "max_length": LENGTH,
        "suppress_tokens": [3, 5],
        "begin_suppress_tokens": [7, numbers["endoftext"]],
        "decoder_start_token_id": numbers["startoftranscript"],
        "eos_token_id": numbers["endoftext"],
        "pad_token_id": numbers["endoftext"],
        "bos_token_id": numbers["endoftext"],
        "alignment_heads": [[1, 0], [1, 1]],
        "return_timestamps": False,
    }
    if multilingual:
        found |= {"lang_to_id": {"<|en|>": numbers["en"], "<|de|>": numbers["de"]}, "task": "transcribe"}
        found |= {"task_to_id": {"transcribe": numbers["transcribe"], "translate": numbers["translate"]}}
        found |= {"prev_sot_token_id": numbers["startofprev"]}
    return found


def saved(folder: Path, multilingual: bool = False) -> Path:
    """Writes a model of the transformers library with random weights, whose outputs are sharp."""
    import torch
    import transformers
    from hf_weights import redraw

    numbers = ids()
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), numbers["endoftext"])
    config = transformers.WhisperConfig(
        vocab_size=numbers["notimestamps"] + 2 + FRAMES // 2,
        num_mel_bins=MELS,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        d_model=16,
        max_source_positions=FRAMES // 2,
        max_target_positions=LENGTH,
        decoder_start_token_id=numbers["startoftranscript"],
        begin_suppress_tokens=None,
        **special,
    )
    torch.manual_seed(1)  # For the decoder's positions, which `redraw` keeps.
    network = transformers.WhisperForConditionalGeneration(config)
    redraw(network, seed=1, size=0.4)
    network.generation_config = transformers.GenerationConfig(**generation(multilingual))
    network.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=SECONDS)
    extractor.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    settings = {"tokenizer_class": "WhisperTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A sound of tones and noise, float32 [samples]."""
    rng, times = np.random.default_rng(seed), np.arange(round(seconds * RATE)) / RATE
    tones = np.sin(2 * np.pi * (300 + 200 * seed) * times * (1 + 0.3 * np.sin(5 * times)))
    return (0.3 * tones * (times % 0.5) + 0.02 * rng.normal(size=len(times))).astype(np.float32)


def wav(path: Path, seconds: float, seed: int = 0) -> str:
    """Writes a sound to a file. Returns its path."""
    write_wav(path, sound(seconds, seed), RATE)
    return str(path)
