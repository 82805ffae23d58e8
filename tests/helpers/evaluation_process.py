"""Evaluates small models in one of several processes; the first one prints the metrics as JSON.

python evaluation_process.py FOLDER PROCESSES NUMBER ADDRESS KIND...
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from small_bert import noisy_params, small_transformer

from jaxformer.config import Evaluation, Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.fields.text import TextField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tasks.summary_sentences import SummarySentences
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import WordPiece
from jaxformer.decoding.settings import Decoding
from jaxformer.evaluations import NamedEvaluation
from jaxformer.metrics.texts import Scores
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.clip import Clip, ImageTower, TextTower
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.extractive_summarization import ExtractiveSummarization
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.objectives.question_answering import LABELS as ENDS
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel import sharding
from jaxformer.training.evaluation import Evaluations
from jaxformer.training.optimizers import AdamW
from jaxformer.training.state import abstract_params

WORDS = [f"w{number}" for number in range(12)]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TAGS = ("O", "B-x", "I-x", "B-y", "I-y")
BERT = Bert(small_transformer(depth=1), vocab=len(PIECES), max_length=24, prediction_heads=())
KINDS = ("translation", "answers", "numbers", "tags", "classes", "summaries", "pairs")
ALL = (Scores(by=("bleu", "chrf", "rouge")),)


def write_documents(folder: Path, count: int = 70) -> None:
    """Writes a vocabulary, and documents of each kind: more than two groups of those that processes share."""
    rng = np.random.default_rng(0)

    def text(least, most):
        return " ".join(rng.choice(WORDS, rng.integers(least, most)))

    def document(kind):
        if kind == "translation":
            return {"inputs": text(2, 9), "targets": text(4, 9)}
        if kind == "answers":
            context = text(8, 40)
            word = context.split()[int(rng.integers(8))]
            answers = {"text": [word], "answer_start": [context.index(word)]}
            return {"question": text(1, 4), "context": context, "answers": answers}
        if kind == "summaries":
            return {"document": [text(1, 5) for _ in range(rng.integers(1, 6))], "summary": text(1, 6)}
        if kind == "pairs":  # Few words, so that images share texts.
            return {"image": str(folder / f"{rng.integers(40)}.png"), "text": text(1, 3)}
        if kind == "tags":
            words = text(2, 30).split()
            return {"words": words, "tags": [str(tag) for tag in rng.choice(TAGS, len(words))]}
        return {
            "text": text(1, 9),
            "label": round(float(rng.normal()), 1) if kind == "numbers" else str(rng.choice(WORDS[:3])),
        }

    (folder / "vocab.txt").write_text("\n".join(PIECES))
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{number}.png")
    for kind in KINDS:
        (folder / f"{kind}.jsonl").write_text("\n".join(json.dumps(document(kind)) for _ in range(count)))
    WordPiece(path=str(folder / "vocab.txt")).build(None, str(folder / "kept"))


def experiments(folder: Path) -> dict[str, Experiment]:
    """An experiment of each kind."""
    stack = small_transformer(depth=1)
    parts = {
        "translation": (
            EncoderDecoder(stack, stack, vocab=len(PIECES), max_length=24),
            Seq2SeqLM(decoding=Decoding(max_new_tokens=8, num_beams=2), scored=70, scores=ALL),
            TextToText(16, 16),
        ),
        "answers": (Classifier(BERT, ENDS, "none"), QuestionAnswering(), AnswerSpans(24, 6, 6)),
        "numbers": (
            Classifier(BERT, ("x",), "mean"),
            Regression(),
            Classify(labels=("x",), kind="regression", length=12),
        ),
        "tags": (Classifier(BERT, TAGS, "none"), Tagging(), TagTokens(TAGS, 16)),
        "summaries": (
            Classifier(BERT, ("summary",), "none"),
            ExtractiveSummarization(num_sentences=2),
            SummarySentences(24, 8),
        ),
        "pairs": (
            Clip(ImageTower(stack, image=8, patch=4), TextTower(stack, vocab=len(PIECES), max_length=8), width=8),
            ImageTextContrastive(),
            ImageTextPairs(ImageField(8), TextField(length=8)),
        ),
        "classes": (
            Classifier(BERT, tuple(WORDS[:3]), "mean"),
            Classification(),
            Classify(labels=tuple(WORDS[:3]), length=12),
        ),
    }
    found = {}
    for kind, (model, objective, task) in parts.items():
        source = JsonLines((str(folder / f"{kind}.jsonl"),))
        data = Data(train=source, validation=source, task=task, batch=8)
        found[kind] = Experiment(
            model,
            objective,
            data,
            WordPiece(path=str(folder / "vocab.txt")),
            AdamW(),
            steps=1,
            mesh=sharding.Mesh(2, 2),
            evaluation=Evaluation(),
            evaluations=(NamedEvaluation("first_rows", source, batches=2),),
        )
    return found


def evaluate(folder: Path, experiment: Experiment) -> dict[str, dict[str, float]]:
    """The metrics of all evaluations of an experiment, of parameters drawn at random."""
    tokenizer = experiment.tokenizer.build(None, str(folder / "kept"))
    mesh = sharding.make_mesh(experiment.mesh)
    examples = {"images": np.zeros((1, 8, 8, 3), np.uint8), "inputs": np.zeros((1, 4), np.int32)}
    inputs = experiment.model.inputs()
    example = [array for name, array in examples.items() if name in inputs] + [np.zeros((1, 4), np.int32)]

    def lay(array, leaf):
        whole = np.asarray(array)
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: whole[index])

    params = jax.tree.map(lay, noisy_params(experiment.model, *example), abstract_params(experiment, mesh))
    evaluations = Evaluations(experiment, tokenizer, mesh)
    evaluations.check()
    last = jax.process_count() - 1
    assert evaluations(params, lambda: jax.process_index() == last) is None, "a signal to one process ends all"
    return evaluations(params)


def main(folder: str, processes: str, number: str, address: str, *kinds: str) -> None:
    if int(processes) > 1:
        jax.distributed.initialize(address, int(processes), int(number))
    assert (jax.process_count(), jax.device_count()) == (int(processes), 4)
    found = experiments(Path(folder))
    results = {kind: evaluate(Path(folder), found[kind]) for kind in kinds}
    if jax.process_index() == 0:
        print(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
