"""Compares the predictions of a run for raw inputs, such as texts or image files, with those of the transformers
library, which loads the exported or imported folder.

The other comparisons of the parity certificate give both models the same token ids or pixels, so they do not cover the
steps around the models: tokenization and the arrangement of texts and pairs, image processing, generation settings, and
the processing of the logits.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxformer.data.tasks.classification import PAIR
from jaxformer.errors import InputError
from jaxformer.interop.parity import clips, pictures, sounds, speech
from jaxformer.interop.parity.compare import JaxModel, their_tokenizer
from jaxformer.interop.parity.lines import Line
from jaxformer.interop.parity.sides import TEXTS, Sides, line
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.ctc import Ctc
from jaxformer.objectives.dpo import Dpo
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.object_detection import ObjectDetection
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.speech_frames import SpeechFrames
from jaxformer.objectives.speech_to_text import SpeechToText
from jaxformer.objectives.tagging import Tagging
from jaxformer.objectives.video_classification import VideoClassification
from jaxformer.parallel import sharding
from jaxformer.predictors.answer_spans import answer_spans
from jaxformer.predictors.word_tags import WORD
from jaxformer.runs.run import Run

PAIRS = (("the dog ran", "the cat saw"), ("Is it light?", "No, it is dark."))
MASKED = ("the [MASK] ran", "[MASK] shone in the [MASK].")
NEW_TOKENS = 16
POOLINGS = {
    "mean": lambda hidden: hidden.mean(0),
    "max": lambda hidden: hidden.max(0),
    "first": lambda hidden: hidden[0],
    "last": lambda hidden: hidden[-1],
}
"""Maps names of pooling methods to functions that reduce token vectors [length, embed] to one vector."""


def compare_answers(
    run: Run, ours: JaxModel, folder: Path, rounded: Callable[[torch.nn.Module], None] = lambda network: None
) -> Iterator[Line]:
    """Compares the predictions of a run for raw inputs, such as texts or image files, with those of the transformers
    library. Yields an entry of the parity certificate for each kind of input that the objective supports.

    Yields nothing if there is no comparison for the objective, or if all test inputs exceed the maximum length of the
    model.

    Args:
      run: Run with the tokenizer, objective and task.
      ours: JAX model with the parameters that the run uses in this comparison: rounded to the dtype of the Hugging Face
        folder.
      folder: Hugging Face folder of the run.
      rounded: Function that rounds the weights of a PyTorch model in place, in the same way as those of `ours`. By
        default, the weights are not rounded.
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


