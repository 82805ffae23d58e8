"""Fine-tuning MiniLM on movie snippets here and in PyTorch: accuracy on held-out ones, and the time.

    pip install '.[torch]' && python benchmarks/finetune_vs_torch.py --seeds 0,1,2

Both sides have the weights of configs/sentiment.py, the same head, batches in the same order, and the same optimizer
and schedule (one rate for all layers). Ours is `fit`, with several snippets in a row. PyTorch's is transformers'
BertModel with the mean of its tokens and a linear map, eager, in a plain loop; each snippet of a batch has a row of its
own, cut to the longest, as is usual there. Each training has a process of its own, one after the other. Times are of
training with reading and compiling, without evaluation.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from turns import OURS, alone, conclude

CONFIG = Path(__file__).parent.parent / "configs" / "sentiment.py"
GOALS = {"accuracy_difference": -0.01, "time": 1.0}


def experiment(steps: int, seed: int):
    """The config's without its evaluations, all layers at one rate."""
    import jaxformer as jf

    fields = {"seed": seed, "steps": steps, "checkpoint.every": steps, "checkpoint.best": None}
    return jf.load(CONFIG, fields | {"data.validation": None, "optimizer.layer_decay": 1.0})


def held_out(home: Path) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the held-out snippets."""
    import jaxformer as jf
    from jaxformer.data.pipeline.loader import evaluation_batches

    data = jf.load(CONFIG).data
    return evaluation_batches(data.validation, data, tokenizer(home), 0, range(data.batch))


def tokenizer(home: Path):
    """The config's, kept in a folder."""
    import jaxformer as jf

    return jf.load(CONFIG).tokenizer.build(None, str(home / "tokenizer"))


def prepare(home: Path) -> None:
    """Fetches all that both sides need."""
    from jaxformer.interop.huggingface.locations import locate

    locate(experiment(1, 0).init)
    next(held_out(home))


def train_ours(home: Path, steps: int, seed: int) -> tuple[float, float]:
    """Seconds of the training, and the accuracy on held-out snippets."""
    import jax

    import jaxformer as jf
    from jaxformer.metrics.means import merge
    from jaxformer.training.state import init_params

    ours = experiment(steps, seed)
    head = init_params(ours, jax.random.key(seed))["head"]
    np.savez(home / f"head{seed}.npz", **{name: np.asarray(box.value) for name, box in head.items()})
    start = time.perf_counter()
    run = jf.fit(ours, home / f"run{seed}", quiet=True)
    seconds = time.perf_counter() - start
    evaluate = jax.jit(functools.partial(ours.objective, ours.model))
    means = merge([evaluate(run.params, batch) for batch in held_out(home)])
    return seconds, float(means["accuracy"].value)


def train_theirs(home: Path, steps: int, seed: int) -> tuple[float, float]:
    """The same in PyTorch."""
    import torch
    import transformers

    from jaxformer.data.pipeline.loader import train_batches
    from jaxformer.interop.huggingface.locations import locate

    ours = experiment(steps, seed)
    data, settings = ours.data, ours.optimizer
    bert = transformers.BertModel.from_pretrained(locate(ours.init), add_pooling_layer=False)
    head, first = torch.nn.Linear(bert.config.hidden_size, len(ours.model.labels)), np.load(home / f"head{seed}.npz")
    head.load_state_dict({"weight": torch.tensor(first["kernel"]).T, "bias": torch.tensor(first["bias"])})
    model = torch.nn.ModuleList([bert, torch.nn.Dropout(ours.model.dropout), head])
    named = [(name.endswith("bias") or "LayerNorm" in name, tensor) for name, tensor in model.named_parameters()]
    groups = [
        {"params": [tensor for plain, tensor in named if plain == bare], "weight_decay": 0.0 if bare else decay}
        for bare, decay in ((True, 0.0), (False, settings.weight_decay))
    ]
    rates = np.asarray(settings.schedule(steps)(np.arange(steps)))
    optimizer = torch.optim.AdamW(groups, 0.0, (settings.b1, settings.b2), settings.eps)
    torch.manual_seed(seed)
    start = time.perf_counter()
    model.train()
    with train_batches(data, tokenizer(home), seed, range(data.batch)) as batches:
        for step in range(steps):
            logits, targets = classify(model, next(batches)[0])
            torch.nn.functional.cross_entropy(logits, targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            for group in optimizer.param_groups:
                group["lr"] = float(rates[step])
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    model.eval()
    with torch.no_grad():
        answers = [classify(model, batch) for batch in held_out(home)]
    right = [(logits.argmax(-1) == targets).numpy() for logits, targets in answers]
    return seconds, float(np.concatenate(right).mean())


def classify(model, batch: Mapping[str, np.ndarray]):
    """Logits and targets of the examples of a packed batch, each in a row of its own, padded to the longest."""
    import torch

    rows = list(zip(batch["tokens"], batch["segments"], strict=True))
    texts = [tokens[own == number] for tokens, own in rows for number in range(1, own.max() + 1)]
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(tokens)
    for row, text in enumerate(texts):
        tokens[row, : len(text)], mask[row, : len(text)] = text, 1
    bert, dropout, head = model
    tokens, mask = torch.from_numpy(tokens), torch.from_numpy(mask)
    hidden, mask = bert(tokens, attention_mask=mask).last_hidden_state, mask[..., None].float()
    logits = head(dropout((hidden * mask).sum(1) / mask.sum(1)))
    return logits, torch.from_numpy(batch["targets"][batch["weights"] > 0]).long()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2", help="of the head, the data's order and dropout")
    parser.add_argument("--steps", type=int, default=300, help="of each training")
    options = parser.parse_args()
    sides = {OURS: train_ours, "torch": train_theirs}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        alone(OURS, prepare, Path(folder))
        for seed in map(int, options.seeds.split(",")):
            for name, train in sides.items():
                seconds, accuracy = alone(name, train, Path(folder), options.steps, seed)
                found[name].append((seconds, accuracy))
                print(f"{name:10} seed {seed}   {seconds:7.1f} s   accuracy {accuracy:.4f}", flush=True)
    (seconds, accuracy), (their_seconds, their_accuracy) = (np.mean(results, axis=0) for results in found.values())
    results = []
    for name, value in {"accuracy_difference": accuracy - their_accuracy, "time": their_seconds / seconds}.items():
        line = {"benchmark": f"finetune_vs_torch/{name}", "ratio": round(float(value), 4), "goal": GOALS[name]}
        results.append(line | {"met": bool(value >= GOALS[name])})
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
