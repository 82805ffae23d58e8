"""Transformers and their pretraining in JAX.

import jaxformer as jf
run = jf.fit(jf.load("configs/bert_quickstart.py"), workdir="runs/bert")
run = jf.open_run("runs/bert")
run.predict("In the beginning [MASK] created the heavens")
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxformer import field_docs

if TYPE_CHECKING:
    from jaxformer.classes import allow
    from jaxformer.config import Experiment, load
    from jaxformer.errors import InputError
    from jaxformer.interop.export.onnx_export import export_onnx
    from jaxformer.interop.export.stablehlo_program import export_stablehlo
    from jaxformer.interop.huggingface.models import export_hf, import_hf
    from jaxformer.interop.huggingface.runs import export_run, from_pretrained, import_run
    from jaxformer.runs.run import Run, open_run
    from jaxformer.training.loop import fit

__version__ = "0.1.0"

_MODULES = {
    "Experiment": "config",
    "InputError": "errors",
    "Run": "runs.run",
    "allow": "classes",
    "export_hf": "interop.huggingface.models",
    "export_onnx": "interop.export.onnx_export",
    "export_run": "interop.huggingface.runs",
    "export_stablehlo": "interop.export.stablehlo_program",
    "fit": "training.loop",
    "from_pretrained": "interop.huggingface.runs",
    "import_hf": "interop.huggingface.models",
    "import_run": "interop.huggingface.runs",
    "load": "config",
    "open_run": "runs.run",
}
"""The module of each public name."""
__all__ = [
    "Experiment",
    "InputError",
    "Run",
    "allow",
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

field_docs.install()


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    # Imports on first use: the processes that prepare data import jaxformer.data, and need no jax.
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxformer' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxformer.{_MODULES[name]}"), name)
