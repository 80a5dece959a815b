"""Checkpoints: the one home of orbax."""

import hashlib
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

# Where checkpoints go that are not kept, in one piece, before they are taken apart.
_DROPPED = "dropped"
# orbax looks for its own files by a pattern that begins with the whole path of the folder.
_PATTERN = re.compile(r"\[.*\]|\\")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message says what to do."""


class ReplacedError(CheckpointError):
    """A checkpoint that is gone, for the run that it is of trains on."""


def check_path(folder: Path) -> None:
    """Refuse a folder whose checkpoints could be written, but not read.

    Args:
      folder: absolute or relative path.

    Raises:
      CheckpointError: its absolute path has brackets or a backslash.
    """
    found = _PATTERN.search(folder.absolute().as_posix())
    if found:
        raise CheckpointError(
            f"the path of the folder {folder.absolute()} has {found[0]!r} in it, and checkpoints "
            "below brackets or a backslash cannot be read again: choose a --workdir without, or "
            "reach it by a symbolic link"
        )


class Checkpoints:
    """The last and the best checkpoint of a run, written atomically.

    A checkpoint holds arrays by name, and a description: their shapes and dtypes, a digest of
    their bytes, and the caller's notes. Process 0 writes; every process may read.

    Args:
      folder: absolute or relative path; made if it is missing.

    Raises:
      CheckpointError: of `check_path`, or the folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        check_path(folder)
        self.folder = folder.absolute()
        self._is_writer = jax.process_index() == 0
        if self._is_writer:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(
                    f"the folder {self.folder} cannot be made ({error.strerror}): move away what "
                    "lies there, or choose another --workdir"
                ) from error
        me = jax.process_index()
        self._kept: set[int] = set()
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # An asynchronous save reports a full disk one save too late.
                enable_async_checkpointing=False,
                preservation_policy=_LastAnd(self._kept),
                todelete_subdir=_DROPPED,
                # Or what another process drops while this one begins would be looked for.
                lightweight_initialize=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process{me}"
                ),
            ),
        )

    def reload(self) -> None:
        """Look which checkpoints there are now, for another process may train.

        Raises:
          ReplacedError: one went away while it was looked at.
        """
        try:
            self._manager.reload()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _replaced(f"a checkpoint in {self.folder}") from error

    def latest_step(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best accuracy, or None before the first evaluation."""
        best, best_step = -1.0, None
        for step in sorted(self._manager.all_steps()):
            accuracy = self._read_description(step)["new_best"]
            if accuracy is not None and accuracy > best:
                best, best_step = accuracy, step
        return best_step

    def save(
        self, step: int, tree: Any, notes: dict[str, Any], *, new_best: float | None = None
    ) -> None:
        """Write a checkpoint and drop the ones that are neither the last nor the best any more.

        Args:
          step: number of finished steps; nothing happens if this step is there already.
          tree: arrays.
          notes: JSON values kept beside them.
          new_best: test accuracy, where it is better than every one before.

        Raises:
          CheckpointError: the folder cannot be written (a full disk, say); the checkpoints before
            this one are untouched.
        """
        if not self._is_writer or step == self.latest_step():
            return
        best = self.best_step() if new_best is None else step
        self._kept.clear()
        self._kept.update(() if best is None else (best,))
        arrays = _flat(tree)
        description = {
            "arrays": _shapes(arrays),
            "digest": _digest(arrays),
            "new_best": new_best,
            "notes": notes,
        }
        try:
            self._check_room(arrays)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    description=ocp.args.JsonSave(description),
                ),
            )
        except Exception as error:
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.folder}: "
                f"{_first_line(error)}. Checkpoints before it are untouched: free some space (or "
                "make the folder writable) and start the same command again"
            ) from error
        shutil.rmtree(self.folder / _DROPPED, ignore_errors=True)

    def restore(self, like: Any, step: int) -> tuple[Any, dict[str, Any]]:
        """Read a checkpoint.

        Args:
          like: tree of arrays with the structure, shapes and dtypes to expect.
          step: which one.

        Returns:
          The tree as host arrays, and the notes.

        Raises:
          CheckpointError: the checkpoint is damaged, or belongs to another network; a
            `ReplacedError` if it is gone.
        """
        wanted = _flat(like)
        description = self._read_description(step)
        _compare_shapes(description["arrays"], _shapes(wanted), self.folder / str(step))
        arrays = self._read_arrays(step, wanted, description["digest"])
        leaves = [arrays[name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), description["notes"]

    def shapes(self, step: int) -> dict[str, str]:
        """Dtypes and shapes of a checkpoint's arrays, as text by name.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        return self._read_description(step)["arrays"]

    def read(self, step: int) -> dict[str, np.ndarray]:
        """A checkpoint's arrays by name, whatever network they are of.

        Raises:
          CheckpointError: the checkpoint is damaged.
        """
        description = self._read_description(step)
        wanted = {name: _empty(text) for name, text in description["arrays"].items()}
        return self._read_arrays(step, wanted, description["digest"])

    def close(self) -> None:
        """Finish whatever is under way."""
        self._manager.close()

    def _check_room(self, arrays: dict[str, np.ndarray]) -> None:
        # Where a disk fills up under orbax, its threads print tracebacks by the dozen.
        size = sum(array.nbytes for array in arrays.values())
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise OSError(f"it takes {size:,} bytes, and {free:,} are free")

    def _read_arrays(
        self, step: int, wanted: dict[str, np.ndarray], digest: str
    ) -> dict[str, np.ndarray]:
        try:
            arrays = self._manager.restore(
                step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
            )["arrays"]
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        arrays = {name: np.asarray(value) for name, value in arrays.items()}
        if _digest(arrays) != digest:
            raise self._damaged(step, "its arrays are not the ones that were saved")
        return arrays

    def _read_description(self, step: int) -> dict[str, Any]:
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(description=ocp.args.JsonRestore())
            )
            description = dict(restored["description"])
            missing = {"arrays", "digest", "new_best", "notes"} - description.keys()
            if missing:
                raise ValueError(f"its description lacks {', '.join(sorted(missing))}")
            return description
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error

    def _damaged(self, step: int, why: str) -> CheckpointError:
        where = self.folder / str(step)
        if not where.exists():
            return _replaced(f"the checkpoint {where}")
        return CheckpointError(
            f"the checkpoint {where} cannot be read: {why}. It was cut short or altered: remove "
            "that folder to go on from an older checkpoint, or use another --workdir"
        )


