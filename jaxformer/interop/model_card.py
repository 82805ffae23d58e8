"""The README.md of an exported folder: what the model is, how to load it, where it comes from."""

from pathlib import Path

import jax
import numpy as np

from jaxformer.interop.folders import CONFIG, read_json
from jaxformer.runs import Run

CLASSES = {
    "MaskedLM": "AutoModelForMaskedLM",
    "LanguageModel": "AutoModelForCausalLM",
    "Seq2Seq": "AutoModelForSeq2SeqLM",
    "ImageClassification": "AutoModelForImageClassification",
    "MaskedAutoencoding": "AutoModelForPreTraining",
}
"""What loads a model, by its objective."""

CARD = """---
library_name: transformers
tags:
- jaxformer
---

# {architecture}

{parameters:,} parameters in {dtype}, exported from a jaxformer run.

```python
from transformers import {reader}, {auto}

{reads} = {reader}.from_pretrained("{folder}")
model = {auto}.from_pretrained("{folder}")
```

## Training

{training}

## Parity certificate

{certificate}
"""


def write_card(folder: Path, run: Run, dtype: str, certificate: str) -> None:
    """Writes README.md.

    Args:
      folder: what was exported, not yet under its final name.
      run: where it comes from.
      dtype: of the weights.
      certificate: a line about it.
    """
    config = read_json(folder / CONFIG)
    name = type(run.objective).__name__
    pretraining = config["architectures"] == ["BertForPreTraining"]
    card = CARD.format(
        architecture=config["architectures"][0],
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.params)),
        dtype=dtype,
        auto="AutoModelForPreTraining" if pretraining else CLASSES.get(name, "AutoModel"),
        folder=folder.name.rpartition(".tmp-")[0] or folder.name,
        reader="AutoImageProcessor" if run.tokenizer is None else "AutoTokenizer",
        reads="processor" if run.tokenizer is None else "tokenizer",
        training=_training(run),
        certificate=certificate,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _training(run: Run) -> str:
    experiment = run.experiment
    if not run.step:
        return "Not trained here: the weights were imported."
    row, batch = experiment.data.task.length if hasattr(experiment.data.task, "length") else None, experiment.data.batch
    rows = f"{batch} rows of {row} tokens" if row else f"{batch} rows"
    lines = [
        f"{run.step:,} of {experiment.steps:,} steps of {rows}, by {type(experiment.optimizer).__name__}, "
        f"for {type(experiment.objective).__name__}.",
        f"Data: `{experiment.data.train}`.",
    ]
    if experiment.init:
        lines.append(f"It began with the parameters of `{Path(experiment.init).name}`.")
    return "\n\n".join(lines)
