"""Compares the answers of a run to raw inputs with those of transformers, which loads the folder of the run.

The other comparisons of the parity certificate give both models the same token ids, so they do not cover the processing
around the models: the layout of texts and pairs, image processing, generation settings, and postprocessing of logits.
"""

import contextlib
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers
from PIL import Image

from jaxformer.data.tasks.classification import PAIR
from jaxformer.errors import InputError
from jaxformer.interop.parity.compare import JaxModel, on_cpu, one_by_one, reading, their_tokenizer
from jaxformer.interop.parity.lines import Line
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel import sharding
from jaxformer.predictors.answer_spans import answer_spans
from jaxformer.predictors.word_tags import WORD
from jaxformer.runs.run import Run

ANSWERS = 1e-4
"""Tolerance for probabilities and unit vectors, and for regression values relative to the largest (or 1)."""
# No whitespace at the ends: `predict` strips it, but transformers does not.
TEXTS = ("The dog ran.", "It has 3 naïve cats!", "a  light  shone")
PAIRS = (("the dog ran", "the cat saw"), ("Is it light?", "No, it is dark."))
MASKED = ("the [MASK] ran", "[MASK] shone in the [MASK].")
SPECIALS = 8
"""Upper bound for the number of special tokens that a layout adds to a text or a pair."""
NEW_TOKENS = 16
POOLINGS = {
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.max(0),
    "first": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
}
"""Pooling functions that reduce token vectors [t, d] to one vector."""
PICTURES = ((53, 37), (24, 64))
"""Heights and widths in pixels. Neither is square; one is wider and one is taller than the model's input."""


