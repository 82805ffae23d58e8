"""The translation quickstart here and in PyTorch, trained to the end: BLEU and chrF on held-out books, and the time.

    pip install '.[torch]' && python benchmarks/translation_vs_torch.py --seeds 0,1

Both sides have the quickstart's model with the same first weights, its batches in the same order, and its optimizer and
schedule. Ours is `fit`; PyTorch's is transformers' MarianMTModel, eager, in a plain loop, which lays each example of a
batch into a row of its own, as Marian has no packed rows. Both answer the verses of the held-out books by the same beam
search, PyTorch's through `generate`; sacreBLEU compares with the verses themselves. Each training has a process of its
own, one after the other. Times are of training with reading and compiling, without evaluation.
"""

import argparse
import functools
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from turns import OURS, alone, conclude

CONFIG = Path(__file__).parent.parent / "configs" / "translation_quickstart.py"
GOALS = {"bleu_difference": -0.5, "time": 1.0}
AT_ONCE = 32
"""Verses that PyTorch answers at once."""


def experiment(home: Path, steps: int, seed: int):
    """The quickstart without its evaluations, with the tokenizer that `prepare` has made."""
    import jaxformer as jf
    from jaxformer.data.tokenizers import SentencePiece

    fields = {"seed": seed, "steps": steps, "checkpoint.every": steps, "data.validation": None}
    return jf.load(CONFIG, fields | {"tokenizer": SentencePiece(path=str(home / "tokenizer" / "tokenizer.model"))})


def prepare(home: Path, steps: int | None, seeds: list[int]) -> tuple[int, list[str]]:
    """Makes the tokenizer, and for each seed the first weights under Marian's names and their loss on the first batch.

    Returns:
      The steps of each training, and the held-out verses.
    """
    import jax

    import jaxformer as jf
    from jaxformer.data.pipeline.loader import train_batches
    from jaxformer.parallel.sharding import make_mesh
    from jaxformer.training.state import abstract_state, init_state

    whole = jf.load(CONFIG)
    steps = steps or whole.steps
    tokenizer = whole.tokenizer.build(whole.data.train.open, str(home / "tokenizer"))
    for seed in seeds:
        ours = experiment(home, steps, seed)
        params = init_state(ours, abstract_state(ours, make_mesh(ours.mesh))).params
        with train_batches(ours.data, tokenizer, seed, range(ours.data.batch)) as batches:
            means = jax.jit(functools.partial(ours.objective, ours.model))(params, next(batches)[0])
        np.savez(home / f"first{seed}.npz", loss=means["loss"].value, **marian_tensors(jax.device_get(params)))
    return steps, held_out(whole, tokenizer)[1]


def marian_tensors(params: Mapping) -> dict[str, np.ndarray]:
    """Our parameters under the names of MarianMTModel's, each as it has it."""
    tensors = {"model.shared.weight": params["embeddings"]["token"]}
    kinds = {"attention": "self_attn", "cross_attention": "encoder_attn"}
    maps = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    norms = {"attention": "self_attn", "cross_attention": "encoder_attn", "mlp": "final"}
    for side in ("encoder", "decoder"):
        blocks = params[side]["blocks"]
        for layer in range(len(blocks["attention_norm"]["scale"])):
            name = f"model.{side}.layers.{layer}"
            for kind in kinds.keys() & blocks.keys():
                for part, their in maps.items():
                    kernel, bias = (blocks[kind][part][array][layer] for array in ("kernel", "bias"))
                    # Heads and their dimensions are one axis.
                    tensors[f"{name}.{kinds[kind]}.{their}.weight"] = kernel.reshape(-1, bias.size).T
                    tensors[f"{name}.{kinds[kind]}.{their}.bias"] = bias.reshape(-1)
            for part, their in (("up", "fc1"), ("down", "fc2")):
                tensors[f"{name}.{their}.weight"] = blocks["mlp"][part]["kernel"][layer].T
                tensors[f"{name}.{their}.bias"] = blocks["mlp"][part]["bias"][layer]
            for part, their in norms.items():
                if f"{part}_norm" in blocks:
                    tensors[f"{name}.{their}_layer_norm.weight"] = blocks[f"{part}_norm"]["scale"][layer]
                    tensors[f"{name}.{their}_layer_norm.bias"] = blocks[f"{part}_norm"]["bias"][layer]
    return tensors


