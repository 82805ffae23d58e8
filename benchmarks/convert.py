"""Converting a LLaMA of a billion parameters both ways, and copying its files: seconds and memory.

    python benchmarks/convert.py

The shape of LLaMA 3.2 1B, random, in float32. `import` makes a run of a Hugging Face folder, `export` makes the folder
of the run again; each must take no more than twice the seconds of copying the folder, and no more memory above the
model's own than twice its largest tensor. Each turn has a process of its own, and the sides take turns; what was
written is on the disk when the clock stops. Free memory of a virtual machine may be its host's, and is then slow to
touch first, by up to two seconds a gigabyte: before a side's clock starts, free memory has been touched.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from turns import OURS, surroundings

GOAL, MEMORY_GOAL = 0.5, 1.0
SPARED = 1 << 30
"""Bytes of free memory that are not touched before a turn."""
WIDTH, HEADS, GROUPS, INNER, VOCAB, LETTERS = 2048, 32, 8, 8192, 128_256, "abcdefghijklmnopqrstuvwxyz"


def make(folder: str, depth: int) -> None:
    """Writes the Hugging Face folder."""
    import numpy as np

    from jaxformer.data.tokenizers import WordPiece
    from jaxformer.interop.huggingface import parameters
    from jaxformer.interop.huggingface.models import export_hf
    from jaxformer.layers.attention import Attention
    from jaxformer.layers.mlp import GatedMlp
    from jaxformer.layers.norms import RMSNorm
    from jaxformer.layers.positions import Rotary
    from jaxformer.layers.transformer import Transformer
    from jaxformer.models.gpt import Gpt

    attention = Attention(GROUPS, bias=False)
    parts = {
        "attention": attention,
        "mlp": GatedMlp(INNER),
        "norm": RMSNorm(1e-5),
        "position_embedding": Rotary(500_000.0),
    }
    model = Gpt(Transformer(WIDTH, depth, HEADS, **parts), VOCAB, 131_072)
    draw = np.random.default_rng(0)
    flat = {path: draw.standard_normal(shape, np.float32) for path, shape in parameters.abstract(model).items()}
    params = parameters.nested(flat)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
    with tempfile.TemporaryDirectory() as home:
        Path(home, "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
        tokenizer = WordPiece(path=home).build(None, os.path.join(home, "kept"))
        export_hf(model, params, tokenizer, folder)


def convert(side: str, source: str, target: str) -> None:
    """One turn of a side."""
    if side == "copy":
        shutil.copytree(source, target)
    else:
        from jaxformer.interop.huggingface.runs import export_run, import_run

        (import_run if side == "import" else export_run)(source, target, certificate=False)
    for path in Path(target).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def turn(side: str, source: str, target: str, pipe) -> None:
    """A turn in a process of its own: its seconds, and its memory above what the libraries take, in bytes."""
    import jaxformer.interop.huggingface.runs  # noqa: F401 (not part of what is timed)

    touch_memory()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    convert(side, source, target)
    seconds = time.perf_counter() - start
    pipe.send((seconds, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)))


def touch_memory() -> None:
    """Writes to each page of the free memory, in a process that ends at once; nothing else is driven out of memory."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") - SPARED
    program = f"import numpy; numpy.empty({max(free, 1)}, numpy.uint8)[::4096] = 1"
    subprocess.run([sys.executable, "-c", program], check=True)


def measure(side: str, source: Path, target: Path) -> tuple[float, int]:
    """Seconds and bytes of one turn."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=turn, args=(side, str(source), str(target), theirs))
    with surroundings(OURS):
        process.start()
    theirs.close()
    result = ours.recv()
    process.join()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3, help="timed turns of each side")
    parser.add_argument("--depth", type=int, default=16, help="layers; fewer for a trial")
    parser.add_argument("--folder", help="where to write, on the disk to be measured")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"copy": [], "import": [], "export": []}
    memory = dict.fromkeys(seconds, 0)
    with tempfile.TemporaryDirectory(dir=options.folder) as home:
        folder, run, out = Path(home, "hf"), Path(home, "run"), Path(home, "out")
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(str(folder), options.depth))
        maker.start()
        maker.join()
        size = (folder / "model.safetensors").stat().st_size
        for _ in range(options.turns):
            shutil.rmtree(run, ignore_errors=True)
            for side, source, target in (("copy", folder, out), ("import", folder, run), ("export", run, out)):
                took, used = measure(side, source, target)
                if side != "import":
                    shutil.rmtree(target)
                seconds[side].append(took)
                memory[side] = max(memory[side], used)
    largest = 4 * VOCAB * WIDTH
    results = []
    copying = statistics.median(seconds["copy"])
    print(f"copy    {copying:6.1f} s   {size / copying / 1e9:5.2f} GB/s")
    for side in ("import", "export"):
        took, extra = statistics.median(seconds[side]), memory[side] - size
        print(f"{side}  {took:6.1f} s   {size / took / 1e9:5.2f} GB/s   {extra / 1e9:5.2f} GB above the model")
        ratio, room = copying / took, 2 * largest / max(extra, 1)
        results += [
            {"benchmark": f"convert/{side}", "ratio": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL},
            {"benchmark": f"convert/{side}_memory", "ratio": round(min(room, 99.0), 2), "goal": MEMORY_GOAL}
            | {"met": room >= MEMORY_GOAL},
        ]
    print(json.dumps(results))
    return 0 if all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
