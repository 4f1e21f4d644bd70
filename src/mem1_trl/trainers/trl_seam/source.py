"""
Read off the source of a function: how many values it returns, the keys of a dictionary that it builds, and how it calls a method.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def returned_tuples(function: Any) -> set[int]:
    """
    Lengths of the tuples that a function returns and writes out: in the `return` itself, or where the name that is returned is set.

    Empty if it returns something else, or if its source is not there.
    """
    nodes = list(_nodes_of(function))
    lengths = set()
    for value in _returned_values(nodes):
        if isinstance(value, ast.Tuple) and not any(isinstance(element, ast.Starred) for element in value.elts):
            lengths.add(len(value.elts))
    return lengths


def returned_keys(function: Any) -> set[str]:
    """
    Keys that a function writes out of the dictionary that it returns: `{"a": 1}`, `output["a"] = 1`, `output |= {...}`,
    `output.update(a=1)`, `output.setdefault("a", 1)`.

    Empty if it returns something else, or if its source is not there.
    """
    nodes = list(_nodes_of(function))
    names = {node.value.id for node in nodes if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)}
    keys = set()
    for value in _returned_values(nodes):
        keys |= _dictionary_keys(value)
    for node in nodes:
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and _name(node.value) in names:
            keys |= _constants([node.slice])
        elif isinstance(node, ast.AugAssign) and _name(node.target) in names:
            keys |= _dictionary_keys(node.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _name(node.func.value) in names:
            if node.func.attr == "update":
                keys |= {word.arg for word in node.keywords if word.arg is not None}
                keys = keys.union(*(_dictionary_keys(argument) for argument in node.args))
            elif node.func.attr == "setdefault":
                keys |= _constants(node.args[:1])
    return keys


def calls_of(function: Any, method: str) -> Iterator[tuple[int, set[str]]]:
    """The number of positional arguments and the keywords of each `self.method(...)` in a function; `*` and `**` are not counted."""
    for node in ast.walk(_tree_of(function)):
        called = node.func if isinstance(node, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == method and _name(called.value) == "self":
            assert isinstance(node, ast.Call)
            count = sum(not isinstance(argument, ast.Starred) for argument in node.args)
            yield count, {word.arg for word in node.keywords if word.arg is not None}


def _tree_of(function: Any) -> ast.AST:
    """The source of a function as a tree, empty if it is not there."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _nodes_of(function: Any) -> Iterator[ast.AST]:
    """The nodes of the source of a function, without those of the functions and classes in it."""
    stack: list[ast.AST] = [
        node for part in getattr(_tree_of(function), "body", []) for node in getattr(part, "body", [])
    ]
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            continue
        yield node
        stack.extend(ast.iter_child_nodes(node))


def _returned_values(nodes: list[ast.AST]) -> Iterator[ast.expr]:
    """What is returned; for a name, what it is set to, and of a choice between two, both."""
    set_to: dict[str, list[ast.expr]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    set_to.setdefault(target.id, []).append(node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            set_to.setdefault(node.target.id, []).append(node.value)
    stack = [node.value for node in nodes if isinstance(node, ast.Return) and node.value is not None]
    followed: set[str] = set()
    while stack:
        value = stack.pop()
        if isinstance(value, ast.IfExp):
            stack += [value.body, value.orelse]
        elif isinstance(value, ast.Name):
            if value.id not in followed:
                followed.add(value.id)
                stack += set_to.get(value.id, [])
        else:
            yield value


def _dictionary_keys(value: ast.expr) -> set[str]:
    """Keys that an expression writes out: of `{...}`, of `dict(a=1)`, and of both sides of `a | b`."""
    if isinstance(value, ast.Dict):
        return _constants(value.keys).union(
            *(_dictionary_keys(inner) for key, inner in zip(value.keys, value.values) if key is None)
        )
    if isinstance(value, ast.BinOp):
        return _dictionary_keys(value.left) | _dictionary_keys(value.right)
    if isinstance(value, ast.Call) and _name(value.func) == "dict":
        return {word.arg for word in value.keywords if word.arg is not None}
    return set()


def _constants(nodes: list[Any]) -> set[str]:
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _name(node: ast.AST) -> str | None:
    return node.id if isinstance(node, ast.Name) else None
