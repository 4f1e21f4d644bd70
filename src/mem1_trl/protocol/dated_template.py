"""Chat templates that write the date, as those of Llama 3.2, SmolLM3 and gpt-oss do."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

_CALL = re.compile(r"""strftime_now\((?:"([^"]*)"|'([^']*)')\)""")


def dated_template(template: Any, at: float | None) -> Any:
    """
    A chat template that writes the date of another time than now, so that a conversation of yesterday reads today as it did.

    Templates ask transformers for the date by the function `strftime_now`, in place of which this one has a macro of that name.

    Args:
        template (`Any`):
            A chat template. One that does not write the date, or computes how, is returned as it is, as is what is no text.
        at (`float` or `None`):
            The time, in seconds since the epoch. `None` for now.
    """
    if at is None or not isinstance(template, str):
        return template
    formats = [call[1] or call[2] for call in _CALL.finditer(template)]
    if not formats or len(formats) != template.count("strftime_now("):
        return template
    dates = json.dumps({one: datetime.fromtimestamp(at).strftime(one) for one in formats})
    # The empty text keeps a line break with which the template may begin
    return "{%- macro strftime_now(format) -%}{{ " + dates + "[format] }}{%- endmacro %}{{ '' }}" + template