@dataclasses.dataclass(frozen=True)
class Sides:
    """Run, and the exported folder of the run that transformers loads."""

    run: Run
    """Run that computes in float32 on the CPU, with parameters rounded to the compared dtype."""
    folder: Path
    """Hugging Face folder."""
    round: Callable[[torch.nn.Module], None]
    """Function that rounds the weights of a network of the folder to the compared dtype, in place."""

    def predict(self, inputs: Sequence[str]) -> list[Any]:
        """Returns the answers of the run."""
        with on_cpu():
            return self.run.predict(list(inputs))

    def pipeline(self, task: str, **settings: Any) -> Any:
        """Loads a transformers pipeline from the folder."""
        with reading(f"a pipeline for {task}"), warnings.catch_warnings(action="ignore"):
            found = transformers.pipeline(task, str(self.folder), device="cpu", dtype=torch.float32, **settings)
        self.round(found.model)
        return found

    def network(self, auto: Any) -> torch.nn.Module:
        """Loads the model of the folder with an auto class of transformers."""
        with reading(auto.__name__):
            found = auto.from_pretrained(self.folder, dtype=torch.float32, local_files_only=True).eval()
        one_by_one(found)
        self.round(found)
        return found

    def with_objective(self, **changes: Any) -> "Sides":
        """Returns a copy with changed settings of the run's objective."""
        objective = dataclasses.replace(self.run.objective, **changes)
        experiment = dataclasses.replace(self.run.experiment, objective=objective)
        return dataclasses.replace(self, run=dataclasses.replace(self.run, experiment=experiment))

    def only_pieces(self, network: torch.nn.Module) -> None:
        """Makes a network assign no probability to ids that the tokenizer does not have, as `predict` does."""
        size = self.run.tokenizer.vocab_size

        def remove(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            output.logits[..., size:] = -torch.inf

        network.register_forward_hook(remove)

    def short(self, texts: Sequence[Any], parts: Callable[[Any], Sequence[str]] = lambda text: [text]) -> list[Any]:
        """Selects the texts that fit the maximum length of the model, so that neither side truncates."""
        tokenizer, longest = self.run.tokenizer, self.run.model.text_limits.max_length
        sizes = [sum(len(tokenizer.encode(part)) for part in parts(text)) for text in texts]
        return [text for text, size in zip(texts, sizes, strict=True) if size + SPECIALS <= longest]


def compare_answers(
    run: Run, ours: JaxModel, folder: Path, rounded: Callable[[torch.nn.Module], None] = lambda network: None
) -> Iterator[Line]:
    """Yields a comparison for each kind of raw input that the run's objective answers.

    Yields nothing if the objective has no answers, or if all inputs exceed the maximum length of the model.

    Args:
      run: Run with the tokenizer, objective and task.
      ours: Model and parameters of the run, as compared.
      folder: Hugging Face folder of the run.
      rounded: Function that rounds the weights of a network in place, like those of `ours`. By default, they are
        not rounded.
    """
    compare = COMPARISONS.get(type(run.objective))
    if compare is None:
        return
    mesh = sharding.make_mesh(sharding.Mesh(1), jax.local_devices(backend="cpu")[:1])
    experiment = dataclasses.replace(run.experiment, model=ours.model)
    sides = Sides(dataclasses.replace(run, experiment=experiment, params=ours.params, mesh=mesh), folder, rounded)
    try:
        yield from compare(sides)
    except InputError:
        raise
    except Exception as error:  # An error of transformers for an input that the run answers is a difference too.
        yield Line("answers", "raw inputs", float("inf"), 0.0, f"{type(error).__name__}: {error}"[:200])


def _filled(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities of the most likely tokens at each mask."""
    texts = sides.short(MASKED)
    if not texts or sides.run.tokenizer.special_id("mask") is None:
        return
    ours = [[share for _, share in blank] for filled in sides.predict(texts) for blank in filled.blanks]
    fill = sides.pipeline("fill-mask", top_k=len(ours[0]))
    sides.only_pieces(fill.model)
    theirs = []
    mask = fill.tokenizer.mask_token
    # Our mask token includes the space before it, as in training; tokenizers made by transformers 5 may keep the space.
    keeps_space = fill.tokenizer(f"a {mask}").input_ids != fill.tokenizer(f"a{mask}").input_ids
    for text in texts:
        blanks = fill((text.replace(" [MASK]", "[MASK]") if keeps_space else text).replace("[MASK]", mask))
        blanks = blanks if isinstance(blanks[0], list) else [blanks]
        theirs += [[choice["score"] for choice in blank] for blank in blanks]
    where = f"{len(texts)} texts{', theirs without the space before a mask' * keeps_space}"
    yield _line("filled masks", where, ours, theirs)


def _labelled(sides: Sides) -> Iterator[Line]:
    """Compares label probabilities of texts and of pairs of texts."""
    names = sides.run.model.labels
    yield from _of_texts(sides, lambda answer: [dict(answer.labels)[name] for name in names], names)


def _rated(sides: Sides) -> Iterator[Line]:
    """Compares predicted numbers of texts and of pairs of texts."""
    yield from _of_texts(sides, lambda answer: [answer.value], sides.run.model.labels)


def _of_texts(sides: Sides, values: Callable[[Any], list[float]], names: Sequence[str]) -> Iterator[Line]:
    classify = sides.pipeline("text-classification", top_k=None)
    pairs = PAIRS if getattr(sides.run.experiment.data.task, "pair", None) is not None else ()
    for where, asked in (("texts", [(text,) for text in TEXTS]), *[("pairs of texts", pairs)] * bool(pairs)):
        asked = sides.short(asked, lambda parts: parts)
        if not asked:
            continue
        ours = [values(answer) for answer in sides.predict([PAIR.join(parts) for parts in asked])]
        given = [dict(zip(("text", "text_pair"), parts, strict=False)) for parts in asked]
        scores = [{choice["label"]: choice["score"] for choice in classify(each)} for each in given]
        yield _line("labels", f"{len(asked)} {where}", ours, [[found[name] for name in names] for found in scores])


def _tagged(sides: Sides) -> Iterator[Line]:
    """Compares the probability of each word's tag, taken at its first token.

    The probability is 0 for a word without tokens.
    """
    texts, tokenizer = sides.short([" ".join(WORD.findall(text)) for text in TEXTS]), their_tokenizer(sides.folder)
    if not texts:
        return
    network, names = sides.network(transformers.AutoModelForTokenClassification), sides.run.model.labels
    ours, theirs = [], []
    for text, tagged in zip(texts, sides.predict(texts), strict=True):
        given = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
        stops = given.pop("offset_mapping")[0, :, 1].numpy()
        with torch.no_grad():
            shares = network(**given).logits[0].softmax(-1).numpy()
        for word, tag, share in zip(WORD.finditer(text), tagged.tags, tagged.probabilities, strict=True):
            # A token may consist of only the space before the word; special tokens end at 0.
            of_word = np.flatnonzero((stops >= max(1, word.start())) & (stops <= word.end()))
            ours.append(share)
            theirs.append(shares[of_word[0], names.index(tag)] if len(of_word) else 0.0)
    yield _line("tags", f"{len(ours)} words", ours, theirs)


def _answered(sides: Sides) -> Iterator[Line]:
    """Compares the best answer spans of questions, as character offsets."""
    sides, tokenizer = sides.with_objective(no_answer=None), their_tokenizer(sides.folder)
    longest = answer_spans(sides.run.model.max_length, sides.run.tokenizer).question_length
    asked = sides.short(PAIRS, lambda parts: parts)
    asked = [pair for pair in asked if len(sides.run.tokenizer.encode(pair[0])) <= longest]
    if not asked:
        return
    network = sides.network(transformers.AutoModelForQuestionAnswering)
    ours = [(answer.start, answer.stop) for answer in sides.predict([PAIR.join(parts) for parts in asked])]
    theirs = []
    for question, context in asked:
        given = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
        offsets, of_context = given.pop("offset_mapping")[0], [part == 1 for part in given.sequence_ids(0)]
        with torch.no_grad():
            output = network(**given)
        scores = output.start_logits[0][:, None] + output.end_logits[0][None]
        places = np.arange(len(of_context))
        span = places[None] - places[:, None]
        allowed = np.outer(of_context, of_context) & (span >= 0) & (span < sides.run.objective.longest)
        start, end = np.unravel_index(np.where(allowed, scores.numpy(), -np.inf).argmax(), allowed.shape)
        theirs.append((int(offsets[start][0]), int(offsets[end][1])))
    differing = float(sum(one != other for one, other in zip(ours, theirs, strict=True)))
    yield Line("spans", f"{len(asked)} questions", differing, 0.0, f"{ours} here, {theirs} in PyTorch")


def _continued(sides: Sides) -> Iterator[Line]:
    """Compares the texts that a decoder generates after prompts with the generation config of the folder."""
    yield from _generated(sides, transformers.AutoModelForCausalLM, lambda answer: answer.continuation)


def _translated(sides: Sides) -> Iterator[Line]:
    """Compares the texts that an encoder–decoder generates with the generation config of the folder."""
    yield from _generated(sides, transformers.AutoModelForSeq2SeqLM, lambda answer: answer.answer)


def _generated(sides: Sides, auto: Any, written: Callable[[Any], str]) -> Iterator[Line]:
    prompts = sides.short(TEXTS)
    if not prompts or getattr(sides.run.objective, "template", None) is not None:
        return  # The prompt of a dialogue is made by the chat template, not only by the tokenizer.
    network, tokenizer, differing, note = sides.network(auto), their_tokenizer(sides.folder), 0, "all are equal"
    sides.only_pieces(network)
    given = [tokenizer(prompt, return_tensors="pt", return_token_type_ids=False) for prompt in prompts]
    read = 1 if network.config.is_encoder_decoder else max(each["input_ids"].shape[1] for each in given)
    # PyTorch models do not stop at their maximum length.
    new = min(
        NEW_TOKENS, sides.run.objective.decoding.max_new_tokens or NEW_TOKENS, sides.run.model.max_length + 1 - read
    )
    run = sides.run.with_decoding(temperature=0.0, max_new_tokens=new)
    answers = dataclasses.replace(sides, run=run).predict(prompts)
    for inputs, answer in zip(given, answers, strict=True):
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            (ids,) = network.generate(**inputs, do_sample=False, max_new_tokens=new, max_length=None).tolist()
        if not network.config.is_encoder_decoder:
            ids = ids[inputs["input_ids"].shape[1] :]
        # Decode with the tokenizer of the run, because transformers hides special tokens that the answers contain.
        expected = sides.run.tokenizer.decode(np.array(ids, np.int32))
        if " ".join(written(answer).split()) != " ".join(expected.split()):
            differing += 1
            note = f"{written(answer)!r} here, {expected!r} in PyTorch"
    yield Line("generated texts", f"{len(prompts)} prompts", float(differing), 0.0, note)


def _embedded(sides: Sides) -> Iterator[Line]:
    """Compares vectors of texts without a prompt.

    Pooling and normalisation are applied here, since transformers has neither.
    """
    texts, tokenizer = sides.short(TEXTS), their_tokenizer(sides.folder)
    if not texts:
        return
    sides = sides.with_objective(prompts=(), default_prompt_name=None, longest=None)
    objective = sides.run.objective
    network, ours, theirs = sides.network(transformers.AutoModel), [one.vector for one in sides.predict(texts)], []
    for text in texts:
        with torch.no_grad():
            output = network(**tokenizer(text, return_tensors="pt"))
        if objective.pooling == "pooler":
            vector = output.pooler_output[0].numpy()
        else:
            vector = POOLINGS[objective.pooling](output.last_hidden_state[0].numpy())
        theirs.append(vector / np.linalg.norm(vector) if objective.normalized else vector)
    yield _line("vectors", f"{len(texts)} texts", ours, theirs)


def _classified(sides: Sides) -> Iterator[Line]:
    """Compares label probabilities of pictures."""
    names = sides.run.model.labels
    if sides.run.model.channels == 3:
        classify = sides.pipeline("image-classification", top_k=len(names))
    else:  # The pipeline converts all pictures to RGB.
        classify = _without_pipeline(sides)
    with _pictures(sides.run) as paths:
        ours = [[dict(answer.labels)[name] for name in names] for answer in sides.predict(paths)]
        scores = [{choice["label"]: choice["score"] for choice in classify(path)} for path in paths]
    yield _line("labels", f"{len(ours)} pictures", ours, [[found[name] for name in names] for found in scores])


def _without_pipeline(sides: Sides) -> Callable[[str], list[dict[str, Any]]]:
    """Returns a function that computes the results of an image pipeline, without conversion of pictures to RGB."""
    network, process = sides.network(transformers.AutoModelForImageClassification), _processor(sides)

    def classify(path: str) -> list[dict[str, Any]]:
        with torch.no_grad(), Image.open(path) as picture:
            shares = network(**process(picture, return_tensors="pt")).logits[0].softmax(-1).tolist()
        return [{"label": network.config.id2label[number], "score": share} for number, share in enumerate(shares)]

    return classify


def _processor(sides: Sides) -> Any:
    """Loads the image processor of the folder."""
    with reading("AutoImageProcessor"):
        return transformers.AutoImageProcessor.from_pretrained(sides.folder, local_files_only=True)


def _pictured(sides: Sides) -> Iterator[Line]:
    """Compares unit-length vectors of pictures."""
    network, process, theirs = sides.network(transformers.AutoModel), _processor(sides), []
    with _pictures(sides.run) as paths:
        ours = [answer.vector for answer in sides.predict(paths)]
        for path in paths:
            with torch.no_grad(), Image.open(path) as picture:
                output = network(**process(picture, return_tensors="pt"))
            vector = output.last_hidden_state[0, 0].numpy()
            theirs.append(vector / np.linalg.norm(vector))
    yield _line("vectors", f"{len(ours)} pictures", ours, theirs)


def _ranked(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities of texts for pictures."""
    texts = sides.short(TEXTS)
    if not texts or sides.run.model.part("images")[1].channels != 3:  # The pipeline converts all pictures to RGB.
        return
    # The pipeline pads texts to 64 tokens for every SigLIP model, whatever its maximum length.
    masks = "segments" in sides.run.model.inputs()
    rank = _piped(sides, texts) if masks else _padded(sides, texts)
    with _pictures(sides.run) as paths:
        with on_cpu():
            ours = [[dict(answer.ranking)[text] for text in texts] for answer in sides.run.rank(paths, texts)]
        theirs = [rank(path) for path in paths]
    yield _line("ranked texts", f"{len(texts)} texts for {len(ours)} pictures", ours, theirs)


def _piped(sides: Sides, texts: Sequence[str]) -> Callable[[str], list[float]]:
    """Returns a function that computes the probabilities of the texts for an image file, with the pipeline."""
    classify = sides.pipeline("zero-shot-image-classification")

    def rank(path: str) -> list[float]:
        found = classify(path, candidate_labels=texts, hypothesis_template="{}")
        return [{choice["label"]: choice["score"] for choice in found}[text] for text in texts]

    return rank


def _padded(sides: Sides, texts: Sequence[str]) -> Callable[[str], list[float]]:
    """Returns a function that computes the probabilities of the texts for an image file, with the model.

    Texts are padded to the maximum length of the model.
    """
    network, process, tokenizer = (
        sides.network(transformers.AutoModel),
        _processor(sides),
        their_tokenizer(sides.folder),
    )
    longest = sides.run.model.text_limits.max_length
    tokens = tokenizer(list(texts), padding="max_length", max_length=longest, return_tensors="pt").input_ids

    def rank(path: str) -> list[float]:
        with torch.no_grad(), Image.open(path) as picture:
            output = network(input_ids=tokens, **process(picture, return_tensors="pt"))
        return output.logits_per_image[0].sigmoid().tolist()

    return rank


@contextlib.contextmanager
def _pictures(run: Run) -> Iterator[list[str]]:
    """Yields paths of generated pictures with the number of channels of the model."""
    channels = run.model.part("images")[1].channels
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, (height, width) in enumerate(PICTURES):
            coarse = rng.integers(0, 256, (6, 5) if channels == 1 else (6, 5, 3), np.uint8)
            paths.append(str(Path(folder) / f"{number}.png"))
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(paths[-1])
        yield paths


def _line(what: str, where: str, ours: Sequence[Any], theirs: Sequence[Any]) -> Line:
    """Compares numbers. The difference is the largest one, relative to the largest reference value (or 1)."""
    mine, other = (np.asarray(side, np.float64) for side in (ours, theirs))
    if mine.shape != other.shape:
        return Line(what, where, float("inf"), ANSWERS, f"shapes {mine.shape} here and {other.shape} in PyTorch")
    difference = float(np.abs(mine - other).max(initial=0))
    return Line(what, where, difference / max(1.0, np.abs(other).max(initial=0)), ANSWERS, "from raw inputs")


COMPARISONS: Mapping[type, Callable[[Sides], Iterator[Line]]] = {
    MaskedLM: _filled,
    Classification: _labelled,
    Regression: _rated,
    Tagging: _tagged,
    QuestionAnswering: _answered,
    CausalLM: _continued,
    Seq2SeqLM: _translated,
    SentenceEmbedding: _embedded,
    ImageClassification: _classified,
    ImageEmbedding: _pictured,
    ImageTextContrastive: _ranked,
}
"""Function that compares the answers, per objective."""
