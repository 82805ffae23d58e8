"""In-context few-shot evaluation (Brown et al. 2020, §2.4): a model picks the choice that it finds likeliest.

run = open_run("runs/gpt")
questions = [Question("Q: Is the sky blue?\\nA:", (" yes", " no"), 0), ...]
few_shot(run, questions, FewShot(shots=2), pool=others).accuracy

What fine-tuning learns from can be asked too, so that both can be compared:

data = load("configs/sentiment.py").data
questions, pool = (questions_of(source, data.task, "{text}\\nThis is") for source in (data.validation, data.train))
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer import fields
from jaxformer.data.sources.sources import Source, read_each
from jaxformer.data.tasks.classification import Classify
from jaxformer.errors import InputError
from jaxformer.runs.run import Run


@dataclasses.dataclass(frozen=True)
class Question:
    """A text, its possible continuations, and which of them is right."""

    text: str
    """The text before each choice."""
    choices: tuple[str, ...]
    """The possible continuations; a choice that is a new word begins with a space."""
    answer: int
    """The place of the right one among them, from 0."""

    def __post_init__(self):
        if not 0 <= self.answer < len(self.choices):
            raise InputError(f"answer={self.answer}: the question has {len(self.choices)} choices, from 0 on")


def questions_of(
    source: Source,
    task: Classify,
    template: str = "{text}\nAnswer:",
    choices: Sequence[str] | None = None,
    most: int | None = None,
) -> list[Question]:
    """Questions on the labels of texts, from what a classifier is trained or evaluated on.

    Args:
      source: texts, or pairs of texts, with their labels.
      task: which columns they are in, and what labels there are.
      template: how a question is put, with {text} and, for a pair, {pair}.
      choices: how each label is said, in their order; default: a space and its name.
      most: questions to make, at most, evenly spaced over the source; None makes all.

    Raises:
      InputError: a label that is none of the task's, another number of choices, or a task without one label a text.
    """
    choices = tuple(f" {label}" for label in task.labels) if choices is None else tuple(choices)
    if task.kind != "single_label":
        raise InputError(f"task.kind={task.kind}: expected single_label; a question has one right answer")
    if len(choices) != len(task.labels):
        raise InputError(f"choices {choices}: expected one for each of the labels {', '.join(task.labels)}")
    examples = source.open()
    count = len(examples) if most is None else min(most, len(examples))

    def question(example: Mapping[str, Any]) -> Question:
        texts, target = task.read(example)
        return Question(template.format(**dict(zip(("text", "pair"), texts, strict=False))), choices, int(target[0]))

    return read_each(examples, question, [number * len(examples) // count for number in range(count)])


@dataclasses.dataclass(frozen=True)
class FewShot:
    """How questions are put."""

    shots: int = 0
    """Solved examples before each question, drawn at random for each."""
    separator: str = "\n\n"
    """The text between them."""
    by: Literal["token", "sum", "prior"] = "token"
    """The score of a choice: its log-probability a token; in sum; or in sum relative to that after `prior` alone, for
    choices that are unlike each other."""
    prior: str = "Answer:"
    """A text after which every choice is as good."""
    seed: int = 0
    """Seed of the draws."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("few_shot.shots", self.shots, 0)

    def texts(self, questions: Sequence[Question], pool: Sequence[Question] = ()) -> list[str]:
        """The text before the choices of each question.

        Args:
          questions: what is asked.
          pool: what to draw solved examples from; the question itself is never one of them.

        Raises:
          InputError: the pool has fewer other questions than `shots`.
        """
        texts, rng = [], np.random.default_rng(self.seed)
        for question in questions:
            others = [other for other in pool if other != question] if self.shots else []
            if len(others) < self.shots:
                raise InputError(f"few_shot.shots={self.shots}: the pool has {len(others)} other questions")
            drawn = rng.choice(len(others), self.shots, replace=False) if self.shots else ()
            solved = [others[index].text + others[index].choices[others[index].answer] for index in drawn]
            texts.append(self.separator.join([*solved, question.text]))
        return texts


@dataclasses.dataclass(frozen=True)
class FewShotResult:
    """The choices of a model."""

    picks: tuple[int, ...]
    """The choice of each question, from 0."""
    scores: tuple[tuple[float, ...], ...]
    """The score of each choice of each question, in nats."""
    accuracy: float
    """Share of the questions with the right pick."""

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, over questions like these."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.picks)))


def few_shot(
    run: Run, questions: Sequence[Question], settings: FewShot = FewShot(), pool: Sequence[Question] = ()
) -> FewShotResult:
    """Puts the questions to a run's model, all choices in batches.

    Args:
      run: of a model that writes.
      questions: what to ask.
      settings: how.
      pool: what to draw solved examples from; not the questions themselves, or at least none of them for itself.

    Raises:
      InputError: no question, too small a pool, or the run's model does not write.
    """
    if not questions:
        raise InputError("few_shot: no questions; expected at least one")
    texts = settings.texts(questions, pool)
    sizes = [len(question.choices) for question in questions]
    choices = [choice for question in questions for choice in question.choices]
    repeated = [text for text, size in zip(texts, sizes, strict=True) for _ in range(size)]
    found = run.log_likelihoods(repeated, choices)
    values = np.array([score.per_token if settings.by == "token" else score.log_probability for score in found])
    if settings.by == "prior":
        values -= [score.log_probability for score in run.log_likelihoods([settings.prior] * len(choices), choices)]
    scores = tuple(tuple(map(float, part)) for part in np.split(values, np.cumsum(sizes)[:-1]))
    picks = tuple(int(np.argmax(part)) for part in scores)
    right = [pick == question.answer for pick, question in zip(picks, questions, strict=True)]
    return FewShotResult(picks, scores, float(np.mean(right)))
