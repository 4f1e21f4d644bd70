"""Parsers whose errors are one sentence: what is wrong, and what was probably meant."""

from __future__ import annotations

import argparse
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from difflib import get_close_matches
from enum import Enum, EnumMeta
from pathlib import Path
from typing import Any, NoReturn

from trl import TrlParser

from ..typed_fields import described, fits, is_wrong_number, members, type_hints

_WORDS_OF_YAML = {True: ("on", "yes"), False: ("off", "no")}
"""Words that YAML reads as booleans."""

_MEANT = {
    "batch_size": "per_device_train_batch_size",
    "dataset": "dataset_name",
    "datasets": "dataset_name",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "model": "model_name_or_path",
    "model_path": "model_name_or_path",
    "steps": "max_steps",
}
"""What is meant by names that other programs have, of which the nearest name here is another option."""

_NOT_HERE = {"datasets": "mixtures of data sets are not supported"}

_METAVARS = {int: "N", float: "X", str: "TEXT", bool: "BOOL", list[int]: "N"}


class CommandError(Exception):
    """Wrong input: the message is shown as it is, without a traceback."""


class Parser(argparse.ArgumentParser):
    """[`argparse.ArgumentParser`] that raises [`CommandError`] instead of printing its usage, and takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise CommandError(_with_suggestion(message, self))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed = super().parse_args(args, namespace)
        for name, value in vars(parsed).items():
            _refuse_empty(name, value)
        return parsed


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the default of each option, and keeps the line breaks of the examples."""


class ConfigParser(TrlParser):
    """
    TRL's [`~trl.TrlParser`]: options from dataclasses, and from a YAML file with `--config`. Unlike it, this one also checks
    the values from the file, and raises [`CommandError`] with one sentence for all that is wrong.

    Args:
        kinds (`type` or `Sequence[type]`):
            The dataclass of the command's own options, and others that check their values themselves.
        **kwargs:
            Passed to [`argparse.ArgumentParser`].
    """

    def __init__(self, kinds: Any, **kwargs: Any) -> None:
        self.kinds: list[Any] = [kinds] if isinstance(kinds, type) else list(kinds)
        super().__init__(self.kinds, allow_abbrev=False, formatter_class=_Help, **kwargs)
        self.add_argument("--config", metavar="FILE", help="YAML file with options; those on the command line win.")
        for kind in self.kinds:
            hints = type_hints(kind)
            for action in self._actions:
                if action.dest in hints and not action.choices:  # else the name of the option again, in capitals
                    action.metavar = _METAVARS.get(members(hints[action.dest])[0], "VALUE")

    def error(self, message: str) -> NoReturn:
        raise CommandError(_with_suggestion(message, self))

    def read(self, args: Sequence[str]) -> Any:
        """
        Parse a command line and the YAML file that it names.

        Args:
            args (`Sequence[str]`):
                The arguments.

        Returns:
            An instance of the dataclass, or of each in their order.

        Raises:
            `CommandError`: if an option or a key is unknown, or a value is of the wrong type.
        """
        import yaml

        args = _split_config(args)
        try:
            _refuse_twice(args)
            *parsed, own, from_file, from_line = self.parse_args_and_config(
                args, return_remaining_strings=True, separate_remaining_strings=True
            )
        except OSError as error:
            raise CommandError(f"the file of --config cannot be read: {error.strerror}: {error.filename}") from None
        except UnicodeDecodeError:
            raise CommandError("the file of --config is not text in UTF-8: save it in that encoding") from None
        except yaml.YAMLError as error:
            raise CommandError(f"the file of --config is not YAML: {' '.join(str(error).split())}") from None
        except (ValueError, TypeError) as error:
            raise CommandError(" ".join(str(error).split())) from None
        if own.config is not None:  # `--config` of the command line is taken out before
            raise CommandError("the file of --config holds another 'config': put all options in one file")
        if from_file:
            raise CommandError(f"the file of --config holds {_unknown(from_file[0], self)}")
        if from_line:
            raise CommandError(_unknown(from_line[0], self))
        _check_types(parsed[0])
        for one in parsed[1:]:
            _refuse_empty("output_dir", getattr(one, "output_dir", None))
        return parsed[0] if len(parsed) == 1 else tuple(parsed)

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """
        Take the values of the file: names as on the command line, with underscores or dashes, one value stands for a list of one, and what argparse
        would not check is checked.
        """
        kwargs = {name.replace("-", "_"): value for name, value in kwargs.items()}
        hints = {name: hint for kind in self.kinds for name, hint in type_hints(kind).items()}
        for action in self._actions:
            if action.dest in kwargs and action.dest in hints:
                kwargs[action.dest] = _from_file(kwargs[action.dest], hints[action.dest], action)
        return super().set_defaults_with_config(**kwargs)


