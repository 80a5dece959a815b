"""One run in a process of its own, for `side_by_side`: python -m fda_jax.experiment.worker.

Its standard input is one line of JSON with the keys config, workdir and argv (the command that the
run is recorded with), and stays open as long as the run is wanted.
"""

import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from fda_jax.experiment import USER_ERRORS, compilation, heap, run
from fda_jax.experiment.loop import Stop
from fda_jax.experiment.side_by_side import WHY, as_override


def main() -> int:
    """Train; the exit code is 1 for a run that failed, and a line of `WHY` says why."""
    for chatty in ("jax", "absl"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    order = json.loads(sys.stdin.readline())
    sys.argv = order["argv"]
    threading.Thread(target=_stop_when_unwanted, daemon=True).start()
    compilation.keep_programs()
    heap.reuse_pages()
    with Stop() as stop:
        code = _train(order, stop)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is saved, and the exit takes a moment
    return code


def _train(order: Mapping[str, Any], stop: Stop) -> int:
    try:
        run.train(order["config"], order["workdir"], stop=stop)
    except Exception as error:
        if not isinstance(error, USER_ERRORS):
            traceback.print_exception(error)
        print(f"{WHY}{type(error).__name__}: {as_override(str(error))}", flush=True)
        return 1
    return 0


def _stop_when_unwanted() -> None:
    # The descriptor itself: a thread inside sys.stdin would hold its lock when the program ends.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
