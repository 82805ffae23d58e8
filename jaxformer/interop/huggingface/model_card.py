"""Writes the README.md of an exported folder: the model, its usage, its training, and the parity certificate, which
says how closely the transformers library reproduces its outputs.
"""

from pathlib import Path

import jax
import numpy as np

from jaxformer.interop.huggingface.families import families_of
from jaxformer.interop.huggingface.folders import CONFIG, read_json
from jaxformer.interop.huggingface.sentence_modules import MODULES
from jaxformer.runs.run import Run

IMAGES = "image-feature-extraction"

CARD = """---
library_name: {library}
{pipeline}tags:
{tags}
---

# {architecture}

{parameters:,} parameters in {dtype}, exported from a jaxformer run.

```python
{usage}
```

## Training

{training}

## Parity certificate

{certificate}
"""

LOADING = """from transformers import {reader}, {auto}

{reads} = {reader}.from_pretrained("{folder}")
model = {auto}.from_pretrained("{folder}")"""

EMBEDDING = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{folder}")
embeddings = model.encode(["A sentence.", "Another one."])
print(model.similarity(embeddings, embeddings))"""


def write_card(folder: Path, run: Run, dtype: str, certificate: str) -> None:
    """Writes the README.md of an exported folder.

    Args:
      folder: Exported folder, still under its temporary name.
      run: Run that was exported.
      dtype: Dtype of the weights.
      certificate: One line that says how closely the transformers library reproduces the outputs of the run.
    """
    architecture = read_json(folder / CONFIG)["architectures"][0]
    families = [family for family in families_of(run.model) if architecture in family.architectures]
    auto, pipeline = families[0].auto_class(architecture)
    library, tags, usage = "transformers", ["jaxformer"], LOADING
    if (folder / MODULES).is_file():
        library, pipeline, usage = "sentence-transformers", "sentence-similarity", EMBEDDING
        tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", *tags]
    elif run.tokenizer is None and pipeline == "feature-extraction":
        pipeline = IMAGES
    usage = usage.format(
        auto=auto,
        folder=folder.name.rpartition(".tmp-")[0] or folder.name,
        reader=families[0].bridge.processor or ("AutoImageProcessor" if run.tokenizer is None else "AutoTokenizer"),
        reads="processor" if families[0].bridge.processor or run.tokenizer is None else "tokenizer",
    )
    card = CARD.format(
        library=library,
        pipeline=f"pipeline_tag: {pipeline}\n" if pipeline else "",
        tags="\n".join(f"- {tag}" for tag in tags),
        architecture=architecture,
        parameters=sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(run.params)),
        dtype=dtype,
        usage=usage,
        training=_training(run),
        certificate=certificate,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _training(run: Run) -> str:
    experiment = run.experiment
    if not run.step:
        return "Not trained here: the weights were imported."
    row, batch = getattr(experiment.data.task, "length", None), experiment.data.batch
    rows = f"{batch} rows of {row} tokens" if row else f"{batch} rows"
    lines = [
        f"{run.step:,} of {experiment.steps:,} steps of {rows}, by {type(experiment.optimizer).__name__}, "
        f"for {type(experiment.objective).__name__}.",
        f"Data: `{experiment.data.train}`.",
    ]
    if experiment.init:
        lines.append(f"Initialised from `{Path(experiment.init).name}`.")
    return "\n\n".join(lines)