def peek(args: Sequence[str], name: str) -> str | None:
    """The value of one option that decides which others there are: from the command line, or else from the file of `--config`."""
    words = _split_config(args)
    spellings = (f"--{name}", f"--{name.replace('_', '-')}")
    found = None  # the last one counts, as for all options
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in spellings and equals:
            found = value
        elif option in spellings and at + 1 < len(words):
            found = words[at + 1]
    path = _config_of(words)
    if found is not None or path is None:
        return found
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            given = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None  # said when the whole file is read
    if not isinstance(given, dict):
        return None
    return next((str(given[one]) for one in (name, name.replace("_", "-")) if given.get(one) is not None), None)


def option_names(parser: argparse.ArgumentParser) -> list[str]:
    """All long options of a parser."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def _split_config(args: Sequence[str]) -> list[str]:
    """`--config=FILE` as `--config FILE`, which is the only form that TRL's parser sees."""
    split: list[str] = []
    for arg in args:
        split += arg.split("=", 1) if arg.startswith("--config=") else [arg]
    if split.count("--config") > 1:
        raise CommandError("--config is given twice: one file holds all options")
    if split[-1:] == ["--config"]:
        raise CommandError("--config needs the path of a YAML file")
    return split


def _refuse_twice(words: Sequence[str]) -> None:
    """
    Refuse a file of `--config` with two values for an option, of which YAML keeps the last.

    Raises:
        `CommandError`: if a name is there twice, or in two spellings.
        `OSError`, `UnicodeDecodeError`, `yaml.YAMLError`: if the file cannot be read.
    """
    import yaml

    path = _config_of(words)
    if path is None:
        return
    with open(path, encoding="utf-8") as file:
        options = yaml.compose(file)
    seen: dict[str, str] = {}
    for name in _names_in(options):
        option = name.replace("-", "_")
        first = seen.get(option)
        seen[option] = name
        if first is not None:
            what = f"{name!r} twice" if first == name else f"{first!r} and {name!r}, which are one option"
            raise CommandError(f"the file of --config holds {what}")
    for value in options.value if seen else ():
        inner = list(_names_in(value[1]))
        twice = next((name for at, name in enumerate(inner) if name in inner[:at]), None)
        if twice is not None:
            raise CommandError(f"the file of --config holds {twice!r} twice in {value[0].value!r}")


