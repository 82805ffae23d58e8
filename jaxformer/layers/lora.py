"""LoRA: adds alpha / rank · A B to a frozen kernel, and trains only the small matrices A and B (Hu et al. 2022)."""

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
    """LoRA settings: which kernels to adapt, and the size of their adapters.

    The parameters of a run with LoRA are `{"base": model parameters, "lora": adapters}`, where `lora` contains a dict
    `{"a": A, "b": B}` at the path of each adapted linear layer.
    """

    rank: int = 8
    """Rank of the adapters: number of columns of A and of rows of B."""
    alpha: float = 16.0
    """The product A B is multiplied by alpha / rank before it is added to a kernel, so that one learning rate suits all
    ranks.
    """
    target_modules: tuple[str, ...] = ("attention/(query|value)/kernel$",)
    """Regular expressions that select the kernels to adapt: those whose parameter path contains a match of at least one
    of them.
    """
    modules_to_save: tuple[str, ...] = ("^head/",)
    """Regular expressions that select parameters to train directly, without an adapter, by a match in their path. An
    example is the output layer for a new task.
    """

    def __post_init__(self):
        fields.check(self)
        fields.at_least("lora.rank", self.rank, 1)
        for name in ("target_modules", "modules_to_save"):
            for pattern in getattr(self, name):
                check_pattern(f"lora.{name}", pattern)

    def init(self, key: jax.Array, base: Any) -> Any:
        """Creates the initial matrices A and B of all adapted kernels. Returns a tree with `a` and `b` at the path of
        each linear layer.

        A is random and B is zero, so that the model computes the same as before at first.

        Args:
          key: random key.
          base: parameters of the model, a tree of `metadata.Boxed` (arrays with named axes), which the returned tree
            also contains.

        Raises:
          InputError: If a pattern of `target_modules` matches no kernel.
        """
        kernels = {path: leaf for path, leaf in _flat(base).items() if path.endswith(KERNEL)}
        for pattern in self.target_modules:
            if not any(found_in(path, [pattern]) for path in kernels):
                raise InputError(
                    f"lora.target_modules={pattern!r}: matches no kernel path; an example of a path is "
                    f"{next(iter(kernels))}"
                )
        found = {}
        for number, (path, kernel) in enumerate(kernels.items()):
            if found_in(path, self.target_modules):
                pair = self._pair(jax.random.fold_in(key, number), kernel)
                found |= {f"{path.removesuffix(KERNEL)}/{name}": part for name, part in pair.items()}
        return flax.traverse_util.unflatten_dict(found, sep="/")

    def merge(self, params: Any) -> Any:
        """Adds alpha / rank · A B to each adapted kernel. Returns the resulting parameters of the model. `params`
        contains the trees `base` and `lora`.
        """
        merged, pairs = _flat(params["base"]), _flat(params["lora"])
        for name in pairs:
            path, _, part = name.rpartition("/")
            if part == "a":
                kernel, a, b = merged[path + KERNEL], pairs[f"{path}/a"], pairs[f"{path}/b"]
                batch = kernel.shape[: a.ndim + b.ndim - 2 - kernel.ndim]  # Layer axes, which A and B both have.
                a, b = a.reshape(*batch, -1, self.rank), b.reshape(*batch, self.rank, -1)
                product = jnp.matmul(a, b, precision="highest")  # As exact on accelerators as the kernel.
                merged[path + KERNEL] = kernel + self.alpha / self.rank * product.reshape(kernel.shape)
        return flax.traverse_util.unflatten_dict(merged, sep="/")

    def is_held(self, path: str) -> bool:
        """Returns whether a run with LoRA keeps the parameter at `path`, such as `base/embeddings/token`, fixed."""
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
