"""Tasks on video clips: clips without labels, labeled clips, and clips in which tubes (the same patches of all frames)
are hidden.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxformer.data.examples import Example, Visit
from jaxformer.data.fields.clip import ClipField, PreparedClip
from jaxformer.data.sources.clips import Clip, ClipLike
from jaxformer.data.sources.pictures import Undecodable
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tasks.hidden import Hidden
from jaxformer.data.tasks.labelled import Labelled
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class ClipTask(FieldTask):
    """Task of video clips without labels, and base class of the other tasks on clips.

    Batch rows: `clips` uint8 [batch, frames, size, size, channels] (all views of a video in evaluation, see
    `ClipField`); `weights` float32 [batch, 1], 1 for each clip.
    """

    clip: ClipField = ClipField()
    """How clips are read, sampled, resized and augmented."""

    def examples(self, document: FieldValues, visit: Visit[FieldValues]) -> list[Example]:
        try:
            return super().examples(document, visit)
        except Undecodable as error:  # Frames are decoded at each visit, not when a clip is opened.
            self.clip.refuse(error)
            return []

    def prepare_requests(self, requests: Sequence[ClipLike]) -> list[PreparedClip]:
        """Decodes, resizes and crops videos for prediction (see `PreparedClip`).

        Raises InputError if a video cannot be decoded.
        """
        return self.clip.prepare(requests)


@dataclasses.dataclass(frozen=True)
class LabelledClips(Labelled, ClipTask):
    """Classification of clips: a clip and its label. Mixup and CutMix mix all frames of two clips in the same way.

    Batch rows: `clips` uint8 [batch, frames, size, size, channels] (all views of a video in evaluation, see
    `ClipField`); `labels` int32 and `weights` float32 [batch, 2], the labels of a clip and their shares. Without Mixup
    and CutMix, the first label has weight 1 and the second weight 0.
    """

    pixel_field: ClassVar[str] = "clip"
    pixel_array: ClassVar[str] = "clips"

    def view(self, encoded: Clip, rng: np.random.Generator) -> np.ndarray:
        return self.clip.view(encoded, rng)[0]


@dataclasses.dataclass(frozen=True)
class MaskedTubes(Hidden, ClipTask):
    """Clips with a random number (noise) for each patch of a frame. A masked autoencoder hides the patches with the
    highest numbers in all frames, so that each hidden patch extends through the whole clip as a tube (Tong et al.
    2022).

    Batch rows: `clips` uint8 [batch, frames, size, size, channels]; `noise` float32 [batch, patches], one value for
    each patch of a frame (the model sees the patches with the lowest values); `weights` float32 [batch, 1], 1 for each
    clip.
    """

    pixel_field: ClassVar[str] = "clip"

    def __post_init__(self):
        super().__post_init__()
        if self.clip.clips * self.clip.crops > 1:
            problem = f"={self.clip.clips} and crops={self.clip.crops}: expected 1 of each, as nothing is averaged"
            raise FieldError("data.task.clip.clips", problem, owner="data.task")
