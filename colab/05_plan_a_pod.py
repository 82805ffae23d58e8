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
# # Plan a pod before you rent it
#
# How should LLaMA 7B run on 64 chips of TPU v5p? Which mesh, how long, at what price? No accelerator is needed, and
# it takes a minute.

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

EXTRAS = ""
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
# ## A search by formulas
#
# A candidate is a mesh (how many chips share the batch, the parameters, the heads, the rows), what is computed again
# in the backward pass, and the number of micro-batches. Formulas estimate the time of a step of each.

# %%
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # No device of this runtime is used.

from IPython.display import HTML

import jaxformer as jf

CONFIG, TOPOLOGY, PRICE = SMALL.get("config", "llama_7b"), "v5p:4x4x4", 4.2  # US dollars per chip and hour.
search = jf.search_plans(CONFIG, TOPOLOGY, compiled=0)
steps = search.experiment.steps
print(f"{len(search.ranking)} candidates on {search.topology.name}")


def table(rows: list[list[str]], names: list[str]) -> HTML:
    """Shows a table."""
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = ("".join(f"<td>{value}</td>" for value in row) for row in rows)
    return HTML(f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")


best = [one for one in search.ranking if one.estimate is not None][:8]
table(
    [[one.candidate.label, f"{one.estimate.middle:.2f} s", one.loses] for one in best], ["candidate", "step", "why not"]
)

# %% [markdown]
# ## What does not fit

# %%
table(
    [[one.candidate.label, one.loses] for one in search.ranking if one.estimate is None][:6], ["candidate", "problem"]
)

# %% [markdown]
# ## More chips, less time
#
# The fastest candidate on slices of growing size: days and dollars of the whole training. The batch stays the same,
# so that each chip has less to do and communicates relatively more.

# %%
days, prices = [], []
for shape in SMALL.get("shapes", ["2x4x4", "4x4x4", "4x4x8", "4x8x8"]):
    found = jf.search_plans(CONFIG, f"v5p:{shape}", compiled=0)
    seconds = found.ranking[0].estimate.middle * steps
    chips = found.topology.size
    days.append((chips, seconds / 86_400))
    prices.append((chips, seconds / 3600 * chips * PRICE / 1000))
    print(f"{chips:4} chips: {seconds / 86_400:6.1f} days, {prices[-1][1]:6.0f} thousand dollars")
jf.chart({"days": days}, axis="chips")

# %%
jf.chart({"thousand dollars": prices}, axis="chips")

# %% [markdown]
# ## Compiled plans
#
# With the compilers (`pip install 'jaxformer[plan]'`, 5 GB; on a TPU runtime they are there), the same step is
# compiled for chips that are not attached, which counts the memory exactly.

# %%
if importlib.util.find_spec("libtpu"):
    print(jf.plan(CONFIG, TOPOLOGY, {"mesh.data": 2, "mesh.fsdp": 32}, price=PRICE).memory)
else:
    print("without a compiler for TPUs: the estimates above are those of formulas")
