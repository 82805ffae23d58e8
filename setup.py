"""Installs jaxformer: `pip install .`, or with extras such as `pip install '.[cuda]'`."""

from setuptools import find_packages, setup

REQUIRED = [
    # Wide ranges here too: what a runtime such as Colab's has, with its own plug-in for its devices, stays.
    "jax>=0.9",
    "flax>=0.12.1",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    # TFDS reads array_record without TensorFlow, with these two that it does not ask for itself.
    "tensorflow-datasets>=4.9.10",
    "importlib_resources",
    "pillow",
    "array_record",
    "sentencepiece>=0.2.1",
    "protobuf",
    "flatbuffers",
    "absl-py",
    "tokenizers>=0.21",
    "tyro>=1.0",
    "sacrebleu>=2.4",
    "rouge-score>=0.1.2",
    "rich>=13",
    "tensorboardX>=2.6",
    "numpy>=2",
    "scipy>=1.13",
    "ml_dtypes",
]

EXTRAS = {
    "cuda": ["jax[cuda12]>=0.9"],
    "tpu": ["jax[tpu]>=0.9"],
    # Wide ranges: an installation that works, such as one with its own build for CUDA, stays as it is.
    "torch": ["torch>=2.6", "transformers>=4.57", "safetensors>=0.4"],
    "onnx": ["onnx-ir>=1.0", "onnxruntime>=1.20"],
    # With an older transformers than the tests: for an environment of its own.
    "optimum": ["optimum-onnx[onnxruntime]>=0.1"],
    # What compiles for GPUs and TPUs that are not here; jax names the versions that belong to it.
    "plan": ["jax[cuda12,tpu]>=0.10.2"],
    "lm_eval": ["lm_eval>=0.4.9"],
    "test": [
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6", "ruff>=0.17,<0.18", "scikit-learn"),
        *("jupytext>=1.16", "nbclient>=0.10", "nbformat>=5", "ipykernel>=6"),
        # What parity is tested with; this version of PyTorch has a build without CUDA on the package index.
        *("torch==2.13.0", "transformers>=5.23"),
    ],
}
# Clients of exported folders, for the tests that compare with them.
EXTRAS["sentence_transformers"] = [*EXTRAS["torch"], "sentence-transformers>=6"]
EXTRAS["peft"] = [*EXTRAS["torch"], "peft>=0.18"]
EXTRAS["ctranslate2"] = [*EXTRAS["torch"], "ctranslate2>=4.5"]
EXTRAS["test"] += [*EXTRAS["torch"], *EXTRAS["onnx"]]

setup(
    name="jaxformer",
    version="0.1.0",
    description="Transformers and their pretraining in JAX, for TPUs and GPUs",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["jaxformer", "jaxformer.*"]),
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jaxformer=jaxformer.cli:command"]},
)
