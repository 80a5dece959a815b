"""Compiled programs outlive the process: the second start of a run compiles nothing."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import jax

from fda_jax.ops.native import cache_folder

# Programs of some hundred configurations.
MAX_BYTES = 2**29
# More than a program takes: where this cannot be written, the disk is full.
ROOM_BYTES = 2**22


def keep_programs() -> None:
    """Let JAX keep compiled programs in `folder()`, unless the user has said where, or not at all.

    The user's word is JAX's own variable JAX_COMPILATION_CACHE_DIR: another folder, or "" for none.
    A folder that cannot be used costs a line on the terminal, never the run. Call it before
    anything is compiled.
    """
    chosen = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if chosen is not None:
        return
    try:
        path = folder()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shrink(path, MAX_BYTES)
        _check_room(path)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        if jax.process_index() == 0:
            print(f"compiled programs are not kept for the next start: {error}", file=sys.stderr)
        return
    # JAX's own limit on the size wants one more package, and a lock at each access.
    jax.config.update("jax_compilation_cache_dir", str(path))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # A small program is read in a tenth of the time that it takes to compile.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def folder() -> Path:
    """Where the programs of this user lie.

    One folder serves all: JAX names a program by its content, its own version and the features of
    the processor or accelerator, so that none is run where it was not made for.

    Raises:
      RuntimeError: the user has no home.
    """
    return cache_folder() / "xla"


def shrink(path: Path, max_bytes: int) -> None:
    """Delete the files of a folder that were not used for longest, until the rest fits.

    Args:
      path: of the folder.
      max_bytes: that may stay.
    """
    files = []
    for file in path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process does the same
            stat = file.stat()
            if file.is_file():
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, file))
    kept = 0
    for _, size, file in sorted(files, reverse=True):
        kept += size
        if kept > max_bytes:
            file.unlink(missing_ok=True)


def _check_room(path: Path) -> None:
    # A program that is cut short by a full disk would be read, and refused, by every later run.
    with tempfile.TemporaryFile(dir=path) as probe:
        probe.write(bytes(ROOM_BYTES))
