"""Field that reads clips of videos: selects frames, and resizes and augments them all in the same way.

A batch row consists of the frames of one clip: `frames` entries, each of shape [size, size, channels].
"""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxformer import fields
from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.base import Field
from jaxformer.data.fields.image import ImageField
from jaxformer.data.sources import columns, pictures
from jaxformer.data.sources.clips import Clip, ClipLike, is_animation, open_clip
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms import frames as sampling
from jaxformer.data.transforms.frames import Sampling
from jaxformer.data.transforms.geometry import GeometricTransform
from jaxformer.data.transforms.image import Augmentation, Fit, Resample, pixels
from jaxformer.errors import FieldError, InputError, under

EXAMPLE = "example"
"""File name, without extension, of the example clip that a run writes to its folder as an input for the `predict`
command.
"""
MAX_PREDICTED_WINDOWS = 60
"""Maximum number of consecutive windows of a video for which `predict` reports labels."""


@dataclasses.dataclass(frozen=True)
class PreparedClip:
    """A video that is decoded, resized and cropped to the model's input size for prediction."""

    path: str
    """Path of the file. For a clip in memory, a name for messages."""
    views: np.ndarray
    """Clips and crops of the video (views), uint8 [views, frames, size, size, channels]. The prediction for the whole
    video is the average over them.
    """
    windows: np.ndarray
    """Consecutive windows of the video, uint8 [windows, frames, size, size, channels]. The labels of each window are
    predicted separately.
    """
    seconds: tuple[tuple[float, float], ...]
    """Start and end of each window, in seconds."""


