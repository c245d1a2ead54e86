"""Errors that the person at the keyboard can fix, and unusable answers of an LLM."""

from __future__ import annotations

from neuroexplain.evidence import Status


class NeuroexplainError(Exception):
    """A mistake or a circumstance that the reader can act on.

    The message says what was asked, what was found and what to do next. The command line prints it plain and
    exits with status 2. Any other exception is a bug of ours and keeps its traceback.
    """


class ActivationsNotFinite(NeuroexplainError):
    """The subject's activations overflow in this precision: the run cannot be continued."""


class NotInStore(NeuroexplainError):
    """The database does not hold the run, unit or explanation that was asked for."""


class StoreUnreadable(NeuroexplainError):
    """The database or a row of it cannot be read: no database, a broken one, or its server is gone."""


class EngineError(NeuroexplainError):
    """An engine cannot be used: no server answers, it lacks the model, or it gives no distributions."""


class EngineLost(NeuroexplainError):
    """An engine that answered before has stopped answering. The run ends; finished results are kept."""


class LlmReplyError(Exception):
    """One request failed, or its reply cannot be used.

    It never becomes a value: it is stored as a failed attempt with `status` (`llm_error`, `parse_error`,
    ...), the reason and the raw `reply`, and the run goes on.
    """

    def __init__(self, status: Status, reason: str, reply: str | None = None) -> None:
        super().__init__(reason)
        self.status = Status(status)
        self.reason = reason
        self.reply = reply