class _LastAnd(ocp.checkpoint_managers.PreservationPolicy):
    """Preserve the newest checkpoint and those of the given steps.

    Args:
      steps: read at each save, so that the owner may change it.
    """

    def __init__(self, steps: set[int]) -> None:
        self._steps = steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """One answer for each checkpoint."""
        del context
        newest = max((info.step for info in checkpoints), default=None)
        return [info.step == newest or info.step in self._steps for info in checkpoints]


def _replaced(what: str) -> ReplacedError:
    return ReplacedError(
        f"{what} is gone: a newer one of a run that still trains has replaced it meanwhile. Start "
        "the same command again"
    )


def _flat(tree: Any) -> dict[str, np.ndarray]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.device_get(tree))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def shape_text(array: Any) -> str:
    """Dtype and shape of an array as text, e.g. "float32[3, 16]"."""
    return f"{array.dtype}{list(array.shape)}"


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: shape_text(value) for name, value in arrays.items()}


def _empty(text: str) -> np.ndarray:
    """An array of this `shape_text`."""
    dtype, bracket, sizes = text.partition("[")
    return np.empty(json.loads(bracket + sizes), jnp.dtype(dtype))


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()


def _compare_shapes(found: dict[str, str], wanted: dict[str, str], where: Path) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise CheckpointError(
                f"the checkpoint {where} is of another network: it has {name} = "
                f"{found.get(name, 'nothing')}, where this one needs {wanted.get(name, 'nothing')}"
                ": use the configuration that wrote it (config.json in its folder), or another "
                "--workdir"
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
