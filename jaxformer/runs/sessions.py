"""Reads `sessions.jsonl`, the record of the sessions of a run. A session is the part of a training that one start of
`jaxformer train` does, from its first or restored step until it ends or is killed.

Each line is a JSON object with an `event`, the `time` in seconds since 1970, the `step`, and a digest:

start      what the session trains on: devices, mesh, versions, number of parameters
progress   seconds spent so far on each kind of work (see `KINDS`), and memory; every few seconds
end        the same at the end, and how the session ended
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxformer import digests, storage

SESSIONS = "sessions.jsonl"
"""Name of the file in a run's folder."""
STARTING, COMPILATION, STEPS, DATA, EVALUATION, SAVING = (
    *("starting", "compilation", "steps", "data", "evaluation", "saving"),
)
KINDS = {
    STARTING: "opening the data, the tokenizer, and the initial parameters or a checkpoint",
    COMPILATION: "the first step, including its compilation",
    STEPS: "training steps",
    DATA: "waiting for the next batch",
    EVALUATION: "evaluations",
    SAVING: "saving checkpoints, as far as training waits for it",
}
"""Kinds of work that a session spends its time on, with their descriptions."""


@dataclasses.dataclass(frozen=True)
class Session:
    """One start of a training, until it ended or was killed."""

    start: Mapping[str, Any]
    """The line of the event `start`."""
    last: Mapping[str, Any]
    """The last line of the session: `start`, `progress` or `end`."""

    @property
    def first_step(self) -> int:
        """Number of steps that were done when the session started."""
        return int(self.start["step"])

    @property
    def last_step(self) -> int:
        """Number of steps that were done when the session recorded its last line."""
        return int(self.last["step"])

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent on each kind of work in `KINDS`, and on other work under the key `other`."""
        spent = {kind: float(self.last.get("seconds", {}).get(kind, 0.0)) for kind in KINDS}
        return spent | {"other": max(0.0, self.total - sum(spent.values()))}

    @property
    def total(self) -> float:
        """Seconds from the start of the session to its last line."""
        return float(self.last.get("total", 0.0))

    @property
    def ended(self) -> str | None:
        """How the session ended. None if it is still running or was killed."""
        return self.last.get("how")


def read_sessions(path: Path) -> list[Session]:
    """Reads the sessions in a file `SESSIONS`, oldest first. Damaged lines are left out. Empty if there is no file, as
    in a run that was imported or was trained by a version that did not record sessions.
    """
    try:
        content = storage.read_bytes(str(path)).decode(errors="replace")
    except FileNotFoundError:
        return []
    return divided(json.loads(plain) for line in content.splitlines() if (plain := digests.unseal_line(line)))


def divided(lines: Iterable[Mapping[str, Any]]) -> list[Session]:
    """Divides the lines of `SESSIONS` into sessions. Lines before the first `start` are left out."""
    found: list[Session] = []
    for line in lines:
        if line["event"] == "start":
            found.append(Session(line, line))
        elif found:
            found[-1] = dataclasses.replace(found[-1], last=line)
    return found
