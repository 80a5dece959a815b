"""What is wrong with a run and what to try: python -m fda_jax.doctor WORKDIR."""

import argparse
import sys
from collections.abc import Sequence

from fda_jax.experiment import findings
from fda_jax.experiment.folder import WorkdirError, from_words
from fda_jax.experiment.logs import quiet_pipe

NOTHING_FOUND, UNREADABLE, FOUND = 0, 1, 3


@quiet_pipe
def main(argv: Sequence[str] | None = None) -> int:
    """Print what the rules find in a run's folder.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0 if nothing is wrong, 1 if the folder cannot be read, 3 if something is wrong (2
      is that of an unknown flag), so that a script can tell an ill run from a mistyped folder.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fda_jax.doctor",
        description="Say in plain words what is wrong with a run, and what to try.",
    )
    parser.add_argument("folder", type=from_words, metavar="WORKDIR", help="a run's folder")
    try:
        text, count = findings.report(findings.read(parser.parse_args(argv).folder))
    except WorkdirError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNREADABLE
    print(text)
    return FOUND if count else NOTHING_FOUND


if __name__ == "__main__":
    sys.exit(main())
