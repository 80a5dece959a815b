"""Functions of one's own by their names, "module:function", for what no table here holds."""

import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

_WORD = r"[^\W\d]\w*"
_NAME = re.compile(rf"({_WORD}(?:\.{_WORD})*):({_WORD})")
# What config.json and a command line can hold.
_SETTINGS = (bool, int, float, str)


def own_function(name: str, returns: type, *, takes_settings: bool = True) -> Callable[..., Any]:
    """The function that "module:function" names, its module imported.

    A name is never a path, and of a module no function is called but one that declares what it
    returns and has a default for everything.

    Args:
      name: of a module as Python imports it, a colon, and a function in it.
      returns: the class whose instance the function declares, and has, to return.
      takes_settings: whether it may have arguments, each with a default that can be recorded.

    Returns:
      The function; its result is checked, and what it raises is a ValueError.

    Raises:
      ValueError: there is no such module or function, or it is not one to be called.
    """
    words = _NAME.fullmatch(name)
    if words is None or words[1].endswith(".py"):
        raise ValueError(
            f"{name!r} names no function: write 'module:function', without a path and .py, e.g. "
            "'mine:halved' for halved() in mine.py, or 'folder.mine:halved'"
        )
    module = _import(words[1])
    function = vars(module).get(words[2])
    if function is None:
        nearest = difflib.get_close_matches(words[2], vars(module), n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise ValueError(f"the module {_place(module)} has no function {words[2]!r}{hint}")
    _check(name, function, returns, takes_settings)

    @functools.wraps(function)
    def checked(**settings: Any) -> Any:
        try:
            made = function(**settings)
        except ValueError:
            raise
        except Exception as error:
            given = f" with {settings}" if takes_settings else ""
            raise ValueError(
                f"{name!r} of {_place(module)} fails{given} ({words_of(error)}): "
                "call it in Python to see where"
            ) from error
        if not isinstance(made, returns):
            raise ValueError(f"{name!r} returned {made!r}: let it return a {returns.__name__}")
        return made

    return checked


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise ValueError(
                f"there is no module {missing!r}: let it lie in the current folder, in a folder "
                "named by PYTHONPATH, or among the installed packages"
            ) from error
        raise ValueError(
            f"the module {name!r} cannot be imported ({words_of(error)}): "
            f"python -c 'import {name}' shows where"
        ) from error


def _check(name: str, function: Any, returns: type, takes_settings: bool) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # nothing to call, or nothing of Python's
        signature = inspect.Signature()
    declared = signature.return_annotation
    is_string = isinstance(declared, str)  # as `from __future__ import annotations` leaves it
    if (declared.rpartition(".")[2] != returns.__name__) if is_string else declared is not returns:
        raise ValueError(
            f"{name!r} does not say that it returns a {returns.__name__}, and is not called: "
            f"declare it, def {name.partition(':')[2]}(...) -> {returns.__name__}"
        )
    if signature.parameters and not takes_settings:
        raise ValueError(
            f"{name!r} takes arguments ({', '.join(signature.parameters)}), but a configuration "
            "has nothing to set them by: write a function without any for each choice"
        )
    for setting in signature.parameters.values():
        by_name = setting.kind in (setting.KEYWORD_ONLY, setting.POSITIONAL_OR_KEYWORD)
        if not by_name or setting.name == "name" or type(setting.default) not in _SETTINGS:
            raise ValueError(
                f"the parameter ({setting}) of {name!r} cannot be recorded with a run: give it a "
                "number, a truth value or text as its default, and another name than 'name'"
            )


def _place(module: ModuleType) -> str:
    return f"{module.__name__!r} ({getattr(module, '__file__', None) or 'built in'})"


def words_of(error: Exception) -> str:
    """What an error of somebody else's code says, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
