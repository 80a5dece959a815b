"""The one error of this package, and the lazy import that raises it."""

import importlib
from typing import Any


class DataError(ValueError):
    """Data that is missing, altered, inconsistent or asked for wrongly.

    The message names the value, the limit it broke, and the remedy.
    """


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Imports an optional dependency at the moment it is needed.

    Args:
        module: dotted name of the module, such as "PIL.Image".
        extra: the extra of fda_jax that installs it, such as "folder".
        purpose: what it is needed for, as the subject of the error's sentence.

    Returns:
        The imported module (untyped: it may not be installed when types are checked).

    Raises:
        DataError: the module is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs the Python module {module!r}, which cannot be imported here "
            f"({error}). Install it with: pip install 'fda_jax[{extra}]'"
        ) from error
