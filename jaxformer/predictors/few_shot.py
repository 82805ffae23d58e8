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
    """Multiple-choice question for a language model: the choices are continuations of its text."""

    text: str
    """Text of the question, which is followed by one of the choices."""
    choices: tuple[str, ...]
    """Possible continuations. A choice that starts a new word starts with a space."""
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
    """Converts labelled texts to questions about their labels.

    Args:
      source: Texts, or pairs of texts, with their labels.
      task: Task that defines the columns and the labels.
      template: Template of a question, with {text} and, for a pair, {pair}.
      choices: Text of each label, in the order of the labels. Defaults to a space and the label name.
      most: Maximum number of questions, evenly spaced over the source. If None, all examples.

    Raises:
      InputError: If a label is not one of the task's labels, the number of choices differs from the number of
        labels, or the task has not exactly one label per text.
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
    """Number of solved examples before each question. They are drawn at random for each question."""
    separator: str = "\n\n"
    """Text between successive solved examples."""
    by: Literal["token", "sum", "prior"] = "token"
    """Score of a choice: its log-probability per token (`token`), the sum over its tokens (`sum`), or that sum minus
    the sum for the same choice after the text `prior` (`prior`). The last one is for choices of different frequencies.
    """
    prior: str = "Answer:"
    """Neutral text after which all choices are equally valid. Only used by `by="prior"`."""
    seed: int = 0
    """Random seed for drawing the solved examples."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("few_shot.shots", self.shots, 0)

    def texts(self, questions: Sequence[Question], pool: Sequence[Question] = ()) -> list[str]:
        """Returns one prompt per question: solved examples, followed by the text of the question. The choices are
        scored as continuations of the prompt.

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
    """Index of the choice with the highest score, for each question."""
    scores: tuple[tuple[float, ...], ...]
    """Score of each choice of each question, in nats."""
    accuracy: float
    """Share of questions whose correct choice has the highest score."""

    @property
    def standard_error(self) -> float:
        """Standard error of the accuracy, if the questions are a random sample."""
        return float(np.sqrt(self.accuracy * (1 - self.accuracy) / len(self.picks)))


def few_shot(
    run: Run, questions: Sequence[Question], settings: FewShot = FewShot(), pool: Sequence[Question] = ()
) -> FewShotResult:
    """Evaluates the model of a run on the questions. All choices are scored in batches.

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
