"""A run as a model of EleutherAI's lm-evaluation-harness (`pip install lm_eval`).

import lm_eval
from jaxformer.interop.lm_eval_adapter import RunLM

lm_eval.simple_evaluate(model=RunLM("runs/gpt"), tasks=["lambada_openai"], num_fewshot=0)
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from jaxformer.decoding.scoring import score
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.text.tokenizer_folders import names_beginning
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.parallel import sharding
from jaxformer.predictors.base import ScoresContinuations
from jaxformer.predictors.continuation import Continuation
from jaxformer.runs.run import Run, open_run

NEW = 256
"""Default of the most new tokens in a task, as in the harness' own models."""
TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "length_penalty")
"""Settings of a task's generation that have the same names and meanings in `Decoding`."""


class RunLM(LM):
    """A run's language model, or an encoder–decoder, to which a context is its input."""

    def __init__(self, run: str | os.PathLike | Run):
        """`run`: the run or its folder; InputError if its model generates no text."""
        super().__init__()
        self.run = run if isinstance(run, Run) else open_run(run)
        if not isinstance(self.run.predictor, ScoresContinuations):
            raise InputError(f"{self.run.folder}: {type(self.run.objective).__name__} does not write")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """For each (context, continuation): its log-probability, and whether greedy decoding would give it."""
        contexts, continuations = zip(*(request.args for request in requests), strict=True) if requests else ((), ())
        found = self.run.log_likelihoods(contexts, continuations)
        answers = [(one.log_probability, one.greedy) for one in found]
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """For each (text,): its log-probability after the beginning or end token, window by window where it is long.

        The harness's own model of an exported folder gives the same. Where the tokenizer adds the beginning token, it
        does so with `add_bos_token=False`; otherwise it counts that token too, after another one.
        """
        run, tokenizer = self.run, self.run.tokenizer
        if not isinstance(run.objective, CausalLM):
            raise InputError(f"{run.folder}: only a language model has the probability of a text")
        begins = names_beginning(tokenizer, run.objective.beginning)
        first = tokenizer.bos_id if begins else tokenizer.eos_id
        owners, prompts, continuations = [], [], []
        for number, request in enumerate(requests):
            tokens = tokenizer.encode(request.args[0]).tolist()
            windows = utils.get_rolling_token_windows(tokens, first, run.model.max_length, context_len=1)
            for context, continuation in map(utils.make_disjoint_window, windows):
                owners.append(number)
                prompts.append(context)
                continuations.append(continuation)
        with sharding.use(run.mesh, run.experiment.mesh):
            found = score(run.model, run.params, prompts, continuations)
        answers = [0.0] * len(requests)
        for owner, one in zip(owners, found, strict=True):
            answers[owner] += one.log_probability
        self._remember("loglikelihood_rolling", requests, answers)
        return answers

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """For each (context, settings): what the model writes, up to the first of the strings `until`."""
        answers: list[str | None] = [None] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in groups.values():
            settings = requests[numbers[0]].args[1]
            written = self._write([requests[number].args[0] for number in numbers], settings)
            for number, text in zip(numbers, written, strict=True):
                answers[number] = _cut(text, settings.get("until", ()))
        self._remember("generate_until", requests, answers)
        return answers

    @property
    def tokenizer_name(self) -> str:
        """The run's folder, which names what is remembered of its answers."""
        return str(self.run.folder)

    def _write(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        drawn = settings.get("do_sample", settings.get("temperature", 0) > 0)
        ours = {name: settings[name] for name in TAKEN if settings.get(name) is not None}
        ours |= {"max_new_tokens": settings.get("max_gen_toks", NEW), "num_beams": settings.get("num_beams", 1)}
        ours["temperature"] = float(ours.get("temperature", 1.0)) if drawn else 0.0
        run = self.run.with_decoding(**ours)
        predictor, tokenizer = run.predictor, run.tokenizer
        prompts = predictor.prompts(contexts)
        # The harness wants room for the answer rather than the whole of a long context.
        most = max(1, run.model.max_length + 1 - (ours["max_new_tokens"] if isinstance(predictor, Continuation) else 1))
        with sharding.use(run.mesh, run.experiment.mesh):
            outputs = predictor.write([prompt[-most:] for prompt in prompts])
        return [tokenizer.decode(output) for output in outputs]

    def _remember(self, kind: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def _cut(text: str, until: str | Sequence[str]) -> str:
    """The text before the first of some strings."""
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text
