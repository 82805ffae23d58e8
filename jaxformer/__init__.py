"""A library for pretraining Transformers in JAX.

import jaxformer as jf
run = jf.fit(jf.load("configs/bert_quickstart.py"), workdir="runs/bert")
run = jf.open_run("runs/bert")
run.predict("In the beginning [MASK] created the heavens")

A config file needs only this import. It provides `jf.Experiment`, and the classes of the parts of an experiment in the
namespaces `jf.models`, `jf.layers`, `jf.objectives`, `jf.metrics`, `jf.data`, `jf.tokenizers` and `jf.optimizers`.
"""

from typing import TYPE_CHECKING

from jaxformer import field_docs, namespaces

__version__ = "0.1.0"

field_docs.install()

if TYPE_CHECKING:
    from jaxformer import data as data
    from jaxformer import layers as layers
    from jaxformer import metrics as metrics
    from jaxformer import models as models
    from jaxformer import objectives as objectives
    from jaxformer import optimizers as optimizers
    from jaxformer import tokenizers as tokenizers
    from jaxformer.classes import allow as allow
    from jaxformer.config import Checkpoint as Checkpoint
    from jaxformer.config import Evaluation as Evaluation
    from jaxformer.config import Experiment as Experiment
    from jaxformer.config import Log as Log
    from jaxformer.config import load as load
    from jaxformer.config import override as override
    from jaxformer.decoding.ctc import CtcSearch as CtcSearch
    from jaxformer.decoding.flow import Sampling as Sampling
    from jaxformer.decoding.ngrams import Ngrams as Ngrams
    from jaxformer.decoding.settings import Decoding as Decoding
    from jaxformer.decoding.speaking import Speaking as Speaking
    from jaxformer.decoding.transcribing import Transcribing as Transcribing
    from jaxformer.errors import InputError as InputError
    from jaxformer.evaluations import NamedEvaluation as NamedEvaluation
    from jaxformer.explanations.explanation import explain as explain
    from jaxformer.interop.export.onnx_export import export_onnx as export_onnx
    from jaxformer.interop.export.stablehlo_program import export_stablehlo as export_stablehlo
    from jaxformer.interop.huggingface.models import export_hf as export_hf
    from jaxformer.interop.huggingface.models import import_hf as import_hf
    from jaxformer.interop.huggingface.runs import export_run as export_run
    from jaxformer.interop.huggingface.runs import from_pretrained as from_pretrained
    from jaxformer.interop.huggingface.runs import import_run as import_run
    from jaxformer.interop.huggingface.text.chat_templates import chat_template as chat_template
    from jaxformer.layers.lora import Lora as Lora
    from jaxformer.notebook import chart as chart
    from jaxformer.parallel.sharding import Mesh as Mesh
    from jaxformer.planning.plans import plan as plan
    from jaxformer.planning.search import search_plans as search_plans
    from jaxformer.predictors.assistant import Assistant as Assistant
    from jaxformer.predictors.few_shot import FewShot as FewShot
    from jaxformer.predictors.few_shot import Question as Question
    from jaxformer.predictors.few_shot import few_shot as few_shot
    from jaxformer.predictors.few_shot import questions_of as questions_of
    from jaxformer.runs.conversation import Conversation as Conversation
    from jaxformer.runs.run import Run as Run
    from jaxformer.runs.run import open_run as open_run
    from jaxformer.training.loop import fit as fit
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "classes": ("allow",),
            "config": ("Checkpoint", "Evaluation", "Experiment", "Log", "load", "override"),
            "decoding.ctc": ("CtcSearch",),
            "decoding.flow": ("Sampling",),
            "decoding.ngrams": ("Ngrams",),
            "decoding.settings": ("Decoding",),
            "decoding.speaking": ("Speaking",),
            "decoding.transcribing": ("Transcribing",),
            "errors": ("InputError",),
            "evaluations": ("NamedEvaluation",),
            "explanations.explanation": ("explain",),
            "interop.export.onnx_export": ("export_onnx",),
            "interop.export.stablehlo_program": ("export_stablehlo",),
            "interop.huggingface.models": ("export_hf", "import_hf"),
            "interop.huggingface.runs": ("export_run", "from_pretrained", "import_run"),
            "interop.huggingface.text.chat_templates": ("chat_template",),
            "layers.lora": ("Lora",),
            "notebook": ("chart",),
            "parallel.sharding": ("Mesh",),
            "planning.plans": ("plan",),
            "planning.search": ("search_plans",),
            "predictors.assistant": ("Assistant",),
            "predictors.few_shot": ("FewShot", "Question", "few_shot", "questions_of"),
            "runs.conversation": ("Conversation",),
            "runs.run": ("Run", "open_run"),
            "training.loop": ("fit",),
        },
        ("data", "layers", "metrics", "models", "objectives", "optimizers", "tokenizers"),
    )
