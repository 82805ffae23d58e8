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
# # Pretrain a BERT
#
# From an empty runtime to a small BERT that has read the World English Bible and fills blanks. It takes four to
# eight minutes on two CPU cores.

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

EXTRAS = "[report]"
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
# ## The experiment
#
# A config is a typed Python object. This one comes with the package; `jf.load` overrides any of its fields. For a
# text of your own, add `"data.train": jf.data.TextFiles(("my.txt",))`.

# %%
import jaxformer as jf

experiment = jf.load("bert_quickstart", SMALL.get("bert"))
print(experiment.model)

# %% [markdown]
# ## Pretraining
#
# The data set comes as a Python package, and the tokenizer is trained on it. The folder contains the whole run. If
# the runtime is lost, the same call continues the run, with the same result to the last bit.

# %%
run = jf.fit(experiment, "runs/bert")

# %% [markdown]
# ## Blanks
#
# The model has predicted the masked words of held-out chapters above. Now a sentence of yours:

# %%
run.predict("In the beginning God created the [MASK] and the earth.")

# %%
run.predict(["He said to [MASK], Go in peace.", "The [MASK] of Israel did evil in the sight of Yahweh."])

# %% [markdown]
# ## The report
#
# One page with curves, times, results and examples, which opens offline.

# %%
import html

from IPython.display import HTML

environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # The device belongs to the notebook.
subprocess.run([sys.executable, "-m", "jaxformer", "report", "runs/bert"], check=True, env=environment)
page = Path("runs/bert/report.html").read_text(encoding="utf-8")
HTML(f'<iframe srcdoc="{html.escape(page)}" width="100%" height="640"></iframe>')
