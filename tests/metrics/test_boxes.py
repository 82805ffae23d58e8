"""The average precision of boxes is that of pycocotools, however the images are divided into batches."""

import contextlib
import io

import numpy as np
import pytest
from small_detr import scenes

from jaxformer.metrics import boxes as metric
from jaxformer.metrics.base import MetricStates
from jaxformer.metrics.boxes import AveragePrecision

pytest.importorskip("pycocotools")


def terms(rows=24, seed=0):
    """Random scenes with predictions that are near some of the objects."""
    rng = np.random.default_rng(seed)
    found = scenes(rows, seed)
    found["crowd"] = (rng.random((rows, 3)) < 0.1).astype(np.uint8) * (found["box_weights"] > 0).astype(np.uint8)
    found["box_weights"] = found["box_weights"] * (1 - found["crowd"])
    found["areas"] = (rng.uniform(100, 20_000, (rows, 3)) * (found["boxes"][..., 2] > 0)).astype(np.float32)
    found["image_size"] = rng.integers(100, 400, (rows, 2)).astype(np.int32)
    near = np.tile(found["boxes"], (1, 2, 1)) + rng.normal(0, 0.03, (rows, 6, 4))
    right = np.tile(found["labels"], (1, 2))
    labels = np.where(rng.random((rows, 6)) < 0.7, right, rng.integers(0, 3, (rows, 6)))
    return {
        **found,
        "predicted_boxes": np.abs(near).astype(np.float32) + 0.01,
        "predicted_labels": labels,
        "scores": rng.random((rows, 6)).astype(np.float32),
    }


def of_pycocotools(arrays):
    """The numbers of pycocotools for annotations and results as its users write them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def pixels(box, size):
        x, y, width, height = map(float, box)
        high, wide = map(float, size)
        return [(x - width / 2) * wide, (y - height / 2) * high, width * wide, height * high]

    annotations, results = [], []
    images = np.flatnonzero(arrays["weights"][:, 0]).tolist()
    for row in images:
        for place in range(3):
            if arrays["box_weights"][row, place] or arrays["crowd"][row, place]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": row + 1,
                        "category_id": int(arrays["labels"][row, place]),
                        "bbox": pixels(arrays["boxes"][row, place], arrays["image_size"][row]),
                        "area": float(arrays["areas"][row, place]),
                        "iscrowd": int(arrays["crowd"][row, place]),
                    }
                )
        for place in range(6):
            results.append(
                {
                    "image_id": row + 1,
                    "category_id": int(arrays["predicted_labels"][row, place]),
                    "bbox": pixels(arrays["predicted_boxes"][row, place], arrays["image_size"][row]),
                    "score": float(arrays["scores"][row, place]),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": row + 1} for row in images],
            "annotations": annotations,
            "categories": [{"id": label} for label in range(3)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:9]


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_those_of_pycocotools(seed):
    arrays = terms(seed=seed)
    states = MetricStates((AveragePrecision(),))
    states.add({"scenes": arrays})
    found = states.compute()
    assert list(found) == list(metric.STATS) and 0 < found["ap"] < found["ap_50"] < 1
    np.testing.assert_allclose(list(found.values()), of_pycocotools(arrays), atol=1e-9)


def test_batches_do_not_change_the_numbers():
    arrays, metric = terms(), AveragePrecision()
    states = [
        metric.update({"scenes": {name: part[rows] for name, part in arrays.items()}})
        for rows in (slice(7), slice(7, None))
    ]
    assert metric.compute(metric.merge(*states)) == metric.compute(metric.update({"scenes": arrays}))
    assert metric.update({}) is None


def test_images_without_objects_have_no_precision():
    arrays = terms()
    arrays["weights"] = (np.arange(24) == 1).astype(np.float32)[:, None]
    metric = AveragePrecision()
    assert set(metric.compute(metric.update({"scenes": arrays})).values()) == {-1.0}
