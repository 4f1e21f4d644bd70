"""Which arguments a request may have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from .errors import WireError

_WITHOUT_EFFECT = (
    *(
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
    ),
    *("service_tier", "store"),
)
"""Arguments of OpenAI's APIs that say how a provider runs, bills or keeps a request, and do not change its answer."""


@dataclass(frozen=True)
class Arguments:
    """
    The arguments of one API.

    Attributes:
        read (`Sequence[str]`):
            Those that are read.
        neutral (`Mapping[str, tuple]`):
            Those that would change the answer and are not supported, with the values that change nothing. `None` is one for all.
    """

    read: Sequence[str]
    neutral: Mapping[str, tuple[Any, ...]]

    def check(self, found: Mapping[str, Any]) -> None:
        """
        Check the names of a request, and the values of arguments that are not supported.

        Raises:
            [`WireError`]: If an argument is not supported or not known: without it the answer would be another one than was asked for.
        """
        known = {*self.read, *self.neutral, *_WITHOUT_EFFECT}
        for name, value in found.items():
            if value is None or name in self.read:
                continue
            if name not in known:
                close = get_close_matches(name, known, n=1)
                meant = f"did you mean {close[0]!r}?" if close else "leave it out."
                sentence = f"{name!r:.60} is not an argument that is known here: {meant}"
                raise WireError(400, sentence, "unknown_parameter", f"{name:.60}")
            if name in self.neutral and value not in self.neutral[name]:
                raise WireError(400, f"{name!r} is not supported: leave it out.", "unsupported_parameter", name)
