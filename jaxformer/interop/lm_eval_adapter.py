"""Adapter that evaluates a run with EleutherAI's lm-evaluation-harness (`pip install lm_eval`).

import lm_eval
from jaxformer.interop.lm_eval_adapter import RunLM

lm_eval.simple_evaluate(model=RunLM("runs/gpt"), tasks=["lambada_openai"], num_fewshot=0)
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

# In an environment of its own, which has an older transformers than the tests.
from lm_eval import utils  # pyright: ignore[reportMissingImports]
from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from jaxformer.decoding.scoring import score
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.text.tokenizer_folders import names_beginning
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.dpo import Dpo
from jaxformer.parallel import sharding
from jaxformer.predictors.base import ScoresContinuations
from jaxformer.predictors.continuation import Continuation
from jaxformer.predictors.text_to_text import TextToTextPredictor
from jaxformer.runs.run import Run, open_run

NEW = 256
"""Default of the maximum number of new tokens, as in the models of lm-evaluation-harness."""
TAKEN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "length_penalty")
"""Generation settings of a task in lm-evaluation-harness that have the same name and meaning in `Decoding`."""


class RunLM(LM):
    """Makes a run usable as a language model in lm-evaluation-harness. If the model is an encoder–decoder, the encoder
    reads the context of a request, and the decoder generates or scores the answer.
    """

    def __init__(self, run: str | os.PathLike | Run):
        """Wraps a run.

        Args:
          run: Run, or folder of a run to open.

        Raises:
          InputError: If the model of the run does not generate text.
        """
        super().__init__()
        self.run = run if isinstance(run, Run) else open_run(run)
        if not isinstance(self.run.predictor, ScoresContinuations):
            raise InputError(f"{self.run.folder}: {type(self.run.objective).__name__} does not generate text")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Scores continuations. The arguments of each request are a context and a continuation. Returns for each
        request the log-probability of the continuation given the context, and whether greedy decoding would generate
        the continuation.
        """
        contexts, continuations = zip(*(request.args for request in requests), strict=True) if requests else ((), ())
        found = self.run.log_likelihoods(contexts, continuations)
        answers = [(one.log_probability, one.greedy) for one in found]
        self._remember("loglikelihood", requests, answers)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Returns for each request the log-probability of its whole text, given only the BOS or EOS token before the
        text. Texts longer than the model's maximum length are divided into windows.

        The values are the same as those of lm-evaluation-harness's own Hugging Face model class for the exported run.
        If the exported tokenizer adds a BOS token to texts, that class needs the option `add_bos_token=False`.
        Otherwise it adds a second BOS token and scores the first one.
        """
        run, tokenizer = self.run, self.run.require_tokenizer()
        if not isinstance(run.objective, CausalLM | Dpo):
            raise InputError(
                f"{run.folder}: expected a language model, because other models have no probability of a text"
            )
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
        """Generates a text for each request. The arguments of a request are a context and a dict of generation
        settings. The generated text is truncated before the first occurrence of any of the strings in the setting
        `until`.
        """
        answers = [""] * len(requests)
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
        """Path of the run folder. lm-evaluation-harness uses it as a key of its cache."""
        return str(self.run.folder)

    def _write(self, contexts: Sequence[str], settings: Mapping[str, Any]) -> list[str]:
        drawn = settings.get("do_sample", settings.get("temperature", 0) > 0)
        ours = {name: settings[name] for name in TAKEN if settings.get(name) is not None}
        ours |= {"max_new_tokens": settings.get("max_gen_toks", NEW), "num_beams": settings.get("num_beams", 1)}
        ours["temperature"] = float(ours.get("temperature", 1.0)) if drawn else 0.0
        run = self.run.with_decoding(**ours)
        predictor, tokenizer = run.predictor, run.require_tokenizer()
        if not isinstance(predictor, Continuation | TextToTextPredictor):
            raise InputError(f"{run.folder}: {type(run.objective).__name__} does not generate text")
        prompts = predictor.prompts(contexts)
        # The harness prefers room for the answer over a complete context.
        most = max(1, run.model.max_length + 1 - (ours["max_new_tokens"] if isinstance(predictor, Continuation) else 1))
        with sharding.use(run.mesh, run.experiment.mesh):
            outputs = predictor.write([prompt[-most:] for prompt in prompts])
        return [tokenizer.decode(output) for output in outputs]

    def _remember(self, kind: str, requests: Sequence[Instance], answers: Sequence[Any]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial(kind, request.args, answer)


def _cut(text: str, until: str | Sequence[str]) -> str:
    """Truncates a text before the first occurrence of one of the strings in `until`."""
    for end in [until] if isinstance(until, str) else until:
        text = text.split(end)[0] if end else text
    return text
