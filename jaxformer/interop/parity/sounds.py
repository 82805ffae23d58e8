"""Compares the transcriptions that a run computes for audio files with those of the transformers library, which loads
the exported or imported folder.
"""

import dataclasses
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from jaxformer.data.fields.sound import write_wav
from jaxformer.data.sources.sounds import read_sound
from jaxformer.interop.parity.compare import on_cpu, reading
from jaxformer.interop.parity.lines import Line
from jaxformer.interop.parity.sides import Sides, line
from jaxformer.objectives.ctc import Ctc
from jaxformer.runs.run import Run

LENGTHS = (0.95, 0.6)
"""Durations of the generated test sounds, as fractions of the audio length that the model takes as input (30 seconds in
Whisper). They are below 1, because the last frame of a sound that fills this length differs slightly: the feature
extractor of the transformers library mirrors the sound at its end.
"""
SECONDS = (1.3, 0.7)
"""Durations in seconds of the generated test sounds for models that read sounds of any length."""
NEW = 64
"""Maximum number of tokens to generate for a test sound."""


def compare_transcripts(sides: Sides) -> Iterator[Line]:
    """Compares the run with the transformers library for test sounds: the log-mel features, and the tokens that are
    generated from them with and without timestamps. Yields three entries of the parity certificate.
    """
    rate = 16_000
    with reading("the feature extractor"):
        extract = transformers.AutoFeatureExtractor.from_pretrained(sides.folder, local_files_only=True)
    network, window = sides.network(transformers.AutoModelForSpeechSeq2Seq), sides.run.model.frames / 100
    with tempfile.TemporaryDirectory() as home:
        paths = [_sound(Path(home, f"{number}.wav"), window * share, rate) for number, share in enumerate(LENGTHS)]
        given = [extract(read_sound(path, rate), sampling_rate=rate, return_tensors="pt") for path in paths]
        with on_cpu():
            ours = list(sides.run.encode(paths)["log_mel"])
        yield line("features", f"{len(paths)} sounds", ours, [one.input_features[0].numpy().T for one in given])
        for timestamps in (False, True):
            run = _greedy(sides.run, timestamps)
            predictor: Any = run.predictor  # A `Transcriber`.
            with on_cpu():
                attempts = predictor.first_windows(run.prepare_requests(paths))
            mine = [_spoken(attempt.tokens, network.generation_config) for attempt in attempts]
            theirs = [_generated(network, one.input_features, timestamps) for one in given]
            wrong = sum(one != other for one, other in zip(mine, theirs, strict=True))
            where = f"{len(paths)} sounds, {'with' if timestamps else 'without'} timestamps"
            note = f"{mine} here, {theirs} in PyTorch"[:300] if wrong else "all tokens are equal"
            yield Line("speech", where, float(wrong), 0.0, note)


def compare_spellings(sides: Sides) -> Iterator[Line]:
    """Compares the texts that a run with CTC and the transformers library spell for test sounds, without a beam search,
    and the waveforms that are prepared for them. Yields two entries of the parity certificate.
    """
    search = dataclasses.replace(sides.objective(Ctc).search, num_beams=1, language_model="")
    rate, sides = 16_000, sides.with_objective(search=search)
    with reading("the processor"):
        processor: Any = transformers.AutoProcessor.from_pretrained(sides.folder, local_files_only=True)
    network, special = sides.network(transformers.AutoModelForCTC), set(processor.tokenizer.all_special_tokens)
    with tempfile.TemporaryDirectory() as home:
        paths = [_sound(Path(home, f"{number}.wav"), seconds, rate) for number, seconds in enumerate(SECONDS)]
        given = [processor(read_sound(path, rate), sampling_rate=rate, return_tensors="pt") for path in paths]
        with on_cpu():
            arrays = sides.run.encode(paths)
        answers = sides.predict(paths)
    ours = [samples[mask > 0] for samples, mask in zip(arrays["samples"], arrays["sample_mask"], strict=True)]
    theirs = [one.input_values[0].numpy() for one in given]
    yield line("features", f"{len(paths)} sounds", list(np.concatenate(ours)), list(np.concatenate(theirs)))
    texts = []
    for one in given:
        with torch.no_grad():
            text = processor.tokenizer.decode(network(**one).logits[0].argmax(-1))
        for name in special - {"|"}:
            text = text.replace(name, "")
        texts.append(" ".join(text.split()))
    mine = [answer.text for answer in answers]
    wrong = sum(one != other for one, other in zip(mine, texts, strict=True))
    note = f"{mine} here, {texts} in PyTorch"[:300] if wrong else "all texts are equal"
    yield Line("speech", f"{len(paths)} sounds", float(wrong), 0.0, note)


def _greedy(run: Run, timestamps: bool) -> Run:
    """Returns a copy of the run that decodes greedily, accepts every output (no temperature fallback or silence
    detection), and generates timestamps if `timestamps` is True.
    """
    changes: dict[str, Any] = {"timestamps": timestamps, "temperatures": (0.0,), "word_times": False}
    changes |= dict.fromkeys(("compression_ratio", "log_probability", "no_speech"))
    run = run.with_decoding(max_new_tokens=_room(run.model.max_length), num_beams=1, temperature=0.0)
    return run.with_transcribing(**changes)


def _room(longest: int) -> int:
    return min(NEW, longest - 4)  # A prefix has up to four tokens.


def _generated(network: Any, features: torch.Tensor, timestamps: bool) -> list[int]:
    """Generates the tokens of one sound with the transformers library. Returns the ids of text tokens and timestamps,
    without the start tokens and the end token.
    """
    most = _room(network.config.max_target_positions)
    settings: dict[str, Any] = {"return_timestamps": timestamps, "do_sample": False, "num_beams": 1}
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        output = network.generate(features, max_new_tokens=most, force_unique_generate_call=True, **settings)
    return _spoken(output[0].tolist(), network.generation_config)


def _spoken(tokens: Sequence[int], config: Any) -> list[int]:
    """Returns the ids of text tokens and timestamps, without other special tokens. `config` is the generation config of
    Whisper.
    """
    return [token for token in tokens if token < config.eos_token_id or token > config.no_timestamps_token_id]


def _sound(path: Path, seconds: float, rate: int) -> str:
    """Writes a WAV file with a generated sound of falling tones and noise. `seconds` is its length and `rate` the
    sampling rate. Returns its path as a string.
    """
    rng, times = np.random.default_rng(round(10 * seconds)), np.arange(round(seconds * rate)) / rate
    tones = np.sin(2 * np.pi * 900 * np.exp(-times) * times) * np.exp(-3 * (times % 0.3))
    write_wav(path, 0.4 * tones + 0.02 * rng.normal(size=len(times)), rate)
    return str(path)
