"""Errors that are the answer to a request."""

from __future__ import annotations


class WireError(Exception):
    """
    Raised for a request that gets an error for an answer.

    Args:
        status (`int`):
            HTTP status.
        sentence (`str`):
            What must hold and what was given.
        code (`str`, *optional*):
            OpenAI's name of the error.
        param (`str`, *optional*):
            The argument of the request that is at fault, such as `"temperature"` or `"messages[0].content"`.
    """

    def __init__(self, status: int, sentence: str, code: str | None = None, param: str | None = None):
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.param = param


def server_ends() -> WireError:
    """The error of a request that a server gives up, as it ends."""
    return WireError(503, "The server ends: ask again later.", "server_ends")


def unknown_model(asked: str, served: str) -> WireError:
    """The error of a request for a model that is not here."""
    return WireError(
        404,
        f"The model must be {served!r}, which is the one that is served here, got {asked!r:.80}.",
        "model_not_found",
        "model",
    )
