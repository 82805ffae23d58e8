"""Opens LoRA adapters that the PEFT library has saved (Hu et al. 2022).

The adapter weights are added to each tensor of the base model when that tensor is read.
"""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import LazyTensor
from jaxformer.interop.huggingface.ctranslate2_whisper import is_ctranslate2, open_whisper
from jaxformer.interop.huggingface.families import ARCHITECTURES, family_of_config
from jaxformer.interop.huggingface.folders import ADAPTER, CONFIG, Folder, adapter_tensors, open_model, read_json
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.sentence_modules import SENTENCE_MODEL, transformer_folder
from jaxformer.interop.huggingface.table import Table

MERGE = "merge it with PEFT: model.merge_and_unload().save_pretrained(FOLDER)"
"""Advice at the end of error messages about unsupported adapters."""
IGNORED = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "bias", "exclude_modules", "fan_in_fan_out", "inference_mode"),
        *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha", "alpha_pattern", "lora_dropout"),
        *("megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern"),
        *("revision", "runtime_config", "target_modules", "task_type", "use_rslora"),
    )
)
"""Fields of adapter_config.json that may have any value here: they are either read elsewhere in this module, or affect
only training.
"""
INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Supported values of the adapter config field `init_lora_weights`: methods that initialise only the adapter, and do
not change the weights of the base model.
"""
HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
}
"""Maps the `task_type` of an adapter config to the suffix of the model's class name in the transformers library. For
task types that are not listed, the model has the class of the base model.
"""
PRETRAINED_HEADS = {
    "masked_lm": ("ForMaskedLM", "ForPreTraining"),
    "next_sentence": ("ForPreTraining",),
    "pooler": ("ForSequenceClassification", "ForPreTraining", "Model"),
}
"""Maps the parameter path of each pretraining head to the suffixes of those class names in the transformers library
that have the head.
"""
OUTER = "base_model.model."
WRAPPERS = re.compile(r"\.(base_layer|modules_to_save|original_module)(?=\.)")
"""Matches the parts that PEFT inserts into the names of adapted or replaced tensors."""
CONV1D = re.compile(r"h\.\d+\.(attn|mlp|crossattention)\.c_\w+\.weight")
"""Matches the names of the kernels in GPT-2's linear layers, which are stored as [in, out] instead of [out, in]."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two low-rank matrices, A and B, whose product a LoRA adapter adds to one tensor of the base model."""

    a: LazyTensor
    """Matrix A, [rank, in]."""
    b: LazyTensor
    """Matrix B, [out, rank]."""
    scale: float
    """Factor by which the product B A is multiplied."""
    transposed: bool
    """Whether the adapted tensor is stored as [in, out] instead of [out, in]."""

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the adapted tensor."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.transposed else (outputs, inputs)

    def merged(self, base: LazyTensor) -> LazyTensor:
        """Returns the base tensor plus the scaled product B A, in float32. The sum is computed when the
        tensor is read.
        """

        def read() -> np.ndarray:
            product = self.scale * (self.b.read().astype(np.float32) @ self.a.read().astype(np.float32))
            return base.read().astype(np.float32) + (product.T if self.transposed else product)

        return LazyTensor(np.dtype(np.float32), base.shape, read)


