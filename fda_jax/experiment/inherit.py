"""What a run takes over from a finished one: the parameters and statistics that it ended with."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fda_jax import data
from fda_jax.data.loader import folder_of
from fda_jax.data.specs import title
from fda_jax.experiment import judged, stages
from fda_jax.experiment.folder import RunFolder
from fda_jax.experiment.setup import ConfigError, Experiment
from fda_jax.models.summary import METHODS_OWN, parameter_group
from fda_jax.training.checkpoints import Checkpoints, shape_text
from fda_jax.training.state import variable_shapes

# From the collection ("params", "batch_stats") down to the variable.
VariablePath = tuple[str, ...]

# The same weights: in a layer that keeps them real, and in one that makes them binary.
_TWINS = {"kernel": "latent_kernel", "latent_kernel": "kernel"}
_REMEDY = (
    "both runs need the same network on images of one shape, and methods that differ in their "
    "quantizers only: change --config.train.init_from, or what differs"
)
_FILE_REMEDY = (
    "a file of --config.train.init_from holds arrays of the network's shapes and dtypes under its "
    "variables' paths, which fda_jax.models.build(...).init gives, and no others"
)
# That a line on the terminal has room for.
MOST_NAMES = 5


class FinishedRun:
    """A run that another one needs.

    Args:
      key: of the configuration that names it, for messages.
      given: its folder; a relative path counts from the one that holds `workdir`.
      workdir: folder of the run that needs it.
    """

    def __init__(self, key: str, given: str, workdir: Path) -> None:
        self._beside = workdir.absolute().parent
        self.path = Path(os.path.normpath(self._beside / Path(given).expanduser()))
        self._key = key
        self._given = given

    def place(self) -> Path:
        """Where its checkpoints lie: its folder, or that of its last stage.

        Raises:
          ConfigError: no finished run lies there, or its checkpoints are gone.
        """
        folder = RunFolder(self.path, is_writer=False)
        config = folder.read("config.json")
        if config is None or folder.result() is None:
            raise self._refusal("no finished run (no result.json)" if config else "no run")
        place = stages.folders(self.path, config)[-1]
        if RunFolder(place, is_writer=False).latest_checkpoint() is None:
            raise self._refusal("no checkpoints any more")
        return place

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[Checkpoints, int]]:
        """The checkpoints, and the step of the last one.

        Raises:
          ConfigError: as `place`.
        """
        with contextlib.closing(Checkpoints(self.place() / "checkpoints")) as store:
            step = store.latest_step()
            if step is None:
                raise self._refusal("no checkpoints any more")
            yield store, step

    def _refusal(self, what: str) -> ConfigError:
        meant = Path(self._given).expanduser().absolute()
        hint = f", e.g. to {os.path.relpath(meant, self._beside)}" if meant.is_dir() else ""
        return ConfigError(
            f"{self._key} is {self._given!r}, but {self.path} holds {what}: train that run "
            f"to its end, or set --config.{self._key} to the folder of a finished one{hint} (a "
            f"relative path counts from {self._beside})"
        )


class Predecessor(FinishedRun):
    """What a run starts from, as train.init_from says: a finished run, or a file of weights.

    The parameters and batch statistics of that run's last checkpoint, or of the file, are this
    run's first; see `match` for what has to agree. Optimizer, moving averages and step are left
    behind. A file, NAME.npz, holds them by their paths, e.g. params/stem/kernel; what it leaves out
    starts as in a new network, and is told.

    Args:
      init_from: the folder or file; a relative path counts from the folder that holds `workdir`.
      workdir: folder of the run that starts.
    """

    def __init__(self, init_from: str, workdir: Path) -> None:
        super().__init__("train.init_from", init_from, workdir)
        self._is_file = self.path.suffix == ".npz" and not self.path.is_dir()

    def check(self, experiment: Experiment, settings: Mapping[str, Any]) -> None:
        """Refuse a predecessor that the run cannot start from, before anything is compiled.

        Args:
          experiment: that starts.
          settings: the group data of its configuration.

        Raises:
          ConfigError: no finished run lies there, or one of another network, or one that was
            trained on what this run holds out; or a file that cannot be read, or of another
            network.
          CheckpointError: its checkpoint is damaged.
        """
        if self._is_file:
            self.values(experiment)
            return
        with self.opened() as (store, step):
            self._check_holdout(experiment.dataset, settings)
            match(_variables(store.shapes(step)), _shapes(experiment), str(self.path))

    def told(self, experiment: Experiment) -> str:
        """What the run starts from, in words."""
        words = f"starting from the parameters of {self.path}"
        if not self._is_file:
            return words
        given = flatten_dict(self.values(experiment))
        missing = [
            path
            for path in sorted(_shapes(experiment).keys() - given.keys())
            if not _is_methods_own(path)
        ]
        listed = ", ".join("/".join(path) for path in missing[:MOST_NAMES])
        more = f" and {len(missing) - MOST_NAMES} more" if missing[MOST_NAMES:] else ""
        return words + (f"; new, for it has none: {listed}{more}" if missing else "")

    def _check_holdout(self, dataset: data.Dataset, settings: Mapping[str, Any]) -> None:
        config = RunFolder(self.path, is_writer=False).config()
        if dataset.eval_split != judged.HOLDOUT or config is None:
            return
        ours, theirs, name = len(dataset.test), judged.holdout(config), config["data"]["name"]
        # Each reader has the same images in an order of its own, and so holds out others.
        in_order = _are_in_order(settings, config["data"])
        if ours == theirs if in_order else title(name) != title(settings["name"]):
            return
        raise ConfigError(
            f"data.holdout is {ours}, but the run in {self.path}, where this one starts, held out "
            f"{theirs or 'none'} of these images{'' if in_order else f', in the order of {name},'} "
            f"and was trained on the others: start from one of {settings['name']} with "
            f"--config.data.holdout={ours}, or be judged by the test set"
        )

    def values(self, experiment: Experiment) -> dict[str, Any]:
        """The "params" and "batch_stats" to start from.

        Raises:
          ConfigError, CheckpointError: as `check`.
        """
        if self._is_file:
            arrays = self._read_file()
        else:
            with self.opened() as (store, step):
                arrays = _variables(store.read(step))
        theirs = {path: shape_text(array) for path, array in arrays.items()}
        source, ours = str(self.path), _shapes(experiment)
        origins = match(theirs, ours, source, is_file=self._is_file)
        return unflatten_dict({path: arrays[origin] for path, origin in origins.items()})

    def _read_file(self) -> dict[VariablePath, Any]:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                arrays = {tuple(name.split("/")): file[name] for name in file.files}
        # Damaged archives, and files that are none, raise nearly anything.
        except Exception as error:
            raise ConfigError(
                f"train.init_from is {self._given!r}, but {self.path} cannot be read "
                f"({type(error).__name__}: {error}): set --config.train.init_from to a file that "
                f"np.savez wrote, or to the folder of a finished run (a relative path counts from "
                f"{self._beside})"
            ) from error
        for path, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ConfigError(
                    f"{'/'.join(path)} in {self.path} holds numbers that are not finite: start "
                    "from other weights"
                )
        return arrays


def _are_in_order(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two groups data name the same images in the same order, in whatever words."""
    places = [folder_of(each["name"], each["dir"]) for each in (one, other)]
    resolved = {path.resolve() for path in places if path is not None}
    return one["name"] == other["name"] or (None not in places and len(resolved) == 1)


