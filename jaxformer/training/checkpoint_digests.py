"""Digests of checkpoints: written before a checkpoint is committed, and compared before it is read.

Each process writes the digests of the array files that it has written itself to `digests.process_N.json`, in the
subfolder of each tree, such as `params`. Then process 0 writes the digests of all files to `digests.json` in the folder
of the checkpoint.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxformer import digests, storage
from jaxformer.training.damage import Damaged

METRICS = "metrics"
"""Name of the subfolder of a checkpoint that contains its evaluation results."""
REWRITTEN = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Names of the files in a checkpoint that Orbax writes after the digests. `check_digests` only checks that they exist,
because their content is never used.
"""


class Handler(ocp.PyTreeCheckpointHandler):
    """Orbax handler that saves trees of arrays. Each process also writes the digests of the array files that it has
    written.
    """

    async def async_save(self, directory: Any, *arguments: Any, **options: Any) -> list[Any]:
        return [
            *(await super().async_save(directory, *arguments, **options) or ()),
            _ProcessDigests(storage.path(directory)),
        ]


class _ProcessDigests:
    """Future that writes the digests of this process's array files when `result` is called. Orbax calls `result` after
    the array files are written.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def result(self, timeout: float | None = None) -> None:
        process = jax.process_index()
        files = digests.of_folder(self._folder, lambda name: name.startswith(f"ocdbt.process_{process}/"))
        digests.write(self._folder, files, f"digests.process_{process}.json")

    def cancel(self) -> None:
        """Does nothing, because the work is only done in `result`."""


def write_digests(folder: Path) -> None:
    """Writes the digests of all files in a checkpoint. If the folder is local, also flushes its files and folders to
    disk.

    Raises:
      Mismatch: If the digests that a process has written are damaged.
    """
    files: dict[str, digests.Digest] = {}
    for path in sorted(folder.glob("*/digests.process_*.json")):
        of_process = digests.read(path.parent, path.name)
        files |= {f"{path.parent.name}/{name}": digest for name, digest in of_process.items()}
    others = digests.of_folder(folder, lambda name: name not in files and name not in REWRITTEN)
    if not storage.is_remote(folder):
        digests.sync_all(folder, others)
    digests.write(folder, files | others)


def check_digests(folder: Path, trees: Collection[str] | None = None) -> None:
    """Compares the files of a checkpoint with their digests. If there are several processes, each reads only its share
    of the files.

    Args:
      folder: folder of the checkpoint.
      trees: names of the trees to check. If None, everything is checked.

    Raises:
      Damaged: If a file is missing, does not belong there, or has another size or content. The message names the first
        such file.
    """

    def checked(name: str) -> bool:
        return name not in REWRITTEN and (trees is None or "/" not in name or name.partition("/")[0] in trees)

    try:
        files, share = digests.read(folder), (jax.process_index(), jax.process_count())
        found = digests.problems(folder, files, checked, share)
    except digests.Mismatch as error:
        found = [str(error)]
    found += [f"{name} is missing" for name in REWRITTEN if not (folder / name).exists()]
    if found:
        raise Damaged(f"{folder}: damaged: {digests.summary(found)}")
