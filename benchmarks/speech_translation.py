"""Translation of speech by one model and by a cascade of two, on the same held-out verses: BLEU and chrF in one table.

    python train.py configs/speech_translation.py --workdir runs/speech_translation
    python train.py configs/translation_quickstart.py --data.task.inputs de --data.task.targets en --workdir runs/de_en
    python benchmarks/speech_translation.py runs/speech_translation runs/de_en

The direct model translates each sound by its token of the task. In the cascade, the recognizer, which is by default the
same run, transcribes it, and the second run translates the transcript, as `jaxformer assistant --listen RUN --think
RUN` does for one sound. The last row shows what the second run makes of
the true transcripts, without errors of recognition. The goal is a BLEU of 8 for the better of the first two.
"""

import argparse
import sys
import time
from typing import Any

from turns import conclude

GOAL = 8.0
"""BLEU that the direct model or the cascade should have."""


def held_out(split: str, count: int) -> list[dict[str, Any]]:
    """The first verses of a split of `spoken_bible/de-en-10h-short`, which are in books that no run has seen."""
    import jaxformer as jf

    found = jf.data.Tfds("spoken_bible/de-en-10h-short", split=split).open()
    return [found[index] for index in range(min(count, len(found)))]


def translated(run, texts: list[str]) -> list[str]:
    """Texts translated by a run. An empty text, in which nothing was recognized, stays empty."""
    answers = iter(run.predict([text for text in texts if text.strip()]))
    return [next(answers).answer if text.strip() else "" for text in texts]


def main() -> int:
    """Runs the program. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("direct", metavar="DIRECT", help="a run of configs/speech_translation.py")
    parser.add_argument("translation", metavar="TRANSLATION", help="a run that translates German texts to English")
    parser.add_argument("--recognizer", metavar="RUN", help="another run that transcribes German")
    parser.add_argument("--split", default="test", help="split of the verses")
    parser.add_argument("--beams", type=int, default=4, help="beams of the direct model, and of its transcripts")
    parser.add_argument("--count", type=int, default=200, help="number of verses")
    options = parser.parse_args()
    import jaxformer as jf
    from jaxformer.metrics.error_rates import normalized, word_error_rate
    from jaxformer.metrics.texts import text_scores
    from jaxformer.training import host

    host.start_jax()
    verses = held_out(options.split, options.count)
    sounds, german, english = ([one[name] for one in verses] for name in ("audio", "text", "translation"))
    direct = jf.open_run(options.direct).with_decoding(num_beams=options.beams)
    recognizer = direct if options.recognizer is None else jf.open_run(options.recognizer)
    direct = direct.with_transcribing(speech_task="translate")
    translation = jf.open_run(options.translation)
    outputs, seconds, heard = {}, {}, []
    for name in ("one model", "cascade", "true transcripts"):
        start = time.perf_counter()
        if name == "one model":
            outputs[name] = [answer.text for answer in direct.predict(sounds)]
        elif name == "cascade":
            heard = [answer.text for answer in recognizer.predict(sounds)]
            outputs[name] = translated(translation, heard)
        else:
            outputs[name] = translated(translation, german)
        seconds[name] = time.perf_counter() - start
    errors = word_error_rate(list(map(normalized, heard)), list(map(normalized, german)))
    print(f"{len(verses)} held-out verses; the recognizer has a word error rate of {errors:.3f}\n")
    print(f"{'':18} {'BLEU':>6} {'chrF':>6} {'seconds':>8}")
    scores = {name: text_scores(texts, english) for name, texts in outputs.items()}
    for name, score in scores.items():
        print(f"{name:18} {score['bleu']:6.1f} {score['chrf']:6.1f} {seconds[name]:8.1f}")
    for name, texts in outputs.items():
        print(f"\n{name}: {texts[0]}", end="")
    print(f"\nreference: {english[0]}")
    best = max(scores[name]["bleu"] for name in ("one model", "cascade"))
    values = {name.replace(" ", "_"): round(score["bleu"], 1) for name, score in scores.items()}
    result = {"benchmark": "speech_translation", "ratio": round(best / GOAL, 2), "goal": 1.0, "met": best >= GOAL}
    return conclude([result | {"wer": round(errors, 3), "bleu": values}])


if __name__ == "__main__":
    sys.exit(main())
