"""A conversation with a chat model: the turns so far, and the answer to the next message."""

import dataclasses
from collections.abc import Generator

from jaxformer.data.sources import columns
from jaxformer.data.tasks.turns import ANSWERS, Turn, TurnTemplate
from jaxformer.errors import InputError
from jaxformer.predictors.base import Chats
from jaxformer.runs.run import Run


class Conversation:
    """A conversation with the model of a run.

    The template of the run's objective formats the turns as text, or another template that is given. If the turns no
    longer fit in the model's maximum length, the oldest questions and answers are left out of the prompt.
    """

    def __init__(self, run: Run, template: TurnTemplate | None = None, system: str = ""):
        """Starts a conversation without turns.

        Args:
          run: run of a causal language model.
          template: template that formats the turns. If None, that of the run's objective.
          system: system prompt, with which the conversation begins. If empty, there is none.

        Raises:
          InputError: If the run's model does not generate text, or there is no template.
        """
        predictor = run.predictor
        if not isinstance(predictor, Chats):
            name = type(run.objective).__name__
            raise InputError(f"{run.folder}: {name} does not answer in dialogues; expected a run of a Gpt")
        if template is None and predictor.template is None:
            raise InputError(
                f"{run.folder}: objective.template is None; expected a template, such as jf.chat_template(FOLDER)"
            )
        columns.check_text(system, "the system prompt")
        self._run, self._predictor = run, _with_template(predictor, template)
        self._system: list[Turn] = [("system", system)] if system else []
        self.turns: list[Turn] = list(self._system)
        """Turns so far, as pairs of role and content. Begins with the system prompt, if there is one."""
        self.dropped = 0
        """Number of turns that the latest prompt left out, because they do not fit in the model's maximum length."""

    def reset(self) -> None:
        """Removes all turns except the system prompt."""
        self.turns, self.dropped = list(self._system), 0

    def ask(self, message: str) -> Generator[str, None, None]:
        """Adds a message of the user to the conversation, and yields parts of the answer as soon as they are generated.

        When the iterator ends or is closed, the answer up to there is added to the conversation. If the message is
        refused, the conversation does not change.

        Raises:
          InputError: If the message is longer than the model's maximum length, or the template refuses it.
        """
        columns.check_text(message, "the message")
        turns = [*self.turns, ("user", message)]
        dropped, prompt = self._fitting(turns)
        answer, ended = "", False
        try:
            for piece in self._run.pieces(self._predictor.chat(prompt)):
                answer += piece
                yield piece
            ended = True
        finally:
            if answer or ended:
                self.turns, self.dropped = [*turns, (ANSWERS, answer.strip())], dropped

    def _fitting(self, turns: list[Turn]) -> tuple[int, list[Turn]]:
        """Returns the number of turns to leave out, and the turns that fit in the model with room for an answer: the
        system prompt and the latest questions and answers.
        """
        most = self._run.model.max_length
        wanted = self._predictor.decoding.max_new_tokens or most
        room = most - min(wanted, most // 2)
        first, start = len(self._system), len(self._system)
        while self._predictor.count_tokens([*self._system, *turns[start:]]) > room and start + 2 < len(turns):
            start += 2
        return start - first, [*self._system, *turns[start:]]


def _with_template(predictor: Chats, template: TurnTemplate | None) -> Chats:
    """Returns a copy of a predictor with another template. If it is None, returns the predictor itself."""
    return predictor if template is None else dataclasses.replace(predictor, template=template)  # pyright: ignore
