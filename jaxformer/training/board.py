"""Writes metrics to an event file of TensorBoard."""

import sys
import time
from pathlib import Path
from types import ModuleType


class Board:
    """An open event file. Each write is in the file when it returns, and raises the error of the file system.

    The `SummaryWriter` of tensorboardX writes in a thread, which prints a traceback and ends if the disk is full. Then
    the training would wait for it forever.
    """

    def __init__(self, folder: Path, first: int):
        """Creates a new event file.

        Args:
          folder: folder of the event files, which is created if it is missing.
          first: first step that will be written. TensorBoard ignores this step and later ones in earlier files.
        """
        self._package, self._folder = tensorboard(), folder
        folder.mkdir(exist_ok=True)
        self._file = self._package.event_file_writer.EventsWriter(str(folder / "events"))
        proto = self._package.proto.event_pb2
        self._file.write_event(proto.Event(wall_time=time.time(), step=first, file_version="brain.Event:2"))
        started = proto.SessionLog(status=proto.SessionLog.START)
        self._file.write_event(proto.Event(wall_time=time.time(), step=first, session_log=started))
        self._file.flush()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes the values of metrics at a step. The keys are names such as `train/loss`."""
        event, scalar = self._package.proto.event_pb2.Event, self._package.summary.scalar
        for name, value in values.items():
            self._file.write_event(event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def tensorboard() -> ModuleType:
    """Imports tensorboardX, but prevents it from importing torch.

    tensorboardX imports torch only for a type annotation, which takes several seconds.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]  # An import of it raises ImportError.
    try:
        import tensorboardX
        import tensorboardX.event_file_writer
        import tensorboardX.proto.event_pb2
        import tensorboardX.summary
    finally:
        if hide:
            del sys.modules["torch"]
    return tensorboardX
