"""Formats transcripts as subtitles: SubRip (.srt) and WebVTT (.vtt)."""

from collections.abc import Iterable
from typing import Protocol


class Timed(Protocol):
    """A text with a start and an end in seconds."""

    @property
    def start(self) -> float:
        """Start in seconds."""
        ...

    @property
    def end(self) -> float:
        """End in seconds."""
        ...

    @property
    def text(self) -> str:
        """Text that is shown."""
        ...


class TimedWords(Timed, Protocol):
    """A text with times, whose words may have times too."""

    @property
    def words(self) -> tuple[Timed, ...]:
        """Words of the text, each with its own start and end. Empty if the times of words are not known."""
        ...


def clock(seconds: float, mark: str = ".") -> str:
    """Formats a time as hours, minutes, seconds and milliseconds: `01:02:03.456`. `mark` is the character before the
    milliseconds.
    """
    whole = round(max(0.0, seconds) * 1000)
    hours, rest = divmod(whole, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def srt(segments: Iterable[Timed]) -> str:
    """Formats segments as SubRip subtitles. Segments without text are left out."""
    shown = [segment for segment in segments if segment.text.strip()]
    blocks = [
        f"{number}\n{clock(one.start, ',')} --> {clock(one.end, ',')}\n{_plain(one.text)}\n"
        for number, one in enumerate(shown, 1)
    ]
    return "\n".join(blocks)


def vtt(segments: Iterable[TimedWords]) -> str:
    """Formats segments as WebVTT subtitles. Words with times are highlighted one after the other. Segments without text
    are left out.
    """
    blocks = ["WEBVTT\n"]
    for one in segments:
        if one.text.strip():
            text = _escaped(_plain(one.text)) if not one.words else _timed(one.words)
            blocks.append(f"{clock(one.start)} --> {clock(one.end)}\n{text}\n")
    return "\n".join(blocks)


def _timed(words: tuple[Timed, ...]) -> str:
    first, *rest = words
    marked = (f"<{clock(word.start)}>{_escaped(_plain(word.text, strip=False))}" for word in rest)
    return "".join([_escaped(_plain(first.text)), *marked])


def _plain(text: str, strip: bool = True) -> str:
    """Returns a text on one line. Replaces `-->`, which separates the two times of a subtitle, by `->`. If `strip`,
    removes spaces at both ends.
    """
    text = text.replace("-->", "->").replace("\n", " ").replace("\r", " ")
    return text.strip() if strip else text


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
