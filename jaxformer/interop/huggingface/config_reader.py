"""Reads config.json files. A config is rejected if it has a field that is neither read nor known to have no effect on
the model's results.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxformer.errors import InputError, shown
from jaxformer.interop.huggingface.generation_config import FIELDS
from jaxformer.limits import LAYERS, one_line

_HARMLESS = """
architectures model_type is_encoder_decoder
transformers_version _name_or_path name_or_path torch_dtype dtype _attn_implementation
_attn_implementation_autoset attn_implementation use_cache return_dict return_dict_in_generate output_attentions
output_hidden_states output_scores output_past torchscript use_bfloat16 initializer_range initializer_factor
init_std gradient_checkpointing finetuning_task task_specific_params tokenizer_class problem_type num_labels
id2label label2id prefix classifier_dropout classif_dropout classifier_dim vocab_file tf_legacy_loss
pretraining_tp language model_max_length bos_token_id eos_token_id eos_token_ids pad_token_id sep_token_id
decoder_start_token_id remove_invalid_values
force_bos_token_to_be_generated save_step
"""
HARMLESS = frozenset(_HARMLESS.split())
"""Names of config.json fields that do not affect the results of a model: origin of the file, selection of outputs,
initialisation, and special tokens, which are read from the tokenizer.
"""

FALSE = (
    "is_decoder",
    "add_cross_attention",
    "tie_encoder_decoder",
    "cross_attention_hidden_size",
    "pruned_heads",
    "chunk_size_feed_forward",
    "quantization_config",
    "sparsify",
)
"""Names of config.json fields that any model family may have, and that must be false or missing, because their features
are not supported.
"""


@contextlib.contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Context manager for code that builds a model from a config.json. Fields may have values of any type, so the code
    may raise any error about a value, which becomes an InputError.

    Args:
      where: path of the file, for messages.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{where}: a field has a value that cannot be used ({said})") from error


class ConfigReader:
    """Reads a config.json field by field. At the end, `finish` rejects the config if it has fields that were not read.

    Attributes:
      where: Path of the file, for error messages.
      notes: Notes about settings that only affect training and are not supported, one line each.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self._values, self.where = values, where
        self._read: set[str] = set()
        self.notes: list[str] = []

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the field's value, or `default` if it is missing or null."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def integer(self, name: str, default: int | None = None) -> int:
        """Returns the value of an integer field. Raises InputError if it is not a positive integer, or if the field is
        missing and has no default.
        """
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise self.error(name, value, "a whole number above 0")
        if "layer" in name:
            LAYERS.check(value, f"{self.where}: {name}")
        return value

    def number(self, name: str, default: float) -> float:
        """Returns the value of a numeric field as a float, or `default` if the field is missing. Raises InputError if
        it is not a number.
        """
        value = self.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, value, "a number")
        if not math.isfinite(value) or ("eps" in name and not 0 <= value < 1):
            raise self.error(name, value, "a small number, not below 0" if "eps" in name else "a finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns the value of a boolean field, or `default` if the field is missing. Raises InputError if it is not a
        boolean.
        """
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def choice(self, name: str, meanings: Mapping[str, Any], default: str) -> Any:
        """Returns `meanings[value]` for the value of a field. Raises InputError if `meanings` does not have this value.

        Args:
          name: name of the field.
          meanings: maps each supported value of the field to the value to return.
          default: value of the field if it is missing.
        """
        value = self.get(name, default)
        if value not in meanings:
            raise self.error(name, value, f"one of {', '.join(meanings)}")
        return meanings[value]

    def must(self, name: str, *allowed: Any) -> None:
        """Raises InputError if the field has a value other than the allowed ones. If the field is missing, the first
        allowed value is assumed.
        """
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise self.error(name, value, " or ".join(map(repr, allowed)))

    def rate(self, name: str, default: float = 0.0, *others: str) -> float:
        """Returns the dropout rate in the field `name`.

        Adds a line to `notes` for each field in `others` that has a different rate, because the JAX model has only one
        rate for all of them.
        """
        rate = self.number(name, default)
        for other in others:
            if (value := self.number(other, default)) != rate:
                self.notes.append(f"{other}={value} only affects training, which uses {name}={rate} instead")
        return rate

    def only_training(self, name: str) -> None:
        """Adds a line to `notes` if the field `name`, such as a dropout rate, is above 0. Such a field affects only
        training and is ignored.
        """
        if self.get(name, 0.0):
            self.notes.append(f"{name}={self.get(name)} only affects training and is ignored")

    def finish(self) -> None:
        """Raises InputError if the config has fields that were not read and may affect the results of the model."""
        for name in FALSE:
            if name not in self._read and (value := self.get(name)):
                raise self.error(name, value, "none")
        left = [
            name
            for name in self._values
            if name not in self._read | HARMLESS | FIELDS and self._values[name] is not None
        ]
        if left:
            fields = ", ".join(f"{name}={self._values[name]!r}"[:60] for name in left)
            raise InputError(f"{self.where}: unsupported fields for this model family: {fields}")

    @contextlib.contextmanager
    def located(self) -> Iterator[None]:
        """Context manager for code that builds a model. Errors about fields of the model name the file too."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.where}: {str(error).removeprefix(f'{self.where}: ')}") from error

    def error(self, name: str, value: Any, expected: str) -> InputError:
        """Creates the error for an unsupported value of a field. `expected` says which values are supported."""
        return InputError(f"{self.where}: {name}={shown(value)} is not supported; expected {expected}")
