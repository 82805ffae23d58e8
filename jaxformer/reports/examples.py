"""Section of a report with the answers of a run's model to held-out examples, and the confusion matrix of a
classifier.
"""

import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxformer.data.fields import image, sound
from jaxformer.data.tasks.base import Demonstration
from jaxformer.errors import InputError
from jaxformer.html_page import details, escape, grid, table
from jaxformer.predictors.base import Answer, RanksCandidates
from jaxformer.progress import phase
from jaxformer.reports.media import Media
from jaxformer.reports.records import MISSING

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

SHOWN = 6
"""Number of examples that are shown."""
LABELLED = 200
"""Maximum number of held-out examples in a confusion matrix."""
SECONDS = 20.0
"""Number of seconds after which no further examples are added to a confusion matrix."""
AT_ONCE = 8
"""Number of requests that are answered together."""
MOST_LABELS = 25
"""Maximum number of labels of a confusion matrix."""
IN_CELL = 3
"""Maximum number of examples that are shown for each kind of error in a confusion matrix."""
LONGEST = 600
"""Maximum number of characters of a text that is shown."""
LABELS = ("label", "probability")


@dataclasses.dataclass(frozen=True)
class Example:
    """A held-out example with the answers of the model."""

    demonstration: Demonstration
    """Request and reference."""
    answers: tuple[Answer, ...]
    """Answer to each argument of the request."""

    @property
    def label(self) -> str | None:
        """The most likely label. None if the answer has no labels with probabilities."""
        answer = self.answers[0]
        has_labels = answer.pair_names.get("labels") == LABELS
        return answer.labels[0][0] if has_labels else None  # type: ignore[attr-defined]


def examples_section(run: "Run") -> str:
    """Returns the HTML of the answers to some held-out examples and, for a classifier, of its confusion matrix."""
    try:
        if run.objective.predictor(run.model, run.params, run.tokenizer) is None:
            return f"<p>{escape(type(run.objective).__name__)} has no predictor, so there are no examples.</p>"
        with tempfile.TemporaryDirectory(prefix="jaxformer-") as folder, phase("trying held-out examples"):
            labels = _labels(run)
            examples = list(_examples(run, Path(folder), LABELLED if labels else SHOWN))
            media = Media(run.experiment.data.task)
            shown = grid([_shown(example, media) for example in examples[:SHOWN]])
            matrix = _confusion(examples, labels, media) if labels else ""
    except InputError as error:
        return f"<p>No examples: {escape(error)}</p>"
    if not examples:
        return "<p>None of the first examples of the data can be shown.</p>"
    place = "held-out" if run.experiment.data.validation is not None else "training"
    first = f"<p>Answers of the parameters of step {run.step:,} to {place} examples.</p>"
    return f"{first}{shown}{matrix}"


def _labels(run: "Run") -> tuple[str, ...]:
    """Returns the labels of a classifier whose examples have exactly one label each. Empty for other models."""
    task, labels = run.experiment.data.task, getattr(run.model, "labels", ())
    single = getattr(task, "kind", "single_label") == "single_label"
    return tuple(labels) if single and getattr(task, "label", None) and 2 <= len(labels) <= MOST_LABELS else ()


def _examples(run: "Run", folder: Path, count: int) -> Iterator[Example]:
    """Yields up to `count` evenly spaced examples of the held-out data, or else of the training data. Stops after
    `SECONDS`, but not before it has yielded `SHOWN` examples.
    """
    data, began, found = run.experiment.data, time.monotonic(), 0
    documents = (data.validation or data.train).open()
    waiting: list[Demonstration] = []
    indices = np.unique(np.linspace(0, len(documents) - 1, min(count, len(documents))).astype(int)).tolist()
    for number, index in enumerate(indices):
        home = folder / str(number)
        home.mkdir()
        with contextlib.suppress(InputError):
            one = data.task.demonstration(documents[index], home)
            waiting += [one] if one.requests else []
        if len(waiting) >= AT_ONCE or number == len(indices) - 1:
            for example in _answered(run, waiting):
                found += 1
                yield example
            waiting = []
            if time.monotonic() - began > SECONDS and found >= SHOWN:
                return


