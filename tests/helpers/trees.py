"""Everything that is in a folder, to compare what it was before with what it is after."""

import os
from pathlib import Path


def tree(folder: Path) -> dict[str, tuple]:
    """Kind, time and content of the folder and of all below it, by path; links are not followed."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, status.st_mtime_ns, content)
    return found
