"""What the command lines of the examples share: numbers that are checked, and short forms whose values any option still changes."""

import math
from argparse import ArgumentTypeError


def count(text):
    """A whole number of at least 1, as `type` of an option."""
    value = int(text)  # argparse says what is no number
    if value < 1:
        raise ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def rate(text):
    """A finite number above 0, as `type` of an option."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def parse(parser, args=None, **short):
    """
    The options of a command line.

    `short` are flags, each with the defaults of its short form (`smoke={"steps": 2}`). They are defaults only: an option that is given
    beside the flag keeps its value.
    """
    found = parser.parse_args(args)
    for flag, defaults in short.items():
        if getattr(found, flag):
            parser.set_defaults(**defaults)
            found = parser.parse_args(args)
    return found
