"""Optimizers and learning rate schedules."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.training.optimizers import Adafactor as Adafactor
    from jaxformer.training.optimizers import AdamW as AdamW
    from jaxformer.training.optimizers import Lion as Lion
    from jaxformer.training.optimizers import Muon as Muon
    from jaxformer.training.optimizers import Optimizer as Optimizer
    from jaxformer.training.optimizers import Schedule as Schedule
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "training.optimizers": ("Adafactor", "AdamW", "Lion", "Muon", "Optimizer", "Schedule"),
        },
    )