def _compare_masked_tokens(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities of the most likely tokens at each mask token of test texts, as predicted by the run
    and by the transformers library. Yields one entry of the certificate, or none if the tokenizer has no mask token or
    all texts are too long.
    """
    texts = sides.short(MASKED)
    if not texts or sides.run.require_tokenizer().special_id("mask") is None:
        return
    ours = [[share for _, share in blank] for filled in sides.predict(texts) for blank in filled.blanks]
    fill = sides.pipeline("fill-mask", top_k=len(ours[0]))
    sides.mask_unused_ids(fill.model)
    theirs = []
    mask = fill.tokenizer.mask_token
    # Our mask token includes the space before it, as in training; tokenizers made by transformers 5 may keep the space.
    keeps_space = fill.tokenizer(f"a {mask}").input_ids != fill.tokenizer(f"a{mask}").input_ids
    for text in texts:
        blanks = fill((text.replace(" [MASK]", "[MASK]") if keeps_space else text).replace("[MASK]", mask))
        blanks = blanks if isinstance(blanks[0], list) else [blanks]
        theirs += [[choice["score"] for choice in blank] for blank in blanks]
    where = f"{len(texts)} texts{', theirs without the space before a mask' * keeps_space}"
    yield line("filled masks", where, ours, theirs)


def _compare_labels(sides: Sides) -> Iterator[Line]:
    """Compares the label probabilities that the run and the transformers library predict for texts and for pairs of
    texts. Yields an entry of the certificate for each.
    """
    names = sides.run.model.labels
    yield from _compare_texts(sides, lambda answer: [dict(answer.labels)[name] for name in names], names)


def _compare_numbers(sides: Sides) -> Iterator[Line]:
    """Compares the numbers that the run (a regression model) and the transformers library predict for texts and for
    pairs of texts. Yields an entry of the certificate for each.
    """
    yield from _compare_texts(sides, lambda answer: [answer.value], sides.run.model.labels)


def _compare_texts(sides: Sides, values: Callable[[Any], list[float]], names: Sequence[str]) -> Iterator[Line]:
    classify = sides.pipeline("text-classification", top_k=None)
    pairs = PAIRS if getattr(sides.run.experiment.data.task, "pair", None) is not None else ()
    for where, asked in (("texts", [(text,) for text in TEXTS]), *[("pairs of texts", pairs)] * bool(pairs)):
        asked = sides.short(asked, lambda parts: parts)
        if not asked:
            continue
        ours = [values(answer) for answer in sides.predict([PAIR.join(parts) for parts in asked])]
        given = [dict(zip(("text", "text_pair"), parts, strict=False)) for parts in asked]
        scores = [{choice["label"]: choice["score"] for choice in classify(each)} for each in given]
        yield line("labels", f"{len(asked)} {where}", ours, [[found[name] for name in names] for found in scores])


def _compare_tags(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities that the run and the transformers library predict for the tag of each word: the tag
    that the run chooses. The prediction for a word is the prediction for its first token.

    If the tokenizer removes a word completely, its probability counts as 0.
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
    yield line("tags", f"{len(ours)} words", ours, theirs)


def _compare_answers(sides: Sides) -> Iterator[Line]:
    """Compares the answers that the run and the transformers library find for questions: the start and end of the most
    likely answer, as character offsets in the context.
    """
    sides, tokenizer = sides.with_objective(no_answer=None), their_tokenizer(sides.folder)
    objective, own = sides.objective(QuestionAnswering), sides.run.require_tokenizer()
    longest = answer_spans(sides.run.model.max_length, own).question_length
    asked = [pair for pair in sides.short(PAIRS, lambda parts: parts) if len(own.encode(pair[0])) <= longest]
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
        allowed = np.outer(of_context, of_context) & (span >= 0) & (span < objective.longest)
        start, end = np.unravel_index(np.where(allowed, scores.numpy(), -np.inf).argmax(), allowed.shape)
        theirs.append((int(offsets[start][0]), int(offsets[end][1])))
    differing = float(sum(one != other for one, other in zip(ours, theirs, strict=True)))
    yield Line("spans", f"{len(asked)} questions", differing, 0.0, f"{ours} here, {theirs} in PyTorch")


def _compare_continuations(sides: Sides) -> Iterator[Line]:
    """Compares the texts that the run (a decoder-only model) and the transformers library generate after the same
    prompts, without sampling and with the generation settings of the Hugging Face folder.
    """
    yield from _compare_generated(sides, transformers.AutoModelForCausalLM, lambda answer: answer.continuation)


def _compare_translations(sides: Sides) -> Iterator[Line]:
    """Compares the texts that the run (an encoder–decoder) and the transformers library generate from the same input
    texts, without sampling and with the generation settings of the Hugging Face folder.
    """
    yield from _compare_generated(sides, transformers.AutoModelForSeq2SeqLM, lambda answer: answer.answer)


def _compare_generated(sides: Sides, auto: Any, written: Callable[[Any], str]) -> Iterator[Line]:
    prompts, objective = sides.short(TEXTS), sides.run.objective
    if not prompts or (isinstance(objective, CausalLM | Dpo) and objective.template is not None):
        return  # The prompt of a dialogue is made by the chat template, not only by the tokenizer.
    network, tokenizer, differing, note = sides.network(auto), their_tokenizer(sides.folder), 0, "all are equal"
    sides.mask_unused_ids(network)
    given = [tokenizer(prompt, return_tensors="pt", return_token_type_ids=False) for prompt in prompts]
    read = 1 if network.config.is_encoder_decoder else max(each["input_ids"].shape[1] for each in given)
    # PyTorch models do not stop at their maximum length.
    most = NEW_TOKENS if objective.decoding is None else objective.decoding.max_new_tokens or NEW_TOKENS
    new = min(NEW_TOKENS, most, sides.run.model.max_length + 1 - read)
    run = sides.run.with_decoding(temperature=0.0, max_new_tokens=new)
    answers = dataclasses.replace(sides, run=run).predict(prompts)
    for inputs, answer in zip(given, answers, strict=True):
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            (ids,) = network.generate(**inputs, do_sample=False, max_new_tokens=new, max_length=None).tolist()
        if not network.config.is_encoder_decoder:
            ids = ids[inputs["input_ids"].shape[1] :]
        # Decode with the tokenizer of the run, because transformers hides special tokens that the answers contain.
        expected = run.require_tokenizer().decode(np.array(ids, np.int32))
        if " ".join(written(answer).split()) != " ".join(expected.split()):
            differing += 1
            note = f"{written(answer)!r} here, {expected!r} in PyTorch"
    yield Line("generated texts", f"{len(prompts)} prompts", float(differing), 0.0, note)


def _compare_vectors(sides: Sides) -> Iterator[Line]:
    """Compares the sentence vectors that the run and the transformers library compute for texts, without a prompt
    before the text.

    The transformers library computes only token vectors, so this function itself pools and normalises them.
    """
    texts, tokenizer = sides.short(TEXTS), their_tokenizer(sides.folder)
    if not texts:
        return
    sides = sides.with_objective(prompts=(), default_prompt_name=None, longest=None)
    objective = sides.objective(SentenceEmbedding)
    network, ours, theirs = sides.network(transformers.AutoModel), [one.vector for one in sides.predict(texts)], []
    for text in texts:
        with torch.no_grad():
            output = network(**tokenizer(text, return_tensors="pt"))
        if objective.pooling == "pooler":
            vector = output.pooler_output[0].numpy()
        else:
            vector = POOLINGS[objective.pooling](output.last_hidden_state[0].numpy())
        theirs.append(vector / np.linalg.norm(vector) if objective.normalized else vector)
    yield line("vectors", f"{len(texts)} texts", ours, theirs)


COMPARISONS: Mapping[type, Callable[[Sides], Iterator[Line]]] = {
    MaskedLM: _compare_masked_tokens,
    Classification: _compare_labels,
    Regression: _compare_numbers,
    Tagging: _compare_tags,
    QuestionAnswering: _compare_answers,
    CausalLM: _compare_continuations,
    Dpo: _compare_continuations,
    Seq2SeqLM: _compare_translations,
    SentenceEmbedding: _compare_vectors,
    ImageClassification: pictures.compare_labels,
    VideoClassification: clips.compare_labels,
    ImageEmbedding: pictures.compare_vectors,
    ImageTextContrastive: pictures.compare_ranking,
    ObjectDetection: pictures.compare_boxes,
    SpeechFrames: speech.compare_speech,
    SpeechToText: sounds.compare_transcripts,
    Ctc: sounds.compare_spellings,
}
"""Maps each objective class to the function that compares the predictions of a run with such an objective with those of
the transformers library.
"""
