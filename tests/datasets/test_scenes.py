"""The data set of scenes: boxes and masks are those of the objects, and splits share no object."""

import io
import json
import re
import tarfile

import numpy as np
from PIL import Image

from jaxformer.datasets.scenes import scenes_dataset_builder as scenes

KINDS = ("face-smiling", "hand-prop", "person", "animal-bird", "transport-air", "country-flag")


def archive(path, designer):
    """An archive as npm's, with twenty discs of one colour for each kind of object."""
    entries, contents = [], {}
    for kind, subcategory in enumerate(KINDS):
        for number in range(20):
            file = f"{kind}-{number}.png"
            entries.append(
                {
                    "name": f"{subcategory} {number}",
                    "subcategory": subcategory,
                    "sort_order": number,
                    "image": file,
                }
            )
            y, x = np.indices((64, 64)) - 31.5
            pixels = np.zeros((64, 64, 4), np.uint8)
            pixels[y**2 + x**2 < 900] = (10 * number, 40 * kind, 255, 255)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            contents[f"package/img/{designer}/64/{file}"] = buffer.getvalue()
    contents["package/emoji.json"] = json.dumps(entries).encode()
    with tarfile.open(path, "w:gz") as file:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return str(path)


def test_scenes_are_deterministic_and_their_boxes_enclose_the_visible_pixels(tmp_path):
    archives = {"google": archive(tmp_path / "google.tgz", "google")}
    found = {split: scenes.read_cut_outs(archives, split) for split in ("train", "validation")}
    names = {split: {one.name for part in found[split].values() for one in part} for split in found}
    assert len(names["train"]) == 108 and len(names["validation"]) == 12 and not names["train"] & names["validation"]
    assert {len(part) for part in found["validation"].values()} == {2}
    counts, labels = set(), set()
    for number in range(60):
        scene = scenes.compose(found["train"], np.random.default_rng(number))
        again = scenes.compose(found["train"], np.random.default_rng(number))
        assert scene["image"].tobytes() == again["image"].tobytes() and scene["objects"] == again["objects"]
        mask = np.asarray(scene["mask"])
        assert mask.max() == len(scene["objects"]) and mask.shape == scene["image"].size[::-1]
        for place, one in enumerate(scene["objects"], 1):
            rows, columns = np.nonzero(mask == place)
            height, width = mask.shape
            edges = (rows.min() / height, columns.min() / width, (rows.max() + 1) / height, (columns.max() + 1) / width)
            np.testing.assert_allclose(one["bbox"], edges)
            assert len(rows) > 0.5 * 0.7 * (18 * 0.9) ** 2
            labels.add(one["label"])
        names = [one["name"] for one in scene["objects"]]
        relations = re.findall(" (?:left of|right of|above|below) ", scene["caption"])
        assert len(relations) == max(0, len(names) - 1) and all(name in scene["caption"] for name in names)
        counts.add(len(scene["objects"]))
    assert counts == {0, 1, 2, 3, 4} and labels == set(scenes.KINDS)


def test_captions_name_the_axis_on_which_objects_are_farther_apart():
    def objects(*centers):
        return [
            {"name": f"object {number}", "bbox": scenes.tfds.features.BBox(y - 0.1, x - 0.1, y + 0.1, x + 0.1)}
            for number, (x, y) in enumerate(centers)
        ]

    assert scenes.caption_of([]) == "nothing" and scenes.caption_of(objects((0.5, 0.5))) == "object 0"
    found = scenes.caption_of(objects((0.2, 0.5), (0.7, 0.4), (0.6, 0.8)))
    assert found == "object 0 left of object 1, object 1 above object 2"
