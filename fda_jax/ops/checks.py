"""A check that functions and layers share."""

from collections.abc import Iterable


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices.

    Args:
      what: the word is of, for the message.
      value: the word.
      choices: all that it may be.

    Raises:
      ValueError: it is another; the message lists the choices.
    """
    if value not in choices:
        raise ValueError(f"{what} is {value!r}: use one of {', '.join(choices)}")
