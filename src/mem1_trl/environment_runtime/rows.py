"""Rows of a data set as they are given away."""

from __future__ import annotations

from typing import Any

import numpy as np


def own_copy(value: Any) -> Any:
    """
    A copy of a row, or of a part of it. An environment may change what is inside, and the next episode still begins with what the data set holds.

    Lists, dictionaries, tuples, sets and arrays are copied at any depth. Anything else that a caller puts into a row, such as a connection, stays the
    same object.
    """
    if type(value) is dict:
        return {key: own_copy(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(own_copy, value))
    return value.copy() if type(value) in (set, bytearray, np.ndarray) else value
