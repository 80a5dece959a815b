"""One process at a time: a lock on a file, which ends with its process however that ends."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None


@contextlib.contextmanager
def held(file: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing.

    Args:
      file: whose lock is meant; it says who holds it.
      patience: seconds to wait for another process.

    Raises:
      TimeoutError: another process still holds it; the message says which.
    """
    with file.open("a+") as handle:
        end = time.monotonic() + patience
        while not _take(handle.fileno()):
            if time.monotonic() > end:
                handle.seek(0)
                raise TimeoutError(handle.read().strip() or "unknown")
            time.sleep(0.2)
        with contextlib.suppress(OSError):  # a full disk has no room for a name
            handle.truncate(0)
            # Not by the handle, which would try again when it is closed.
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield


def is_free(file: Path) -> bool:
    """Whether nobody holds the lock of a file now."""
    if not file.exists():
        return True
    with file.open() as handle:
        return _take(handle.fileno())


def _take(descriptor: int) -> bool:
    """Take the lock until the descriptor is closed; False if another has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