def _names_in(node: Any) -> Iterator[str]:
    """Names of a mapping in YAML, as they are written; none of anything else."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        yield from (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))


def _config_of(words: Sequence[str]) -> str | None:
    """The file that words of [`_split_config`] name, if any."""
    return words[words.index("--config") + 1] if "--config" in words else None


def _unknown(option: str, parser: argparse.ArgumentParser) -> str:
    name = option.split("=", 1)[0]
    if not name.startswith("-"):
        return f"there is no place for {option!r}: options start with two dashes"
    name = name.lstrip("-")
    known = [one.lstrip("-") for one in option_names(parser)]
    meant = _MEANT.get(name)
    close = [meant] if meant in known else get_close_matches(name, known, n=1)
    suggested = f": did you mean {close[0]!r}?" if close else ""
    return f"an unknown option, {name!r}{suggested}" + (f" ({_NOT_HERE[name]})" if name in _NOT_HERE else "")


def _with_suggestion(message: str, parser: argparse.ArgumentParser) -> str:
    unrecognized = "unrecognized arguments: "
    if message.startswith(unrecognized):
        return _unknown(message.removeprefix(unrecognized).split(" ")[0], parser)
    return message


def _from_file(value: Any, hint: Any, action: argparse.Action) -> Any:
    """
    A value of a YAML file, which bypasses the types and choices of argparse, as its option takes it. Texts are read by argparse.
    """
    entries = [typing.get_args(member)[0] for member in members(hint) if typing.get_origin(member) is list]
    if any(
        isinstance(entry, type) and issubclass(entry, Enum) for entry in entries
    ):  # written as texts, which their class checks
        return value
    if value is None and action.default is not None and not fits(None, hint):
        raise CommandError(
            f"{action.dest} is empty, but must be {described(hint)}: give a value, or leave the line out"
        )
    if isinstance(value, bool):
        value = _as_word(value, hint, action)
    takes_list = bool(entries)
    if takes_list and value is not None and not fits(value, hint):
        for one in (value, _converted(value, action)):
            if fits([one], hint):
                return [one]
    if is_wrong_number(value, hint) or ((takes_list or isinstance(value, (list, dict))) and not fits(value, hint)):
        raise _wrong_type(action.dest, value, hint)
    if action.choices and isinstance(value, str) and value not in action.choices:
        raise CommandError(f"{action.dest} is {value!r}, but must be one of {', '.join(map(str, action.choices))}")
    return value


def _as_word(value: bool, hint: Any, action: argparse.Action) -> Any:
    """The word of an option that YAML has read as a boolean, as in `check: off` and `eval_strategy: no`; else the boolean."""
    kinds = [kind for kind in members(hint) if isinstance(kind, EnumMeta)]
    words = action.choices or [member.value for kind in kinds for member in kind]  # type: ignore[var-annotated]
    return next((word for word in _WORDS_OF_YAML[value] if word in words), value)


def _converted(value: Any, action: argparse.Action) -> Any:
    """A text as argparse reads it, such as `1e-3`, which YAML takes for a text."""
    try:
        return action.type(value) if isinstance(value, str) and callable(action.type) else value
    except (ValueError, argparse.ArgumentTypeError):
        return value


def _wrong_type(name: str, value: Any, hint: Any) -> CommandError:
    return CommandError(f"{name} is {value!r}, but must be {described(hint)}")


def _refuse_empty(name: str, value: Any) -> None:
    """Refuse an empty text, such as that of a variable of a script that is not set: as a path it would be the current directory."""
    if value == "" or (isinstance(value, list) and "" in value):
        raise CommandError(f"{name} is empty: give a value, or leave it out")


def _check_types(parsed: Any) -> None:
    """YAML values bypass the types of argparse."""
    kind: Any = type(parsed)
    hints = type_hints(kind)
    for field in fields(parsed):
        value = getattr(parsed, field.name)
        _refuse_empty(field.name, value)
        if isinstance(value, int) and not isinstance(value, bool) and float in members(hints[field.name]):
            value = float(value)
            setattr(parsed, field.name, value)
        if value != field.default and not fits(value, hints[field.name]):
            raise _wrong_type(field.name, value, hints[field.name])


OF_FILES = {"name the key of its rows with `field=`": "write them as a list, or one on each line of a .jsonl file"}
"""For [`naming_options`]: what is advised about files of rows, and has no option."""


@contextmanager
def naming_options(options: Mapping[str, str]) -> Iterator[None]:
    """
    Errors that advise arguments of Python advise options of the command line instead.

    Args:
        options (`Mapping[str, str]`):
            Words of a message -> what stands in their place.
    """
    try:
        yield
    except ValueError as error:
        text = str(error)
        for argument, option in options.items():
            text = text.replace(argument, option)
        raise ValueError(text) from None


def naming_columns(
    first: str, second: str, arguments: tuple[str, str] = ("title=", "text=")
) -> AbstractContextManager[None]:
    """[`naming_options`] for the two columns of a file."""
    both = {f"`{arguments[0]}` and `{arguments[1]}`": f"{first} and {second}"}
    each = {f"`{argument}": f"`{option} " for argument, option in zip(arguments, (first, second), strict=True)}
    return naming_options({**both, **each, **OF_FILES})


def check_writable(folder: str, option: str) -> None:
    """Refuse a folder that results cannot be written to, before anything is done for them. It is made if need be, but not here."""
    place = Path(folder).absolute()
    there = next(one for one in (place, *place.parents) if one.exists())
    if not there.is_dir():
        raise CommandError(f"{option} must be a folder, got {folder!r}, where {str(there)!r} is a file")
    if not os.access(there, os.W_OK):
        raise CommandError(f"{option} must be a folder that can be written, got {folder!r}: {str(there)!r} cannot")


def existing_corpus(path: str) -> Path:
    """A path to a file or folder that exists, as `type` of an argument."""
    _refuse_empty("corpus", path)
    if not Path(path).exists():
        raise CommandError(f"there is no file or folder {path!r}")
    return Path(path)
