"""Cost of digests: the seconds that they add to a save, and the speed of comparing a checkpoint with them.

    python benchmarks/digests.py [--gigabytes 1] [--folder FOLDER]

A checkpoint of random numbers is saved several times. The time of a save ends when everything is on the disk; the time
of the digests is measured within it. They must take less than 5 % of a save: the ratio is 5 % divided by their share.
For the comparison the file cache is emptied of the checkpoint, so that it is read from the disk; a plain read of the
same files, emptied again, is the peer, and the comparison must reach 0.9 of its speed.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from turns import conclude

TURNS = 3
SHARE, SPEED = 0.05, 0.9


def forget(folder: Path) -> None:
    """Removes the files of a folder from the file cache."""
    for file in filter(Path.is_file, folder.rglob("*")):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_plainly(folder: Path) -> None:
    """Reads all files of a folder, several at a time, as the comparison does."""
    from concurrent.futures import ThreadPoolExecutor

    def read(file: Path) -> None:
        buffer = bytearray(1 << 22)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        list(threads.map(read, filter(Path.is_file, folder.rglob("*"))))


def timed(function, *arguments) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def measure(folder: Path, size: int) -> tuple[float, float, float, float]:
    """Median seconds of a save, of its digests, of a comparison and of a plain read."""
    import jax
    import numpy as np

    from jaxformer import digests
    from jaxformer.config import Checkpoint
    from jaxformer.training.checkpoint_digests import check_digests
    from jaxformer.training.checkpoints import Checkpoints

    draw = np.random.default_rng(0)
    arrays = {f"array{number}": jax.device_put(draw.standard_normal(size // 32, np.float32)) for number in range(8)}
    spent, of_folder = [0.0], digests.of_folder

    def clocked(*arguments):
        began = time.perf_counter()
        try:
            return of_folder(*arguments)
        finally:
            spent[-1] += time.perf_counter() - began

    digests.of_folder, saves = clocked, []
    with Checkpoints(folder, Checkpoint(keep=1)) as saved:
        for step in range(1, TURNS + 2):
            spent.append(0.0)
            os.sync()
            saves.append(timed(lambda step=step: (saved.save(step, {"params": arrays}, None), saved.wait(), os.sync())))
    digests.of_folder = of_folder
    kept, compared, read = folder / str(TURNS + 1), [], []
    for _ in range(TURNS):
        forget(kept)
        compared.append(timed(check_digests, kept))
        forget(kept)
        read.append(timed(read_plainly, kept))
    return tuple(map(statistics.median, (saves[1:], spent[2:], compared, read)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the checkpoint")
    parser.add_argument("--folder", help="where to write it; by default the folder for temporary files")
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        save, digest, compare, read = measure(Path(folder) / "checkpoints", size)
    print(f"save       {save:6.2f} s   {size / save / 1e9:6.2f} GB/s")
    print(f"digests    {digest:6.2f} s   {digest / save:6.1%} of the save")
    print(f"compare    {compare:6.2f} s   {size / compare / 1e9:6.2f} GB/s")
    print(f"plain read {read:6.2f} s   {size / read / 1e9:6.2f} GB/s")
    share, speed = round(SHARE * save / digest, 2), round(read / compare, 2)
    return conclude(
        [
            {"benchmark": "digests/save", "ratio": share, "goal": 1.0, "met": share >= 1.0},
            {"benchmark": "digests/read", "ratio": speed, "goal": SPEED, "met": speed >= SPEED},
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