def train_ours(home: Path, steps: int, seed: int) -> tuple[float, list[str]]:
    """Seconds of the training, and the model's translations of the held-out verses."""
    import jaxformer as jf

    ours = experiment(home, steps, seed)
    start = time.perf_counter()
    run = jf.fit(ours, home / f"run{seed}", quiet=True)
    seconds = time.perf_counter() - start
    outputs = run.predictor.write(held_out(ours, run.tokenizer)[0])
    return seconds, [run.tokenizer.decode(output) for output in outputs]


def train_theirs(home: Path, steps: int, seed: int) -> tuple[float, list[str]]:
    """The same in PyTorch."""
    import torch

    from jaxformer.data.pipeline.loader import train_batches
    from jaxformer.data.tokenizers import load_tokenizer

    ours, tokenizer = experiment(home, steps, seed), load_tokenizer(str(home / "tokenizer"))
    model = marian(ours, tokenizer)
    first = dict(np.load(home / f"first{seed}.npz"))
    expected = float(first.pop("loss"))
    # Only positions, which both compute, and the head, which is the embeddings, have no tensor in the file.
    assert not model.load_state_dict(
        {name: torch.from_numpy(array) for name, array in first.items()}, strict=False
    ).unexpected_keys
    settings, rates = ours.optimizer, np.asarray(ours.optimizer.schedule(steps)(np.arange(steps)))
    betas = settings.b1, settings.b2
    optimizer = torch.optim.AdamW(model.parameters(), 0.0, betas, settings.eps, settings.weight_decay)
    torch.manual_seed(seed)
    start = time.perf_counter()
    with train_batches(ours.data, tokenizer, seed, range(ours.data.batch)) as batches:
        for step in range(steps):
            batch, _ = next(batches)
            if step == 0:
                actual = loss_of(model.eval(), batch, ours.objective.label_smoothing).item()
                assert abs(actual - expected) < 1e-4, f"not the same model: loss {actual}, ours has {expected}"
                model.train()
            optimizer.param_groups[0]["lr"] = float(rates[step])
            loss_of(model, batch, ours.objective.label_smoothing).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    outputs = write_theirs(model.eval(), ours.objective.decoding, held_out(ours, tokenizer)[0])
    return seconds, [tokenizer.decode(output) for output in outputs]


def marian(ours, tokenizer):
    """The model of an experiment as a MarianMTModel."""
    import transformers

    encoder, decoder = ours.model.encoder, ours.model.decoder
    assert encoder.norm_position == "after" and encoder.mlp.width is None and ours.model.tie_embeddings
    config = transformers.MarianConfig(
        vocab_size=ours.model.vocab,
        d_model=encoder.width,
        encoder_layers=encoder.depth,
        decoder_layers=decoder.depth,
        encoder_attention_heads=encoder.heads,
        decoder_attention_heads=decoder.heads,
        encoder_ffn_dim=4 * encoder.width,
        decoder_ffn_dim=4 * decoder.width,
        activation_function=encoder.mlp.activation,
        max_position_embeddings=ours.model.max_length,
        scale_embedding=ours.model.scale_embeddings,
        dropout=encoder.dropout,
        attention_dropout=encoder.attention_dropout,
        activation_dropout=0.0,
        # Marian's padding has no gradient; ours begins each output. A token that no text has stands for it here.
        pad_token_id=tokenizer.mask_id,
        decoder_start_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
        forced_eos_token_id=None,
    )
    return transformers.MarianMTModel(config)


