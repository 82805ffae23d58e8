"""Whether a CLIP recognizes the names of generated images, for names that no model was trained on.

    python train.py configs/clip_emoji.py --workdir runs/clip
    python train.py configs/dit_emoji.py --workdir runs/dit_emoji
    python benchmarks/named_images.py runs/dit_emoji runs/clip --grid grid.png

Draws names from the run's held-out data, generates an image for each, and counts how often the right name is among the
five that the CLIP finds the most similar. The same is counted for the held-out images themselves, and by chance it is
5 / names. The grid shows generated images of 64 held-out names.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import jaxformer as jf
from jaxformer.predictors.pictures import grid

GOAL, FOUND = 0.4, 5
"""Goal, and number of most similar names that count."""
SHOWN, COLUMNS, SIDE = 64, 8, 64
"""Number of images in the grid, number of its columns, and least height and width of an image in it, in pixels."""


def held_out(run: jf.Run, count: int, seed: int) -> dict[str, np.ndarray]:
    """Names of the held-out data in random order, each with one of its images, uint8 [height, width, channels]."""
    data = run.experiment.data
    task, documents, found = data.task, data.validation.open(), {}
    for index in np.random.default_rng(seed).permutation(len(documents)):
        values = task.read(documents[int(index)])
        if values["text"] not in found:
            found[values["text"]] = task.image.prepare([values["image"]])[0].pixels
        if len(found) == count:
            break
    return found


def rate(clip: jf.Run, names: list[str], images: list[np.ndarray]) -> float:
    """Share of the images whose own name is among the `FOUND` most similar names."""
    vectors = clip.embed([*names, *images])
    scores = vectors[len(names) :] @ vectors[: len(names)].T
    better = (scores > np.diag(scores)[:, None]).sum(1)
    return float((better < FOUND).mean())


def save_grid(images: np.ndarray, path: Path) -> None:
    """Saves images [images, height, width, channels] as a grid, enlarged so that their pixels can be seen."""
    factor = -(-SIDE // images.shape[1])
    large = images.repeat(factor, axis=1).repeat(factor, axis=2)
    grid([large[start : start + COLUMNS] for start in range(0, len(large), COLUMNS)]).save(path, optimize=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run that generates images from texts")
    parser.add_argument("clip", help="a run of a CLIP")
    parser.add_argument("--names", type=int, default=50, help="number of held-out names")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the names")
    parser.add_argument("--grid", metavar="FILE", help="write a grid of the generated images to this file")
    options = parser.parse_args()
    run, clip = jf.open_run(options.run), jf.open_run(options.clip)
    real = held_out(run, max(options.names, SHOWN), options.seed)
    images = [answer.images[0] for answer in run.predict(list(real))]
    if options.grid:
        save_grid(np.stack(images[:SHOWN]), Path(options.grid))
    names, images = list(real)[: options.names], images[: options.names]
    generated, of_real = rate(clip, names, images), rate(clip, names, [real[name] for name in names])
    print(f"right name among {FOUND} of {len(names)}: generated {generated:.1%}, real {of_real:.1%}")
    result = {"benchmark": "named_images", "ratio": round(generated, 3), "real": round(of_real, 3), "goal": GOAL}
    print(json.dumps(result | {"met": generated >= GOAL}))
    return 0 if generated >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
