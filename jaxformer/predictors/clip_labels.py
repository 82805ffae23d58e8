"""Predicts the labels of videos: of a whole video, and of each time window."""

import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.clip import PreparedClip
from jaxformer.errors import InputError
from jaxformer.models.video_vit import VideoVit
from jaxformer.predictors.base import Answer, Predictor

ROWS, MAX_EXAMPLES = 8, 8
"""Number of clips per batch of a prediction (`ROWS`), and maximum number of held-out videos shown in a demonstration
(`MAX_EXAMPLES`).
"""
TOP = 5
"""Maximum number of labels that are printed per video."""


@dataclasses.dataclass(frozen=True)
class Window:
    """A time window of a video and its most likely label."""

    start: float
    """Start of the window in seconds."""
    end: float
    """End of the window in seconds."""
    label: str
    probability: float


@dataclasses.dataclass(frozen=True)
class VideoLabels(Answer):
    """A video and its predicted labels."""

    pair_names: ClassVar = {"labels": ("label", "probability")}

    path: str
    """Path of the video file."""
    labels: tuple[tuple[str, float], ...]
    """All labels with their probabilities for the whole video, most likely first. The probabilities are averaged over
    several clips and crops (views) of the video.
    """
    windows: tuple[Window, ...]
    """Successive time windows of the video, each with its most likely label."""

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"windows": [dataclasses.asdict(window) for window in self.windows]}

    def __str__(self) -> str:
        lines = [self.path, *(f"  {share:6.1%}  {label}" for label, share in self.labels[:TOP])]
        if len(self.windows) > 1:
            lines += [f"  {w.start:7.1f} to {w.end:.1f} s  {w.probability:6.1%}  {w.label}" for w in self.windows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{w.start:.1f}–{w.end:.1f} s</td><td>{html.escape(w.label)}</td><td>{w.probability:.1%}</td></tr>"
            for w in self.windows
        )
        (label, share), name = self.labels[0], html.escape(self.path)
        return f"<p><b>{name}</b>: {html.escape(label)} ({share:.1%})</p><table>{rows}</table>"


@dataclasses.dataclass(frozen=True, eq=False)
class ClipLabels(Predictor[VideoVit]):
    """Predictor of video classification models."""

    def encode(self, clips: Sequence[PreparedClip]) -> dict[str, np.ndarray]:
        """Converts videos to the arguments of the model: `clips`, [views, frames, height, width, channels], contains
        all views (clips and crops) of the first video, followed by those of the second one, and so on.
        """
        return {"clips": np.concatenate([clip.views for clip in clips])}

    def predict(self, clips: Sequence[PreparedClip]) -> list[VideoLabels]:
        """Predicts the label probabilities of each video, and the most likely label of each of its time windows."""
        if not self.model.labels:
            raise InputError(
                "model.labels=(): the model has no class names; fine-tune a VideoVit with labels (init=RUN)"
            )
        return [self._label(clip) for clip in clips]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Predicts the labels of the first videos of a held-out batch, and formats them for display, with the correct
        label if it differs.
        """
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0])[:MAX_EXAMPLES]:
            clips = batch["clips"][row]
            shares = self._probabilities(clips.reshape(-1, self.model.frames, *clips.shape[1:])).mean(0)
            target, guess = int(batch["labels"][row, 0]), int(shares.argmax())
            wrong = "" if guess == target else f", was {self.model.labels[target]}"
            lines.append(f"held-out clip {row}: {self.model.labels[guess]} ({shares[guess]:.1%}){wrong}")
        return lines

    def _label(self, clip: PreparedClip) -> VideoLabels:
        names, shares = self.model.labels, self._probabilities(clip.views).mean(0)
        order = np.argsort(-shares, kind="stable")
        windows = tuple(
            Window(start, end, names[row.argmax()], float(row.max()))
            for (start, end), row in zip(clip.seconds, self._probabilities(clip.windows), strict=True)
        )
        return VideoLabels(clip.path, tuple((names[i], float(shares[i])) for i in order), windows)

    def _probabilities(self, clips: np.ndarray) -> np.ndarray:
        """Computes the label probabilities of each clip, [clips, labels]. The model is applied to batches of up to
        `ROWS` clips.
        """
        parts = [clips[start : start + ROWS] for start in range(0, len(clips), ROWS)]
        return np.concatenate([np.asarray(_probabilities(self.model, self.params, part)) for part in parts])


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: VideoVit, params, clips) -> jax.Array:
    return jax.nn.softmax(model.apply({"params": params}, jnp.asarray(clips), pooled_only=True).logits)
