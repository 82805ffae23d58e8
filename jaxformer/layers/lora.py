"""LoRA: a kernel W is frozen, and W + α/r · A B is used; only the thin A and B train (Hu et al. 2022)."""

import dataclasses
import math
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp

from jaxformer import fields
from jaxformer.errors import InputError
from jaxformer.parallel import metadata
from jaxformer.parameter_paths import check_pattern, found_in

KERNEL = "/kernel"


@dataclasses.dataclass(frozen=True)
class Lora:
    """The kernels that are adapted, and the size of their adapters.

    The parameters of such a run are `{"base": the model's, "lora": {path of a linear map: {"a", "b"}}}`.
    """

    rank: int = 8
    """Columns of A and rows of B."""
    alpha: float = 16.0
    """The factor of A B is this divided by the rank, so that one learning rate serves all ranks."""
    target_modules: tuple[str, ...] = ("attention/(query|value)/kernel$",)
    """Regular expressions; the kernels in whose path one is found are adapted."""
    modules_to_save: tuple[str, ...] = ("^head/",)
    """Regular expressions; the model's parameters in whose path one is found train as they are: those that are new."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("lora.rank", self.rank, 1)
        for name in ("target_modules", "modules_to_save"):
            for pattern in getattr(self, name):
                check_pattern(f"lora.{name}", pattern)

    def init(self, key: jax.Array, base: Any) -> Any:
        """A and B of each kernel, boxed as the kernels are; A is random and B zero, so that nothing changes.

        Raises:
          InputError: a pattern of `target_modules` finds no kernel.
        """
        kernels = {path: leaf for path, leaf in _flat(base).items() if path.endswith(KERNEL)}
        for pattern in self.target_modules:
            if not any(found_in(path, [pattern]) for path in kernels):
                raise InputError(
                    f"lora.target_modules={pattern!r}: found in no kernel's path; they are like {next(iter(kernels))}"
                )
        found = {}
        for number, (path, kernel) in enumerate(kernels.items()):
            if found_in(path, self.target_modules):
                pair = self._pair(jax.random.fold_in(key, number), kernel)
                found |= {f"{path.removesuffix(KERNEL)}/{name}": part for name, part in pair.items()}
        return flax.traverse_util.unflatten_dict(found, sep="/")

    def merge(self, params: Any) -> Any:
        """The model's parameters: `base` with A B added to each kernel that has them."""
        merged, pairs = _flat(params["base"]), _flat(params["lora"])
        for name in pairs:
            path, _, part = name.rpartition("/")
            if part == "a":
                kernel, a, b = merged[path + KERNEL], pairs[f"{path}/a"], pairs[f"{path}/b"]
                batch = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]  # Layers: axes that A and B both have.
                a, b = a.reshape(*batch, -1, self.rank), b.reshape(*batch, self.rank, -1)
                product = jnp.matmul(a, b, precision="highest")  # As exact on accelerators as the kernel itself.
                merged[path + KERNEL] = kernel + self.alpha / self.rank * product.reshape(kernel.shape)
        return flax.traverse_util.unflatten_dict(merged, sep="/")

    def is_held(self, path: str) -> bool:
        """Whether a parameter of the run, such as `base/embeddings/token`, does not train."""
        return path.startswith("base/") and not found_in(path.removeprefix("base/"), self.modules_to_save)

    def _pair(self, key: jax.Array, kernel: metadata.Boxed) -> dict[str, metadata.Boxed]:
        info, shape = metadata.ParameterInfo(kernel.letters, kernel.contracted), kernel.value.shape
        batch, rows, columns = tuple(range(info.batch)), info.rows, info.columns
        bound = math.prod(shape[axis] for axis in rows) ** -0.5
        a = (*tuple(shape[axis] for axis in batch + rows), self.rank)
        b = (*tuple(shape[axis] for axis in batch), self.rank, *tuple(shape[axis] for axis in columns))

        def letters(axes):
            return "".join(kernel.letters[axis] for axis in axes)

        return {
            "a": metadata.Boxed(
                jax.random.uniform(key, a, minval=-bound, maxval=bound), letters(batch + rows) + "_", info.contracted
            ),
            "b": metadata.Boxed(jnp.zeros(b), letters(batch) + "_" + letters(columns), contracted=1),
        }


def _flat(params: Any) -> dict[str, Any]:
    return flax.traverse_util.flatten_dict(params, sep="/")
