"""In-context few-shot evaluation (Brown et al. 2020, §2.4): the model picks the most likely choice.

run = open_run("runs/gpt")
questions = [Question("Q: Is the sky blue?\\nA:", (" yes", " no"), 0), ...]
few_shot(run, questions, FewShot(shots=2), pool=others).accuracy

The data of a fine-tuning run can also be converted to questions, to compare both methods:

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
    """Multiple-choice question for a language model. The model answers it by the choice that it considers the most
    likely continuation of `text`.
    """

    text: str
    """Text of the question, after which each choice is scored as a continuation."""
    choices: tuple[str, ...]
    """Possible continuations of the text. A choice that starts a new word must start with a space."""
    answer: int
    """Index of the correct choice, from 0."""

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
    """Converts labelled texts to multiple-choice questions whose choices are the labels.

    Args:
      source: Texts, or pairs of texts, with their labels.
      task: Task that defines which columns contain the texts and the label, and the names of the labels.
      template: Template of a question's text. `{text}` is replaced by the text, and `{pair}` by the second text of a
        pair.
      choices: Text of the choice for each label, in the order of the labels. Defaults to a space followed by the label
        name.
      most: Maximum number of questions. They are made from examples that are evenly spaced over the source. If None,
        all examples are used.

    Raises:
      InputError: If a label is not one of the task's labels, the number of choices differs from the number of labels,
        or the task has not exactly one label per text.
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
    """Settings of a few-shot evaluation."""

    shots: int = 0
    """Number of solved examples in the prompt before each question. They are drawn at random for each question
    separately.
    """
    separator: str = "\n\n"
    """Text after each solved example in the prompt."""
    by: Literal["token", "sum", "prior"] = "token"
    """How a choice is scored: by its log-probability per token (`token`), by the sum over its tokens (`sum`), or by the
    difference between this sum and the sum after the neutral text `prior` (`prior`), which compensates for choices that
    are more frequent in general.
    """
    prior: str = "Answer:"
    """Neutral text for `by="prior"`, after which no choice should be preferred. Not used otherwise."""
    seed: int = 0
    """Random seed for drawing the solved examples."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("few_shot.shots", self.shots, 0)

    def texts(self, questions: Sequence[Question], pool: Sequence[Question] = ()) -> list[str]:
        """Returns one prompt per question: `shots` solved examples, followed by the text of the question. The choices
        are scored as continuations of the prompt.

        Args:
          questions: Questions to ask.
          pool: Questions to draw solved examples from. The question being asked is never drawn.

        Raises:
          InputError: If the pool has fewer other questions than `shots`.
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
    """Result of a few-shot evaluation."""

    picks: tuple[int, ...]
    """For each question, the index of the choice with the highest score."""
    scores: tuple[tuple[float, ...], ...]
    """For each question, the score of each choice, in nats (see `FewShot.by`)."""
    accuracy: float
    """Share of questions for which the correct choice has the highest score."""

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, under the assumption that the questions are a random sample."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.picks)))


def few_shot(
    run: Run, questions: Sequence[Question], settings: FewShot = FewShot(), pool: Sequence[Question] = ()
) -> FewShotResult:
    """Evaluates the model of a run on multiple-choice questions: scores each choice as a continuation of the question,
    and counts how often the correct choice has the highest score.

    Args:
      run: Run of a generative model.
      questions: Questions to ask.
      settings: Settings of the evaluation.
      pool: Questions to draw solved examples from. The question being asked is never drawn.

    Raises:
      InputError: If there are no questions, the pool is too small, or the model of the run is not generative.
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
