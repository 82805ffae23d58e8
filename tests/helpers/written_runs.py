"""Folders of runs that were not trained: a config, metrics and sessions, as training would write them."""

import math

from jaxformer import config, digests, strict_json
from jaxformer.runs.sessions import KINDS

START = 1_800_000_000.0


def metric_lines(steps, every=10, evaluated=50, offset=0.0):
    """Lines of `metrics.jsonl`."""
    for step in range(every, steps + 1, every):
        loss = 4 * math.exp(-step / 100) + 1 + offset
        yield {
            "step": step,
            "split": "train",
            "loss": loss,
            "gradient_norm": math.nan if step == 30 else 1 / loss,
            "learning_rate": 1e-3 * step / steps,
            "skipped_steps": 0.0,
            "tokens_per_second": 1000.0 + step,
        }
        if step % evaluated == 0:
            labels = {f"f1/label {number}": number / 20 for number in range(12)}
            yield {"step": step, "split": "validation", "loss": loss + 0.1, "accuracy": step / steps, **labels}


def session_lines(*spans, began=START, last_ends=True):
    """Lines of `sessions.jsonl` for sessions from and to given steps, an hour apart. All but the last are killed."""
    for number, (first, last) in enumerate(spans):
        time = began + 3600 * number
        counts = {"parameters": 1_234_567, "trained": 1_000_000, "devices": 8, "processes": 2}
        versions = {"jaxformer": "0.1.0", "jax": "0.10.2"}
        more = {"device": "TPU v5p", "mesh": {"fsdp": 8}, "unit": "tokens", "units_per_step": 4096}
        yield {"event": "start", "time": time, "step": first, "steps": 100, **counts, **more, "versions": versions}
        seconds = {kind: 10.0 * (place + 1) for place, kind in enumerate(KINDS)}
        ended = {"event": "end", "how": "done"} if last_ends and number == len(spans) - 1 else {"event": "progress"}
        spent = {"total": 300.0, "seconds": seconds, "memory": 3 * 2**30}
        yield {"time": time + 300, "step": last, **spent, **ended}


def write_run(folder, experiment, lines=(), sessions=(), skips=()):
    """Writes the folder of a run."""
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(digests.seal(config.to_json(experiment)), encoding="utf-8")
    for name, found in (("metrics", lines), ("sessions", sessions), ("skipped", skips)):
        sealed = [digests.seal_line(strict_json.dumps(line)) + "\n" for line in found]
        if sealed:
            (folder / f"{name}.jsonl").write_text("".join(sealed), encoding="utf-8")
    return folder
