"""A run's folder: its configuration, environment, metrics and result, all written atomically."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fda_jax.experiment import judged, lock
from fda_jax.training.checkpoints import check_path

# Where the data lie, how fast they are read, how often the run is saved and who looks on change no
# result.
FREE_KEYS = (
    "data.dir",
    "data.num_threads",
    "checkpoint.every_epochs",
    "diagnostics.every_steps",
    "diagnostics.probes",
)

# Keys that came later, by group, at the values that say what was done without them.
LATER_KEYS = {
    "train": {"budget": 1.0, "teacher": "", "teacher_weight": 1.0, "teacher_temperature": 1.0},
    "augment": {"smallest_area": 0.08},
    "data": {"holdout": 0},
    "model": {"real_layers": ()},
}
# Seconds to wait for another process, for one whose parent was killed ends a little later.
PATIENCE = 20.0


class WorkdirError(RuntimeError):
    """A folder that a run may not use; the message says what to do."""


class RunFolder:
    """The folder of one run.

    Args:
      path: of the folder.
      is_writer: whether this process writes; with several processes only the first does.
    """

    def __init__(self, path: Path, *, is_writer: bool = True) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._metrics = path / "metrics.jsonl"
        self._lock = path / ".lock"
        self._is_writer = is_writer

    def make(self) -> None:
        """Make the folder where it is missing.

        Raises:
          WorkdirError: it cannot be written.
          CheckpointError: its checkpoints could not be read.
        """
        check_path(self.path)
        try:
            if self._is_writer:
                self.path.mkdir(parents=True, exist_ok=True)
                # Of a name of its own, for processes that share a sweep begin at one time.
                tempfile.TemporaryFile(dir=self.path).close()
        except OSError as error:
            raise WorkdirError(
                f"the folder {self.path} cannot be written ({error.strerror}): "
                "choose another --workdir, or make it writable"
            ) from error

    def claim(self, config: Mapping[str, Any], *, streamed: bool | None = None) -> None:
        """Make the folder this run's, or refuse it, before anything is computed.

        A run that came to nothing, without a metric or a checkpoint, makes room for another.

        Args:
          config: of the run.
          streamed: see `completed`.

        Raises:
          WorkdirError: it cannot be written, or it holds a run of another configuration.
        """
        self.make()
        recorded = self.config(streamed=streamed)
        if recorded is None:
            if (self.path / "sweep.json").exists():
                raise WorkdirError(
                    f"the folder {self.path} holds a sweep, not a single run: choose another "
                    "--workdir"
                )
            if self._has_checkpoints():
                raise WorkdirError(
                    f"the folder {self.path} has checkpoints but no config.json, so they cannot be "
                    "told from another run's: choose another --workdir"
                )
            self.write("config.json", dict(config))
            return
        different = differences(recorded, json.loads(json.dumps(dict(config))))
        if different and self._is_vacant():
            self._vacate()
            self.write("config.json", dict(config))
        elif different:
            remedy = (
                "Choose another --workdir, or the old configuration to resume that run"
                if self.result() is None
                else "That run is finished: choose another --workdir, and set "
                f"--config.train.init_from={self.path.absolute()} to start from its parameters"
            )
            raise WorkdirError(
                f"the folder {self.path} holds a run of another configuration: "
                f"{'; '.join(different[:5])}. {remedy}"
            )

    def claim_data(self, facts: Mapping[str, Any], keys: Sequence[str] | None = None) -> None:
        """Record what the data are, or refuse others than those the run began with.

        Args:
          facts: of the data set, by name.
          keys: the names to compare, of a reader that needs no more; None compares all and
            records them where they are not yet.

        Raises:
          WorkdirError: the data have changed.
        """
        recorded = self.read("dataset.json")
        if recorded is None:
            if keys is None:
                self.write("dataset.json", dict(facts))
            return
        for key in facts if keys is None else keys:
            old, new = recorded.get(key), facts[key]
            if old != new:
                if isinstance(old, list) and isinstance(new, list):
                    old, new = (sorted({*a} - {*b}) or len(a) for a, b in ((old, new), (new, old)))
                raise WorkdirError(
                    f"the data are not those that the run in {self.path} began with: {key} were "
                    f"{old} and are {new}. Restore them, or train in another --workdir"
                )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here; a lock ends with its process, however it ends.

        Raises:
          WorkdirError: another process still trains here after a while.
        """
        if not self._is_writer:
            yield
            return
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(lock.held(self._lock, patience=PATIENCE))
            except TimeoutError as error:
                raise WorkdirError(
                    f"another process trains in {self.path} ({error}): wait for its end or stop "
                    "it, or choose another --workdir"
                ) from None
            yield

    def _has_checkpoints(self) -> bool:
        return self.checkpoints.exists() and any(self.checkpoints.iterdir())

    def _is_vacant(self) -> bool:
        """Whether nothing was trained here, nor is by a process that has just begun."""
        inside = [path.name for path in self.path.iterdir()]
        if self._has_checkpoints() or {"metrics.jsonl", "result.json", "sweep.json"} & {*inside}:
            return False
        if any(not stage._is_vacant() for stage in self._stages()):
            return False
        return not self._is_writer or lock.is_free(self._lock)

    def _vacate(self) -> None:
        """Remove what a run that came to nothing has written, and the folders of its stages."""
        if not self._is_writer:
            return
        for name in ("environment.json", "dataset.json", "failure.json"):
            (self.path / name).unlink(missing_ok=True)
        for stage in self._stages():
            stage._vacate()
            for name in ("config.json", ".lock"):
                (stage.path / name).unlink(missing_ok=True)
            for empty in (stage.checkpoints, stage.path):
                with contextlib.suppress(OSError):  # missing, or something else lies there
                    empty.rmdir()

    def _stages(self) -> "list[RunFolder]":
        paths = [path for path in self.path.glob("stage*") if path.name[len("stage") :].isdigit()]
        return [RunFolder(path) for path in paths if path.is_dir()]

    def latest_checkpoint(self) -> int | None:
        """Step of the newest checkpoint here, or None before the first."""
        if not self.checkpoints.is_dir():
            return None
        # One that was cut short has a longer name.
        names = [path.name for path in self.checkpoints.iterdir()]
        return max((int(name) for name in names if name.isdigit()), default=None)

    def read(self, name: str) -> Any:
        """The JSON file of this name, or None if there is none.

        Raises:
          WorkdirError: the file is not a JSON object.
        """
        try:
            value = json.loads((self.path / name).read_bytes())
            if not isinstance(value, dict):
                raise ValueError(f"not an object, but {value!r:.40}")
            return value
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise WorkdirError(
                f"{self.path / name} cannot be read ({error}): restore it, or choose another "
                "--workdir"
            ) from error

    def config(self, *, streamed: bool | None = None) -> dict[str, Any] | None:
        """The run's configuration, `completed`; None without a run.

        Raises:
          WorkdirError: the file is damaged.
        """
        config = self.read("config.json")
        return None if config is None else completed(config, streamed=streamed)

    def result(self) -> dict[str, Any] | None:
        """The content of result.json, or None before the end of the run.

        Raises:
          WorkdirError: the file is damaged.
        """
        result = self.read("result.json")
        missing: list[str] = []
        if result is not None:
            # Older results lack their configuration.
            keys = judged.result_keys(judged.eval_split(result.get("config", {"data": {}})))
            missing = [key for key in keys if key not in result]
        if missing:
            raise WorkdirError(
                f"{self.path / 'result.json'} lacks {', '.join(missing)}: remove it and start the "
                "run's command again, which writes it anew"
            )
        return result

    def failure(self) -> dict[str, Any] | None:
        """The content of failure.json; None unless the run's last attempt ended there.

        Raises:
          WorkdirError: the file is damaged.
        """
        failure = self.read("failure.json")
        if failure is None or self.result() is not None:
            return None
        # A run that was started again and came past the step has left the failure behind.
        trains = [row for row in self.metrics() if row["split"] == "train"]
        return None if any(row["step"] > failure["step"] for row in trains) else failure

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file so that it is either the old or the new one, never a part."""
        if self._is_writer:
            text = json.dumps(value, indent=2, sort_keys=True) + "\n"
            self._replace(self.path / name, text)

    def append_metrics(self, *rows: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl for each row, on disk when this returns."""
        if not self._is_writer:
            return
        try:
            with self._metrics.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise WorkdirError(
                f"{self._metrics} could not be written ({error.strerror}); the run's checkpoints "
                "are untouched: free some space and start the same command again"
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl; a last line that was cut short is left out."""
        return read_metrics(self.path)

    def forget_after(self, step: int) -> None:
        """Drop the rows of metrics.jsonl that belong to steps after this one."""
        if self._is_writer and self._metrics.exists():
            kept = [row for row in self.metrics() if row["step"] <= step]
            self._replace(self._metrics, "".join(json.dumps(row) + "\n" for row in kept))

    @staticmethod
    def _replace(path: Path, text: str) -> None:
        # Two processes may write the same file of a sweep.
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise WorkdirError(
                f"{path} could not be written ({error.strerror}); what was there is untouched: "
                "free some space and start the same command again"
            ) from error


def from_words(text: str) -> Path:
    """A path of the command line, whose ~ a shell leaves to us behind a =, as in --out=~/x."""
    return Path(os.path.expanduser(text))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a run folder's metrics.jsonl; a last line that was cut short is left out.

    Raises:
      WorkdirError: the file cannot be read, or another line than the last is no row.
    """
    file = path / "metrics.jsonl"
    remedy = "restore the file, or run again in another --workdir"
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise WorkdirError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not {"step", "split"} <= row.keys():
                raise ValueError(f"no row, but {row!r:.40}")
            rows.append(row)
        except ValueError as error:
            if number == len(lines):
                break
            raise WorkdirError(f"line {number} of {file} is no row of metrics: {remedy}") from error
    return rows


def completed(config: Mapping[str, Any], *, streamed: bool | None = None) -> dict[str, Any]:
    """A recorded configuration with the keys that it is too old for, as what was done.

    Args:
      config: of config.json.
      streamed: whether its images are streamed: before there was augment.smallest_area, half of
        those were mirrored whatever augment.flip said. None goes by the data's name, which leaves
        tfds: open and takes it for data in memory.

    Returns:
      The configuration; a group that it lacks stays away.
    """
    recorded = {
        group: config[group] for group in LATER_KEYS if isinstance(config.get(group), Mapping)
    }
    groups = {group: {**LATER_KEYS[group], **values} for group, values in recorded.items()}
    if streamed is None:
        streamed = str(leaves(config).get("data.name")).startswith("folder:")
    if streamed and "smallest_area" not in recorded.get("augment", LATER_KEYS["augment"]):
        groups["augment"]["flip"] = True
    return {**config, **groups}


def differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What two configurations differ in, in words; keys that change no result are left out."""
    old, new = leaves(recorded), leaves(wanted)
    return [
        f"{key} was {old.get(key, 'not set')!r} and is {new.get(key, 'not set')!r}"
        for key in sorted(old.keys() | new.keys())
        if key not in FREE_KEYS and old.get(key) != new.get(key)
    ]


def leaves(tree: Mapping[str, Any], prefix: str = "", *, separator: str = ".") -> dict[str, Any]:
    """The values of a nested mapping by their paths, dotted ones if not told otherwise."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{prefix}{key}{separator}", separator=separator)
        else:
            found[prefix + key] = value
    return found