@dataclasses.dataclass(frozen=True)
class ClipField(Field[Clip]):
    """Field that reads a clip of a video.

    Batch rows: `clips` uint8 [batch, frames, size, size, channels] in training. In evaluation, a row contains the
    frames of all views (`clips` · `crops`) of a video, one view after the other: [batch, views · frames, size, size,
    channels].
    """

    size: int = 224
    """Height and width of the frames in a batch, in pixels."""
    channels: int = 3
    """Number of channels: 1 for grayscale, 3 for color."""
    column: str = "clip"
    """Name of the column with the clip: a path, the bytes of a file, or an array of frames (see `clips.open_clip`)."""
    frames: int = 16
    """Number of frames of a clip."""
    stride: int = 4
    """Distance between successive selected frames, in frames of the video. Only used if `sampling` is `dense`."""
    sampling: Sampling = "dense"
    """How frames are selected: `dense` (every `stride`-th frame from a random start, or from the middle of the video in
    evaluation) or `uniform` (one frame from each of `frames` segments of the whole video)."""
    clips: int = 1
    """Number of clips per video in evaluation, spread evenly over the video. The predictions for them are averaged."""
    crops: int = 1
    """Number of crops per clip in evaluation, whose predictions are averaged: 1 (the center), or 3 along the longer
    side of the frames.
    """
    augmentation: Augmentation | None = None
    """Random augmentation, drawn again each time that training reads the video, and the same for all frames of a clip.
    If None, clips are not augmented."""
    fit: Fit = "crop"
    """How a frame without augmentation is resized before its center is cropped to a square: `crop` resizes its shorter
    side, `stretch` resizes both sides, `none` does not resize.
    """
    crop: float = 1.0
    """Fraction of the resized frame that the center crop keeps, per side: frames are resized to size / crop pixels."""
    resample: Resample = "bilinear"
    """Interpolation filter for resizing."""
    strict: bool = False
    """Whether to stop at a clip that cannot be decoded. If False, such a clip is skipped with a note on standard error.
    """

    def __post_init__(self):
        for name in ("frames", "stride", "clips"):
            fields.at_least(f"data.task.clip.{name}", getattr(self, name), 1)
        if self.crops not in (1, 3):
            raise FieldError("data.task.clip.crops", f"={self.crops}: expected 1 or 3")
        if self.crops == 3 and self.fit != "crop":
            raise FieldError(
                "data.task.clip.crops", f"=3: expected 1 with fit={self.fit}; only fit=crop has a longer side"
            )
        if self.fit not in ("crop", "stretch", "none"):
            raise FieldError("data.task.clip.fit", f"={self.fit}: expected crop, stretch or none")
        with under("data.task.clip"):
            _ = self.frame

    @functools.cached_property
    def frame(self) -> ImageField:
        """Field that resizes and augments each frame."""
        return ImageField(
            self.size,
            self.channels,
            augmentation=self.augmentation,
            fit=self.fit,
            crop=self.crop,
            resample=self.resample,
        )

    @property
    def unit(self) -> tuple[str, int]:
        return "clips", 1

    @property
    def requirement(self) -> str:
        return "clip that can be decoded"

    def features(self) -> dict[str, Feature]:
        return {"clips": Feature(self.frames, "uint8", shape=(self.size, self.size, self.channels))}

    def for_evaluation(self) -> "ClipField":
        settings: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        settings["augmentation"] = None
        return ClipViews(**settings)

    def read(self, example: Mapping[str, Any], path: str = "data.task.clip.column") -> ClipLike:
        clip = columns.value(example, self.column, path)
        if isinstance(clip, str):
            columns.check_text(clip, f"column {self.column!r}")
        return clip

    def encode(self, value: ClipLike, tokenizer: Tokenizer | None = None) -> Clip | None:
        try:
            return open_clip(value, "a clip of the source")
        except pictures.Undecodable as error:
            self.refuse(error)
            return None

    def transform(
        self, encoded: Clip, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        """Returns a random clip of the video as `{"clips": pixels}`, uint8 [frames, size, size, channels], and the
        geometric transform applied to each of its frames.

        Raises:
          Undecodable: If a frame cannot be decoded.
        """
        clip, geometry = self.view(encoded, visit.rng)
        return {"clips": clip}, geometry

    def refuse(self, error: pictures.Undecodable) -> None:
        """Handles a clip that cannot be decoded: prints a note, or raises FieldError if `strict`."""
        if self.strict:
            raise FieldError("data.task.clip.strict", f"=True: {error}") from error
        pictures.skip(str(error))

    def view(self, clip: Clip, rng: np.random.Generator) -> tuple[np.ndarray, GeometricTransform]:
        """Selects the frames of one clip at a random position of the video, and augments all of them in the same random
        way.

        Returns the pixels, uint8 [frames, size, size, channels], and the geometric transform applied to each frame.
        """
        indices = sampling.drawn(clip.frames, self.sampling, self.frames, self.stride, rng)
        seed = int(rng.integers(2**63))
        found = self._decoded(clip, indices)
        # Equal generators draw the same crop, flip and operations for all frames.
        views = {index: self.frame.view(picture, np.random.default_rng(seed)) for index, picture in found.items()}
        return np.stack([views[index][0] for index in indices]), views[indices[0]][1]

    def views(self, clip: Clip, selections: Sequence[np.ndarray], crops: int) -> np.ndarray:
        """Resizes and crops the frames of several clips of a video, without augmentation.

        Args:
          clip: the video.
          selections: for each clip, the indices of its frames in the video, integers [frames].
          crops: number of crops of each clip.

        Returns:
          Pixels, uint8 [clips · crops, frames, size, size, channels]. The crops of a clip are next to each other.
        """
        found = self._decoded(clip, np.unique(np.concatenate(selections)))
        squares = {index: self._crops(picture, crops) for index, picture in found.items()}
        return np.stack([[squares[i][crop] for i in indices] for indices in selections for crop in range(crops)])

    def prepare(self, clips: Iterable[ClipLike]) -> list[PreparedClip]:
        """Opens videos, and decodes the clips that prediction needs (see `PreparedClip`). Raises InputError if a video
        cannot be decoded.
        """
        found = []
        for number, content in enumerate(clips, 1):
            try:
                clip = open_clip(content, f"clip {number}")
                views = sampling.spread(clip.frames, self.sampling, self.frames, self.stride, self.clips)
                windows = sampling.windows(clip.frames, self.sampling, self.frames, self.stride, MAX_PREDICTED_WINDOWS)
                pixels_of_views = self.views(clip, views, self.crops)
                pixels_of_windows = self.views(clip, windows, 1)
            except pictures.Undecodable as error:
                raise InputError(str(error)) from error
            step = self.stride if self.sampling == "dense" else 1
            ends = [min(clip.frames, int(indices[-1]) + step) / clip.rate for indices in windows]
            seconds = tuple((int(i[0]) / clip.rate, end) for i, end in zip(windows, ends, strict=True))
            if self.sampling == "uniform":
                seconds = ((0.0, clip.frames / clip.rate),)
            found.append(PreparedClip(clip.name, pixels_of_views, pixels_of_windows, seconds))
        return found

    def request(self, example: Mapping[str, Any], folder: Path, path: str = "data.task.clip.column") -> str | None:
        clip = columns.value(example, self.column, path)
        if isinstance(clip, str | os.PathLike):
            return str(clip)
        if isinstance(clip, np.ndarray):
            return None
        file = folder / f"{EXAMPLE}{'.webp' if is_animation(clip) else '.mp4'}"
        if not file.exists():  # The file may belong to the user.
            file.write_bytes(clip)
        return str(file)

    def _decoded(self, clip: Clip, indices: np.ndarray) -> dict[int, Image.Image]:
        found = clip.pictures(indices.tolist())
        return {index: self.frame.decode(picture, clip.name) for index, picture in found.items()}

    def _crops(self, picture: Image.Image, crops: int) -> list[np.ndarray]:
        """Resizes a frame and crops its center (`crops` = 1), or three squares along its longer side. Returns one uint8
        array [size, size, channels] per crop.
        """
        if crops == 1:
            return [self.frame.prepared(picture)]
        edge, (width, height) = self.frame.edge, picture.size
        scale = edge / min(width, height)
        size = max(self.size, int(width * scale)), max(self.size, int(height * scale))
        resized = picture.resize(size, Image.Resampling[self.resample.upper()], reducing_gap=3.0)
        free = size[0] - self.size, size[1] - self.size
        found = []
        for part in (0.0, 0.5, 1.0):
            left = round(free[0] * (part if width >= height else 0.5))
            upper = round(free[1] * (part if height > width else 0.5))
            found.append(pixels(resized.crop((left, upper, left + self.size, upper + self.size))))
        return found


@dataclasses.dataclass(frozen=True)
class ClipViews(ClipField):
    """Form of `ClipField` for evaluation: a batch row contains the frames of all views (`clips` · `crops`) of a video,
    one view after the other.
    """

    def features(self) -> dict[str, Feature]:
        (name, feature), *_ = super().features().items()
        return {name: dataclasses.replace(feature, capacity=self.clips * self.crops * self.frames)}

    def transform(
        self, encoded: Clip, visit: Visit, geometry: GeometricTransform | None = None
    ) -> tuple[Example, GeometricTransform | None]:
        selections = sampling.spread(encoded.frames, self.sampling, self.frames, self.stride, self.clips)
        views = self.views(encoded, selections, self.crops)
        return {"clips": views.reshape(-1, *views.shape[2:])}, None
