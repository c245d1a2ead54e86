"""What can go wrong in a way that the person at the keyboard can fix."""

from __future__ import annotations

from neuroexplain.evidence import Status


class NeuroexplainError(Exception):
    """A mistake or a circumstance that the reader can act on.

    The message says what was asked, what was found and what to do next. The command line prints it plain and exits with
    status 2; anything else that is raised is a bug of ours and keeps its traceback.
    """


class NotInStore(NeuroexplainError):
    """A run, neuron or explanation was asked for that the database does not hold."""


class StoreUnreadable(NeuroexplainError):
    """The database or a row of it cannot be read: no database, broken, or its server is gone."""


class EngineError(NeuroexplainError):
    """An engine as a whole cannot serve: no server there, no such model, nothing that gives distributions."""


class EngineLost(NeuroexplainError):
    """An engine that answered before does not any more: the run ends, and what was finished is kept."""


class LlmReplyError(Exception):
    """One request failed or its reply cannot be used.

    It never becomes a value: it is stored as a failed attempt with `status` (`llm_error`, `parse_error`, ...), the reason
    and the raw `reply`, and the run goes on.
    """

    def __init__(self, status: Status, reason: str, reply: str | None = None) -> None:
        super().__init__(reason)
        self.status = Status(status)
        self.reason = reason
        self.reply = reply
