"""Shows the files of requests in a page: pictures, frames of videos, and sounds with their spectrograms."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxformer import storage
from jaxformer.data.fields.sound import AudioField, wav
from jaxformer.data.sources import clips, pictures, sounds
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.errors import InputError
from jaxformer.html_page import enlarged, escape, picture, sound

LONGEST_SIDE = 256
"""Maximum number of pixels of the longer side of a picture."""
SMALLEST_SIDE = 128
"""Number of pixels to which the longer side of a smaller picture is enlarged, at least."""
SECONDS = 10.0
"""Number of seconds of a sound that are part of the page."""
FRAMES = 4
"""Number of frames of a video that are shown."""
BYTES = 2_000_000
"""Maximum size of all pictures and sounds of a page together, in bytes of HTML."""
HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colors of a heat map from the lowest to the highest value, as (red, green, blue)."""


class Media:
    """Shows files in a page, up to a total size."""

    def __init__(self, task: Any):
        """Prepares to show files. `task` is the task that reads them, which determines how sounds are decoded."""
        self._left = BYTES
        audio = getattr(task, "audio", None)
        self._log_mel = _log_mel_of(audio) if isinstance(audio, AudioField) else None

    def shown(self, request: str) -> str:
        """Returns the HTML that shows a file, or a note if the page has no room for it. Empty for a text, which is part
        of the answer.
        """
        if "\n" in request or not (os.path.isfile(request) or storage.is_remote(request)):
            return ""
        try:
            content = self._sound(request) if self._log_mel is not None else self._pictures(request)
        except (InputError, pictures.Undecodable, sounds.Undecodable) as error:
            return f"<p><small>{escape(error)}</small></p>"
        return self.fitting(content)

    def fitting(self, content: str) -> str:
        """Returns HTML unchanged, or a note in its place if the page has no room for it."""
        if len(content) > self._left:
            return "<p><small>The page has no room for this.</small></p>"
        self._left -= len(content)
        return content

    def _pictures(self, request: str) -> str:
        name = Path(request).name
        try:
            return picture(enlarged(pictures.read_picture(request, 3, name), SMALLEST_SIDE), name, LONGEST_SIDE)
        except pictures.Undecodable:
            clip = clips.open_clip(request)
        found = clip.pictures(np.linspace(0, clip.frames - 1, FRAMES).astype(int).tolist())
        frames = [pictures.read_picture(frame, 3, name) for _, frame in sorted(found.items())]
        return "".join(picture(frame, name, LONGEST_SIDE // 2) for frame in frames)

    def _sound(self, request: str) -> str:
        assert self._log_mel is not None
        log_mel, name = self._log_mel, Path(request).name
        samples = sounds.read_sound(request, log_mel.rate, name)[: int(SECONDS * log_mel.rate)]
        spectrogram = heat_map(log_mel(samples).T[::-1])
        shown = f'<div class="spectrogram">{picture(spectrogram, f"spectrogram of {name}")}</div>'
        return shown + sound(wav(samples, log_mel.rate), name)


def _log_mel_of(audio: AudioField) -> LogMel:
    """Returns the settings of the spectrograms that show the sounds of a field: those of the field, or for a field of
    waveforms frames of 25 ms, 10 ms apart, up to the highest frequency of the sounds.
    """
    if found := getattr(audio, "log_mel", None):
        return found
    rate = audio.sampling_rate
    return LogMel(rate=rate, window=max(1, rate // 40), hop=max(1, rate // 100), highest=rate / 2)


def heat_map(values: np.ndarray) -> Image.Image:
    """Returns a picture of a matrix. The lowest value is black and the highest one is light yellow.

    Args:
      values: matrix [height, width].
    """
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low or 1.0)
    steps = np.linspace(0, 1, len(HEAT))
    channels = [np.interp(shares, steps, [color[channel] for color in HEAT]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))