def check_stages(names: Sequence[str], experiments: Sequence[Experiment]) -> None:
    """Refuse stages of which one cannot start from the one before.

    Args:
      names: of the stages, for the message.
      experiments: of the stages.

    Raises:
      ConfigError: the variables of two neighbours do not match.
    """
    # To know the shapes of a network takes a trace.
    shapes = [_shapes(experiment) for experiment in experiments] if experiments[1:] else []
    for i in range(1, len(shapes)):
        match(shapes[i - 1], shapes[i], names[i - 1])


def match(
    theirs: Mapping[VariablePath, str],
    ours: Mapping[VariablePath, str],
    source: str,
    *,
    is_file: bool = False,
) -> dict[VariablePath, VariablePath]:
    """Which variable of a predecessor each of a network's starts from.

    Every variable must be in both, with one dtype and shape, except those of the method's own
    modules (quantizers with their scales, noise): what only the predecessor has is dropped, and
    what only this network has starts as in a new one. Weights that are real in one of the two and
    latent in the other are the same weights. A file may lack what it likes, and has nothing else.

    Args:
      theirs: dtype and shape of the predecessor's variables, as text.
      ours: likewise of the network that starts.
      source: the predecessor, for the message.
      is_file: whether it is a file of weights.

    Returns:
      The predecessor's path for each of our paths that starts from one.

    Raises:
      ConfigError: a variable that only one side has, or with two shapes.
    """
    origins: dict[VariablePath, VariablePath] = {}
    for path, wanted in ours.items():
        twin = (*path[:-1], _TWINS.get(path[-1], path[-1]))
        origin = path if path in theirs else twin
        if origin in theirs and theirs[origin] == wanted:
            origins[path] = origin
        elif origin in theirs or not (is_file or _is_methods_own(path)):
            raise _mismatch(path, theirs.get(origin, "missing"), wanted, source, is_file)
    for path in sorted(theirs.keys() - origins.values()):
        if is_file or not _is_methods_own(path):
            raise _mismatch(path, theirs[path], "missing", source, is_file)
    return origins


def _mismatch(
    path: VariablePath, theirs: str, ours: str, source: str, is_file: bool
) -> ConfigError:
    return ConfigError(
        f"the run cannot start from {source}: {'/'.join(path)} is {theirs} there and {ours} here: "
        f"{_FILE_REMEDY if is_file else _REMEDY}"
    )


def _is_methods_own(path: VariablePath) -> bool:
    return parameter_group(path[1:]) in METHODS_OWN


def _shapes(experiment: Experiment) -> dict[VariablePath, str]:
    variables = variable_shapes(experiment.model, experiment.dataset.image_shape_hwc)
    return {path: shape_text(leaf) for path, leaf in flatten_dict(variables).items()}


def _variables(saved: Mapping[str, Any]) -> dict[VariablePath, Any]:
    """Of what a checkpoint holds by name, the variables by path.

    Their names are e.g. [0].params['conv1']['latent_kernel'], for the state comes first.
    """
    heads = ("[0].params[", "[0].batch_stats[")
    return {
        (name[len("[0].") : name.index("['")], *re.findall(r"\['(.*?)'\]", name)): value
        for name, value in saved.items()
        if name.startswith(heads)
    }
