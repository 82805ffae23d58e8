"""Transformers and their pretraining in JAX.

import jaxformer as jf
run = jf.fit(jf.load("configs/bert_quickstart.py"), workdir="runs/bert")
run = jf.open_run("runs/bert")
run.predict("In the beginning [MASK] created the heavens")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxformer.config import Experiment, load
    from jaxformer.errors import InputError
    from jaxformer.interop.hf_runs import export_run, from_pretrained, import_run
    from jaxformer.interop.huggingface import export_hf, import_hf
    from jaxformer.interop.onnx import export_onnx
    from jaxformer.interop.stablehlo import export_stablehlo
    from jaxformer.runs import Run, open_run
    from jaxformer.training import fit

__version__ = "0.1.0"

_HOMES = {
    "Experiment": "config",
    "InputError": "errors",
    "Run": "runs",
    "export_hf": "interop.huggingface",
    "export_onnx": "interop.onnx",
    "export_run": "interop.hf_runs",
    "export_stablehlo": "interop.stablehlo",
    "fit": "training",
    "from_pretrained": "interop.hf_runs",
    "import_hf": "interop.huggingface",
    "import_run": "interop.hf_runs",
    "load": "config",
    "open_run": "runs",
}
__all__ = [
    "Experiment",
    "InputError",
    "Run",
    "export_hf",
    "export_onnx",
    "export_run",
    "export_stablehlo",
    "fit",
    "from_pretrained",
    "import_hf",
    "import_run",
    "load",
    "open_run",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the processes that prepare data import jaxformer.data, and need no jax.
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxformer.{_HOMES[name]}"), name)
