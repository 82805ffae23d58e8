"""Opening and decoding of clips (short videos) from files, bytes or arrays, and a source of folders of clips.

Videos are decoded by PyAV (`pip install 'jaxformer[video]'`), and animated GIF, WebP and PNG images by Pillow.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from jaxformer import storage
from jaxformer.data.sources.pictures import ImageFolders, Undecodable, name_of, open_encoded
from jaxformer.errors import InputError

ANIMATIONS = (".apng", ".gif", ".png", ".webp")
"""File name extensions of animated images, in lower case."""
ENDINGS = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv", *ANIMATIONS)
"""File name extensions of clips, in lower case."""
ARRAY_RATE = 25.0
"""Frames per second of a clip whose rate is unknown, such as an array."""
DURATION_TOLERANCE_SECONDS = 0.5
"""Difference in seconds by which a video may be shorter than its header says before it counts as truncated. Headers
round the duration, and some do not count the last frame.
"""

ClipLike = str | os.PathLike | bytes | np.ndarray
"""Path of a video file, its content as bytes, or an array of frames [frames, height, width, channels]."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip that has been opened but not decoded, in the form that is cached."""

    content: ClipLike
    """Path of the video file, its content as bytes, or an array of its frames."""
    name: str
    """Name of the clip for error messages: its path, if it has one."""
    frames: int
    """Number of frames."""
    rate: float
    """Frames per second."""

    @property
    def size(self) -> int:
        """Size of the clip in memory, in units of four bytes."""
        if isinstance(self.content, np.ndarray):
            return self.content.nbytes // 4 + 1
        return len(self.content) // 4 + 1 if isinstance(self.content, bytes) else 64

    def pictures(self, indices: Collection[int]) -> dict[int, Any]:
        """Decodes the frames with the given indices. A video is decoded from its beginning, because seeking does not
        find frames exactly.

        Args:
          indices: indices of the frames, from 0.

        Returns:
          A dict that maps each index to its frame: an array or a Pillow image, as `pictures.read_picture` accepts.

        Raises:
          Undecodable: If a frame cannot be decoded. The message names the clip and the frame.
        """
        found, wanted = {}, set(indices)
        with _named(self.name, lambda: f"frame {max(found, default=-1) + 1} or one before it "):
            for index, frame in enumerate(_frames(self.content)):
                if index in wanted:
                    found[index] = frame
                if len(found) == len(wanted):
                    break
        if missing := sorted(wanted - found.keys()):
            raise Undecodable(f"{self.name}: ends before frame {missing[0]} of {self.frames}; the video is truncated")
        return found


def open_clip(content: ClipLike, name: str = "") -> Clip:
    """Opens a clip: reads its number of frames, and checks that the file is complete. Does not decode the frames of a
    video.

    Args:
      content: path of a video or of an animated image, the content of such a file as bytes, or an array of frames,
        uint8 [frames, height, width] or [frames, height, width, channels].
      name: name of a clip without a path, for error messages.

    Raises:
      Undecodable: If `content` is not a clip, has no frames or is truncated.
      InputError: If the clip is a video and PyAV is not installed.
    """
    name = name_of(content, name) if not isinstance(content, np.ndarray) else name
    if isinstance(content, str | os.PathLike) and storage.is_remote(content):
        content = storage.local_copy(os.fspath(content))
    with _named(name):
        if isinstance(content, np.ndarray):
            if content.ndim not in (3, 4):
                raise ValueError(f"an array of shape {content.shape}: expected [frames, height, width, channels]")
            count, rate = len(content), ARRAY_RATE
        elif is_animation(content):
            count, rate = _measure_animation(content)
        else:
            count, rate = _measure_video(content)
        if not count:
            raise ValueError("it has no frames")
    return Clip(content, name, count, rate)


def is_animation(content: str | os.PathLike | bytes) -> bool:
    """Returns whether a clip is an animated image, which is decoded by Pillow, or a video. Decides by the file name
    extension, or by the first bytes of the content.
    """
    if isinstance(content, bytes):
        webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
        return webp or content.startswith((b"GIF8", b"\x89PNG"))
    return os.fspath(content).lower().endswith(ANIMATIONS)


def _measure_animation(content: str | os.PathLike | bytes) -> tuple[int, float]:
    """Returns the number of frames of an animated image, and the frames per second."""
    with _image(content) as image:
        count = getattr(image, "n_frames", 1)
        image.seek(count - 1)
        image.load()  # Fails if the file is truncated.
        milliseconds = float(image.info.get("duration") or 0)
    return count, 1000 / milliseconds if milliseconds > 0 else ARRAY_RATE


def _measure_video(content: str | os.PathLike | bytes) -> tuple[int, float]:
    """Returns the number of frames of a video, and the frames per second. Reads all packets, but decodes nothing."""
    with _container(content) as container:
        if not container.streams.video:
            raise ValueError("it has no video stream")
        video = container.streams.video[0]
        rate = float(video.average_rate or video.guessed_rate or ARRAY_RATE)
        count, end, damaged = 0, 0.0, False
        for packet in container.demux():
            damaged |= packet.is_corrupt
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            count += packet.stream.index == video.index and packet.size > 0
        said = video.frames
        start = float(container.start_time or 0) / 1e6
        seconds = 0.0 if container.duration is None else container.duration / 1e6
        if count and (damaged or count < said or end - start + DURATION_TOLERANCE_SECONDS < seconds):
            of = f" of {said}" if count < said else f" and {end - start:.1f} of {seconds:.1f} seconds"
            raise ValueError(f"it holds {count}{of} frames; the video is truncated")
    return count, rate


def _frames(content: ClipLike) -> Iterator[Any]:
    """Yields the frames of a clip in order, as arrays or Pillow images."""
    if isinstance(content, np.ndarray):
        yield from content
    elif is_animation(content):
        with _image(content) as image:
            yield from (frame.copy() for frame in ImageSequence.Iterator(image))
    else:
        with _container(content) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                array = frame.to_ndarray(format="rgb24")
                yield np.rot90(array, round(frame.rotation / 90)) if frame.rotation else array


def _image(content: str | os.PathLike | bytes) -> Image.Image:
    return open_encoded(content)


def _container(content: str | os.PathLike | bytes) -> Any:
    """Opens a video with PyAV. Returns its container, from which packets and frames are read."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise InputError("videos need PyAV, which is not installed; pip install 'jaxformer[video]'") from error
    return av.open(io.BytesIO(content) if isinstance(content, bytes) else os.fspath(content))


@contextlib.contextmanager
def _named(name: str, where: Any = lambda: "") -> Iterator[None]:
    """Context manager that converts errors of decoders to `Undecodable`. The message has the name of the clip, and the
    result of `where()`, such as the frame number.
    """
    try:
        yield
    except InputError:
        raise
    # Errors of PyAV are OSError or ValueError. For a header that is cut off, it raises IndexError.
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, Image.DecompressionBombError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        reason = reason[:1].lower() + reason[1:]
        raise Undecodable(f"{name}: {where()}cannot be decoded: {reason}") from error


@dataclasses.dataclass(frozen=True)
class ClipFolders(ImageFolders):
    """Source of labeled clips, with one folder of clips per class. The folder name is the class name. An example has
    the columns `clip` (a path) and `label` (the class name).
    """

    endings = ENDINGS
    column = "clip"
    example = "walking/1.mp4"
