"""What both kinds of workers that only answer share: their turns."""

import statistics
import time
from collections.abc import Callable

import numpy as np
import sides

LOGITS = 8


def serve(answer: Callable[[], np.ndarray], program: str, seconds: float) -> None:
    """Answer in each turn, for that many seconds; the median time of a call.

    Args:
      answer: logits (batch, classes) of a batch, on the host.
      program: what it is.
      seconds: that a turn lasts.
    """
    logits = answer()
    answer()  # whatever is made at the first call or the second

    def turn() -> dict[str, float]:
        begin, times = time.perf_counter(), []
        while time.perf_counter() - begin < seconds or len(times) < 2:
            start = time.perf_counter()
            answer()
            times.append(time.perf_counter() - start)
        return {"seconds": statistics.median(times), "calls": len(times)}

    sides.serve(turn, {"program": program, "logits": logits.ravel()[:LOGITS].tolist()})