def base_folder(folder: Path) -> Path:
    """Finds the folder of the base model that the config of an adapter names.

    Raises:
      InputError: If the base model is not found.
    """
    path = folder / ADAPTER
    name = read_json(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: base_model_name_or_path={name!r}: expected the base's folder or name")
    beside = (
        folder.absolute().parent / name
    )  # A relative path is often relative to the folder in which both models were saved.
    try:
        return beside if not Path(name).is_dir() and (beside / CONFIG).is_file() else locate(name)
    except InputError as error:
        raise InputError(
            f"{path}: base_model_name_or_path={name!r}: the base model is not found ({error}); "
            f"put its folder's path there, or {MERGE}"
        ) from error


def open_folder(path: str | os.PathLike) -> Folder:
    """Opens the config and tensors of a model folder. If it contains a PEFT adapter, the adapter is merged into its
    base model.

    If the encoder of a sentence-transformers folder is in a subfolder, that subfolder is opened.
    A Whisper model that was converted for CTranslate2 is opened under the names of the transformers library.

    Raises:
      InputError: If the folder does not exist, or a file in it is missing, truncated or invalid.
    """
    home = Path(path)
    if not home.is_dir():
        raise InputError(f"{home}: no such folder; expected a Hugging Face folder with {CONFIG} and weights")
    path = transformer_folder(home)
    sentences = read_json(home / SENTENCE_MODEL) if (home / SENTENCE_MODEL).is_file() else {}
    if (path / ADAPTER).is_file():
        return dataclasses.replace(open_adapter(path), sentence_transformers=sentences)
    return open_whisper(path) if is_ctranslate2(path) else open_model(path, sentences)


def open_adapter(folder: Path) -> Folder:
    """Opens an adapter and its base model as one folder.

    Raises:
      InputError: If the adapter's kind or settings are not supported, the base model is not found, or the two do
        not match.
    """
    said, where = read_json(folder / ADAPTER), folder / ADAPTER
    _check(said, where)
    base = open_folder(base_folder(folder))
    architecture = _architecture(said, base, where)
    config = {**base.config, "architectures": [architecture]}
    family, _ = family_of_config(config, base.tensors, str(where))
    prefix = family.table.prefix
    names = {name.removeprefix(prefix): name for name in base.tensors}
    pairs, replaced = _parts(said, adapter_tensors(folder), prefix, where)
    if missing := sorted(name for name in pairs if name not in names):
        raise InputError(f"{where}: adapts {missing[0]}, which the base {base.path} does not have")
    tensors = dict(base.tensors)
    if architecture not in (base.config.get("architectures") or [architecture]):
        tensors = _without_heads(tensors, family.table, architecture)
    # Remove the prefix from all names, as in a model without heads, so that new heads and the base are consistent.
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for name, pair in pairs.items():
        if pair.shape != tensors[name].shape:
            raise InputError(
                f"{where}: {name} has shape {list(pair.shape)}, but {list(tensors[name].shape)} in the base {base.path}"
            )
        tensors[name] = pair.merged(tensors[name])
    tensors |= replaced
    config = _with_labels(config, family.table, tensors)
    return Folder(folder, config, base.generation, tensors, base=base.path)


def _check(said: Mapping[str, Any], where: Path) -> None:
    kind = said.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type={kind!r} is not supported; expected LORA, or {MERGE}")
    if said.get("init_lora_weights", True) not in INITIAL:
        value = said["init_lora_weights"]
        raise InputError(f"{where}: init_lora_weights={value!r}, which changes the base, is not supported; {MERGE}")
    for name, value in said.items():
        if name not in IGNORED and value not in (None, False, {}, []):
            raise InputError(f"{where}: {name}={value!r} is not supported; {MERGE}")


def _architecture(said: Mapping[str, Any], base: Folder, where: Path) -> str:
    """Returns the name of the adapted model's class in the transformers library, such as
    `BertForSequenceClassification`.

    Args:
      said: Content of adapter_config.json.
      base: Folder of the base model.
      where: Path of the adapter, for error messages.
    """
    family, own = family_of_config(base.config, base.tensors, str(base.path / CONFIG))
    named = (said.get("auto_mapping") or {}).get("base_model_class")
    ending = HEADS.get(str(said.get("task_type")))
    if named is None and (ending is None or own.endswith(ending)):
        return own
    found = [name for name, other in ARCHITECTURES.items() if other.model_type == family.model_type]
    matching = [name for name in found if (name == named if named else name.endswith(ending or ()))]
    if not matching:
        field = f"base_model_class={named!r}" if named else f"task_type={said['task_type']!r}"
        raise InputError(f"{where}: {field} is not supported for {family.model_type}; expected {', '.join(found)}")
    return matching[0]


def _parts(
    said: Mapping[str, Any], stored: Mapping[str, LazyTensor], prefix: str, where: Path
) -> tuple[dict[str, Pair], dict[str, LazyTensor]]:
    """Divides the tensors of an adapter into low-rank pairs, which are added to base tensors, and tensors that replace
    base tensors.

    Args:
      said: Content of adapter_config.json.
      stored: Tensors of the adapter, keyed by name.
      prefix: Prefix to remove from the tensor names.
      where: Path of the adapter, for error messages.
    """
    halves: dict[str, dict[str, LazyTensor]] = {}
    replaced: dict[str, LazyTensor] = {}
    for full_name, tensor in stored.items():
        name = WRAPPERS.sub("", full_name.removeprefix(OUTER))
        found = re.fullmatch(r"(.*)\.lora_(embedding_)?([AB])(\.weight)?", name)
        if found:
            side = f"{'embedding ' if found[2] else ''}{found[3].lower()}"
            halves.setdefault(found[1], {})[side] = tensor
        elif "lora_" in name or not name.endswith((".weight", ".bias")):
            raise InputError(f"{where.parent}: {full_name} is not supported; {MERGE}")
        else:
            replaced[name.removeprefix(prefix)] = tensor
    pairs = {}
    for module, sides in halves.items():
        name = f"{module.removeprefix(prefix)}.weight"
        pairs[name] = _pair(said, module, name, sides, where)
    return pairs, replaced


def _pair(said: Mapping[str, Any], module: str, name: str, sides: Mapping[str, LazyTensor], where: Path) -> Pair:
    embedding = "embedding a" in sides
    a, b = (sides.get(f"{'embedding ' if embedding else ''}{side}") for side in "ab")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InputError(f"{where.parent}: {module} expected lora_A [r, inputs] and lora_B [outputs, r]")
    alpha = _of_pattern(said.get("alpha_pattern"), module, said.get("lora_alpha", 8))
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise InputError(f"{where}: lora_alpha={alpha!r}: expected a number")
    rank = a.shape[0]
    scale = alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)
    return Pair(a, b, scale, embedding or CONV1D.fullmatch(name) is not None)