def loss_of(model, batch: Mapping[str, np.ndarray], smoothing: float):
    """The loss of the examples of a packed batch, each in a row of its own."""
    import torch

    padding = model.config.pad_token_id
    inputs = torch.from_numpy(apart(batch["inputs"], batch["input_segments"], padding))
    tokens = torch.from_numpy(apart(batch["tokens"], batch["segments"], padding))
    targets = torch.from_numpy(apart(batch["targets"], batch["segments"], -100))
    masks = {"attention_mask": inputs != padding, "decoder_attention_mask": targets != -100}
    logits = model(input_ids=inputs, decoder_input_ids=tokens, use_cache=False, **masks).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=smoothing)


def apart(array: np.ndarray, segments: np.ndarray, padding: int) -> np.ndarray:
    """The examples of packed rows [b, t], each in a row of its own, padded to the longest: int64 [e, longest]."""
    packed = list(zip(array, segments, strict=True))
    return padded([row[own == number] for row, own in packed for number in range(1, own.max() + 1)], padding)


def padded(rows: Sequence[np.ndarray], padding: int) -> np.ndarray:
    """Rows with padding on their right, int64 [rows, longest]."""
    array = np.full((len(rows), max(map(len, rows))), padding, np.int64)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array


def held_out(ours, tokenizer) -> tuple[list[np.ndarray], list[str]]:
    """The prompts of the held-out verses, cut as those of training are, and what should come of them."""
    import jaxformer as jf

    task, verses = ours.data.task, jf.load(CONFIG).data.validation.open()
    pairs = [task.encode(verses[number], tokenizer) for number in range(len(verses))]
    prompts = [np.append(pair.inputs[: task.input_length - 1], tokenizer.eos_id) for pair in pairs]
    return prompts, [verses[number][task.targets] for number in range(len(verses))]


def write_theirs(model, decoding, prompts: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of `generate`, for prompts of similar lengths together."""
    import torch

    outputs: list[np.ndarray | None] = [None] * len(prompts)
    padding = model.config.pad_token_id
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    settings = {"num_beams": decoding.num_beams, "max_new_tokens": decoding.max_new_tokens, "do_sample": False}
    for start in range(0, len(order), AT_ONCE):
        numbers = order[start : start + AT_ONCE]
        inputs = torch.from_numpy(padded([prompts[number] for number in numbers], padding))
        with torch.no_grad():
            written = model.generate(inputs, attention_mask=inputs != padding, **settings).numpy()
        for number, output in zip(numbers, written, strict=True):
            ends = np.flatnonzero(output == model.config.eos_token_id)
            outputs[number] = output[1 : ends[0] if len(ends) else None]
    return outputs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1", help="of the first weights, the data's order and dropout")
    parser.add_argument("--steps", type=int, help="of each training; the quickstart's own by default")
    options = parser.parse_args()
    seeds = list(map(int, options.seeds.split(",")))
    sides = {OURS: train_ours, "torch": train_theirs}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        steps, references = alone(OURS, prepare, Path(folder), options.steps, seeds)
        for seed in seeds:
            for name, train in sides.items():
                seconds, outputs = alone(name, train, Path(folder), steps, seed)
                bleu, chrf = scores(outputs, references)
                found[name].append((seconds, bleu))
                print(f"{name:10} seed {seed}   {seconds:7.1f} s   BLEU {bleu:5.2f}   chrF {chrf:5.2f}", flush=True)
    (seconds, bleu), (their_seconds, their_bleu) = (np.mean(results, axis=0) for results in found.values())
    results = []
    for name, value in {"bleu_difference": bleu - their_bleu, "time": their_seconds / seconds}.items():
        goal = GOALS[name]
        line = {"benchmark": f"translation_vs_torch/{name}", "ratio": round(float(value), 2), "goal": goal}
        results.append(line | {"met": bool(value >= goal)})
    return conclude(results)


def scores(outputs: list[str], references: list[str]) -> tuple[float, float]:
    """BLEU and chrF."""
    import sacrebleu

    return tuple(score(outputs, [references]).score for score in (sacrebleu.corpus_bleu, sacrebleu.corpus_chrf))


if __name__ == "__main__":
    sys.exit(main())