def _answered(run: "Run", demonstrations: Sequence[Demonstration]) -> list[Example]:
    """Computes the answers to some demonstrations. Leaves out those that the model refuses, such as too long texts."""
    if not demonstrations:
        return []
    if isinstance(run.predictor, RanksCandidates) and len(demonstrations[0].requests) == 2:
        candidates = [one.requests[1] for one in demonstrations]
        answers = run.rank([one.requests[0] for one in demonstrations], candidates)
        return [
            Example(Demonstration(one.requests[:1], one.requests[1]), (answer,))
            for one, answer in zip(demonstrations, answers, strict=True)
        ]
    try:
        answers = iter(run.predict([request for one in demonstrations for request in one.requests]))
        return [Example(one, tuple(next(answers) for _ in one.requests)) for one in demonstrations]
    except InputError:
        if len(demonstrations) == 1:
            return []
        return [example for one in demonstrations for example in _answered(run, [one])]


def _shown(example: Example, media: Media) -> str:
    requests, reference = example.demonstration.requests, example.demonstration.reference
    answers = [_answer(answer, request) for request, answer in zip(requests, example.answers, strict=True)]
    has_picture = any("<img" in answer for answer in answers)
    parts = [] if has_picture else [shown for request in requests if (shown := media.shown(request))]
    parts += map(media.fitting, answers)
    if reference is not None:
        parts.append(f"<p><small>in the data</small></p><pre>{escape(_cut(reference))}</pre>")
    return f"<figure>{''.join(parts)}</figure>"


def _answer(answer: Answer, request: str) -> str:
    """Returns the HTML of an answer. A file is named without its folder, and not at all if it was written for this
    page.
    """
    content = answer._repr_html_().removeprefix("<figure>").removesuffix("</figure>")
    folder, _, name = request.rpartition("/")
    if folder and "\n" not in request:
        for path in {request, escape(request)}:
            content = content.replace(path, path.rpartition("/")[2])
        if folder.startswith(tempfile.gettempdir()) and name in (image.EXAMPLE, sound.EXAMPLE):
            content = re.sub(rf"(?<=>){re.escape(name)}:?\s*", "", content)
    if content.startswith("<pre>") and len(content) > 4 * LONGEST:
        content = f"<pre>{escape(_cut(str(answer)))}</pre>"
    return content


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _confusion(examples: Sequence[Example], labels: Sequence[str], media: Media) -> str:
    """Returns the confusion matrix of a classifier: true labels in rows, predicted labels in columns, and the examples
    with wrong labels.
    """
    cells: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        true, predicted = example.demonstration.reference, example.label
        if true in labels and predicted in labels:
            cells.setdefault((true, predicted), []).append(example)  # type: ignore[arg-type]
    total = sum(map(len, cells.values()))
    if not total:
        return ""
    rows = []
    for true in labels:
        counts = [len(cells.get((true, predicted), ())) for predicted in labels]
        largest = max(counts) or 1
        shaded = (_cell(count, count / largest, true == label) for count, label in zip(counts, labels, strict=True))
        rows.append([escape(true), *shaded, f"{sum(counts):,}"])
    header = ["true \\ predicted", *map(escape, labels), "all"]
    right = sum(len(found) for (true, predicted), found in cells.items() if true == predicted)
    title = f"<h3>Confusion matrix of {total:,} examples, {right / total:.1%} of them right</h3>"
    wrong = {pair: found for pair, found in cells.items() if pair[0] != pair[1]}
    parts = []
    for (true, predicted), found in sorted(wrong.items(), key=lambda item: -len(item[1])):
        shown = grid([_shown(example, media) for example in found[:IN_CELL]])
        name = f"{len(found):,} × {escape(true)}, predicted {escape(predicted)}"
        parts.append(details(name, shown))
    return title + table(header, rows, range(1, len(header))) + "".join(parts)


def _cell(count: int, share: float, right: bool) -> str:
    if not count:
        return f'<span class="muted">{MISSING}</span>'
    color = "var(--good)" if right else "var(--bad)"
    return f'<b style="color: color-mix(in srgb, {color} {40 + 60 * share:.0f}%, var(--muted))">{count:,}</b>'