def _of_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Returns the value for a module from an adapter config field that maps patterns of module names to values, such as
    `alpha_pattern`.

    The first pattern that matches the end of the module name is used. `default` is returned if none matches.
    """
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _without_heads(tensors: Mapping[str, LazyTensor], table: Table, architecture: str) -> dict[str, LazyTensor]:
    """Returns the tensors of the base model without those of the pretraining heads that the class `architecture` of the
    transformers library does not have.
    """
    parts = {part for part, endings in PRETRAINED_HEADS.items() if not architecture.endswith(endings)}
    rows = [row for row in table.rows if row.paths[0].removeprefix("backbone/").split("/")[0] not in parts]
    names = [name.removeprefix(table.prefix) for row in rows for name in (row.theirs, *row.copies)]
    names += [name.removeprefix(table.prefix) for name in table.known]
    pattern = "|".join(re.escape(name).replace(r"\{l\}", r"\d+") for name in names)
    return {name: tensor for name, tensor in tensors.items() if re.fullmatch(pattern, name.removeprefix(table.prefix))}


def _with_labels(config: Mapping[str, Any], table: Table, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns the config of an adapted classifier with the number of labels set to the number of outputs of
    its head.
    """
    heads = [row.theirs for row in table.rows if row.paths == ("head/kernel",) and row.theirs in tensors]
    if not heads:
        return dict(config)
    count = tensors[heads[0]].shape[0]
    named = config.get("id2label")
    if isinstance(named, Mapping) and len(named) == count and config.get("num_labels", count) == count:
        return dict(config)
    return {name: value for name, value in config.items() if name not in ("id2label", "label2id")} | {
        "num_labels": count
    }
