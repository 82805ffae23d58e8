"""Orders generated images by how well they fit their text, in the judgement of a model of images and texts such as CLIP
(Ramesh et al. 2021, §2.6).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.predictors.base import Answer, RanksCandidates
from jaxformer.predictors.pictures import Pictures
from jaxformer.runs.run import Run


def reranked(answers: Sequence[Answer | None], ranker: Run, keep: int | None = None) -> list[Any]:
    """Returns answers in which the images of each text are ordered by their similarity to the text, best first.

    Args:
      answers: answers of a run that generates images. None stays None.
      ranker: run of a model of images and texts.
      keep: number of images to keep for each text. If None, all.

    Raises:
      InputError: If an answer contains no images, or the run does not rank images.
    """
    fields.at_least("keep", keep, 1)
    if not isinstance(ranker.predictor, RanksCandidates):
        raise InputError(
            f"{ranker.folder}: {type(ranker.objective).__name__} ranks no images; expected a run of a Clip"
        )
    return [None if answer is None else _ordered(answer, ranker, keep) for answer in answers]


def _ordered(answer: Answer, ranker: Run, keep: int | None) -> Pictures:
    if not isinstance(answer, Pictures):
        raise InputError(f"{ranker.folder}: ranks images; the answers are not images")
    vectors = ranker.embed([answer.request, *answer.images])
    scores = vectors[1:] @ vectors[0]
    order = np.argsort(-scores, kind="stable")[:keep]
    return dataclasses.replace(answer, images=answer.images[order], scores=tuple(scores[order].tolist()))
