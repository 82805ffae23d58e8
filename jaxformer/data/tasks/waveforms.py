"""Tasks of models that read waveforms: transcripts spelled by CTC, and pretraining on masked spans of frames."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.characters import CharacterField
from jaxformer.data.fields.waveform import WaveformField
from jaxformer.data.sources.pictures import skip
from jaxformer.data.tasks.base import Written
from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.sounds import SoundTask
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.clusters import Clusters
from jaxformer.data.transforms.framing import Framing
from jaxformer.data.transforms.span_masking import SpanMasking, negatives
from jaxformer.errors import FieldError


@dataclasses.dataclass(frozen=True)
class WaveformTask(SoundTask):
    """Base class of tasks of models that read waveforms, and compute frames from them by convolutions."""

    audio: WaveformField = WaveformField()
    """Settings for reading sounds: the column, the length and the sampling rate."""
    framing: Framing = Framing()
    """Kernel sizes and strides of the model's convolutions, from which the number of frames is computed."""

    @property
    def frames(self) -> int:
        """Number of frames of a batch row."""
        return self.framing.frames(self.audio.capacity)

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        super().check(tokenizer, pack)
        if self.frames < 1:
            least = self.framing.window / self.audio.rate
            raise FieldError("data.task.audio.seconds", f"={self.audio.seconds}: expected {least:g} or more, one frame")

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        found = super().encode(example, tokenizer)
        if found.values is None or self.framing.frames(len(found.values["audio"].samples)) >= 1:
            return found
        skip(f"{self._name(example)}: {len(found.values['audio'].samples)} samples: shorter than a frame")
        return FieldValues(None, 1)

    def _name(self, example: Mapping[str, Any]) -> str:
        return self.audio.name_of(self.audio.read(example))

    def _masked(self, samples: np.ndarray, masking: SpanMasking, rng: np.random.Generator) -> np.ndarray:
        """Chooses the frames of a sound that are masked, uint8 [frames of the sound]."""
        return masking(max(0, self.framing.frames(len(samples))), rng)


@dataclasses.dataclass(frozen=True)
class SpelledSpeech(WaveformTask):
    """Task of speech recognition with CTC: the characters of the transcript of a sound.

    A batch is a dict of arrays: `samples` float32 and `sample_mask` uint8 [batch, samples], `targets` int32 and
    `weights` float32 [batch, characters] and, in training with `masking`, `masked` uint8 [batch, frames].
    """

    text: CharacterField = CharacterField()
    """Settings for reading transcripts: the column, the length, and whether to remove punctuation."""
    masking: SpanMasking | None = None
    """Spans of frames to mask in training, as in SpecAugment (Park et al. 2019). If None, no frames are masked."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        masked = {} if self.masking is None else {"masked": Feature(max(1, self.frames), "uint8")}
        return self.audio.features() | self.text.features() | masked

    def for_evaluation(self) -> Self:
        return dataclasses.replace(super().for_evaluation(), masking=None)

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        found = super().encode(example, tokenizer)
        if found.values is None:
            return found
        frames, needed = self.framing.frames(len(found.values["audio"].samples)), found.values["text"].frames
        if frames >= needed:
            return found
        skip(f"{self._name(example)}: {frames} frames: too few for a transcript that needs {needed}")
        return FieldValues(None, 1)

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        if self.masking is None:
            return arrays
        return arrays | {"masked": self._masked(arrays["samples"], self.masking, visit.rng)}

    @property
    def writes(self) -> bool:
        return True

    def written(self, example: Mapping[str, Any], tokenizer: Tokenizer) -> Written | None:
        text = self.text.spelled(self.text.read(example, "data.task.text.column"), tokenizer)
        return Written("", text, np.zeros(0, np.int32), False, False) if text else None

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        super().check(tokenizer, pack)
        if self.audio.crop != "none":
            raise FieldError(
                "data.task.audio.crop", f"={self.audio.crop}: a part of a sound has no transcript; expected none"
            )


@dataclasses.dataclass(frozen=True)
class MaskedSpeech(WaveformTask):
    """Task of wav2vec 2.0: spans of frames are masked, and negative examples are drawn for each masked frame.

    A batch is a dict of arrays: `samples` float32 and `sample_mask` uint8 [batch, samples], `masked` uint8 [batch,
    frames], and `negatives` int32 [batch, frames, negatives], the indices of other masked frames of the same sound.
    """

    audio: WaveformField = WaveformField(seconds=15.625, crop="random")
    """Settings for reading sounds: the column, the length and the sampling rate."""
    masking: SpanMasking = SpanMasking()
    """Spans of frames to mask."""
    negatives: int = 100
    """Number of negative examples per masked frame."""

    def __post_init__(self):
        fields.at_least("data.task.negatives", self.negatives, 1)

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        frames = max(1, self.frames)
        masks = {"masked": Feature(frames, "uint8"), "negatives": Feature(frames, shape=(self.negatives,))}
        return self.audio.features() | masks

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        masked = self._masked(arrays["samples"], self.masking, visit.rng)
        return arrays | {"masked": masked, "negatives": negatives(masked, self.negatives, visit.rng)}


@dataclasses.dataclass(frozen=True)
class ClusteredSpeech(WaveformTask):
    """Task of HuBERT: spans of frames are masked, and the cluster of each frame is to be predicted.

    A batch is a dict of arrays: `samples` float32 and `sample_mask` uint8 [batch, samples], `masked` uint8, `targets`
    int32 (clusters) and `weights` float32 [batch, frames].
    """

    audio: WaveformField = WaveformField(seconds=15.625, crop="random")
    """Settings for reading sounds: the column, the length and the sampling rate."""
    clusters: Clusters = Clusters()
    """Assigns frames to clusters."""
    masking: SpanMasking = SpanMasking(rate=0.8)
    """Spans of frames to mask."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        frames = max(1, self.frames)
        targets = {"targets": Feature(frames), "weights": Feature(frames, "float32")}
        return self.audio.features() | {"masked": Feature(frames, "uint8")} | targets

    def check(self, tokenizer: Tokenizer | None, pack: bool) -> None:
        super().check(tokenizer, pack)
        _ = self.clusters.centers  # Raises InputError if the file cannot be read.

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        arrays = self.transformed(values, visit)
        targets = self.clusters(arrays["samples"], self.framing, self.audio.rate)
        masked = self._masked(arrays["samples"], self.masking, visit.rng)
        return arrays | {"masked": masked, "targets": targets, "weights": np.ones(len(targets), np.float32)}
