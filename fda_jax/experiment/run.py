"""One experiment, from configuration to result; reads like a paragraph."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import jax

from fda_jax import data
from fda_jax.experiment import budget, judged, saved, setup, stages, teaching
from fda_jax.experiment.environment import environment
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.idle import idle
from fda_jax.experiment.inherit import FinishedRun, Predecessor, check_stages
from fda_jax.experiment.logs import Terminal, duration, told
from fda_jax.experiment.loop import Evaluator, Lane, Stop, Trainer, best_row, make_terminal
from fda_jax.experiment.setup import Experiment
from fda_jax.training import devices
from fda_jax.training.checkpoints import Checkpoints


def train(
    config: Mapping[str, Any], workdir: str | Path, *, stop: Stop | None = None
) -> dict[str, Any] | None:
    """Train as a configuration says, or go on where a stopped run of it stands.

    A run that was killed at any moment and started again ends with the same parameters and
    metrics, bit for bit, as one that was never stopped, on the same kind of device. A run in stages
    is an ordinary run for each of them, in folders inside its own, see `stages.split`.

    Args:
      config: nested mapping or ConfigDict, see configs/base.py.
      workdir: the run's folder; made if it is missing.
      stop: of a caller that listens to signals for several runs; None listens for this one.

    Returns:
      The content of result.json, or None if SIGTERM stopped the run before its end. Of a run in
      stages it is what the last stage came to, at the cost of all of them.

    Raises:
      ValueError: the configuration or the data cannot run.
      WorkdirError: the folder cannot be used.
      CheckpointError: a checkpoint cannot be written or read.
      NonFiniteError: a loss or a gradient is not finite.
    """
    config = setup.typed(config)
    parts = stages.split(config)
    if parts:
        return _train_stages(config, parts, _folder(workdir), stop)
    return _train_run(config, setup.build(config), _folder(workdir), stop)


def _train_run(
    config: Mapping[str, Any],
    experiment: Experiment,
    folder: RunFolder,
    stop: Stop | None,
    *,
    is_stage: bool = False,
) -> dict[str, Any] | None:
    predecessor = claim(config, experiment, folder)
    finished = folder.result()
    if finished is not None:
        make_terminal(experiment).line(f"{folder.path} is finished already: {_summary(finished)}")
        return finished
    experiment = teaching.engage(experiment, config, folder.path)
    entered = begun(config, folder, experiment, is_stage=is_stage)
    with entered as checkpoints, _listening(stop) as asked:
        lane = Lane(experiment, folder, checkpoints, predecessor)
        done = Trainer(lane).run(asked)
    if not done:
        return None
    devices.wait_for_all("the metrics are written")
    return finish(config, lane)


def claim(
    config: Mapping[str, Any], experiment: Experiment, folder: RunFolder
) -> Predecessor | None:
    """Make a folder a run's, or refuse it, before anything is compiled.

    Returns:
      What the run starts from if it has no checkpoint yet; None for random weights.

    Raises:
      ConfigError, CheckpointError: the run cannot start from what train.init_from names, or learn
        from what train.teacher names.
      WorkdirError: the folder cannot be used.
    """
    predecessor = _predecessor(config, experiment, folder)
    _check_teacher(config, experiment, folder)
    folder.claim(config, streamed=not experiment.dataset.train.resident)
    return predecessor


def check_sources(
    config: Mapping[str, Any], experiment: Experiment, workdir: Path, to_come: Sequence[Path]
) -> None:
    """Refuse a run of a sweep that will have nothing to start or learn from.

    Args:
      config: of the run.
      experiment: of it, or of its first stage.
      workdir: its folder.
      to_come: folders of runs that may be trained before this one: they are not looked at.

    Raises:
      ConfigError, CheckpointError: as `claim`.
    """
    if (workdir / "result.json").exists():
        return
    train = dict(config["train"])
    for key in ("init_from", "teacher"):
        path = FinishedRun(key, train[key], workdir).path
        if any(path.is_relative_to(os.path.abspath(place)) for place in to_come):
            train[key] = ""
    asked = {**config, "train": train}
    part = (stages.split(asked) or [asked])[0]
    _predecessor(part, experiment, _folder(stages.folders(workdir, config)[0]))
    _check_teacher(asked, experiment, _folder(workdir))


def _check_teacher(config: Mapping[str, Any], experiment: Experiment, folder: RunFolder) -> None:
    # A finished run needs its teacher no more.
    if config["train"]["teacher"] and folder.result() is None:
        teaching.find(experiment, config, folder.path)


def _predecessor(
    config: Mapping[str, Any], experiment: Experiment, folder: RunFolder
) -> Predecessor | None:
    if not config["train"]["init_from"]:
        return None
    predecessor = Predecessor(config["train"]["init_from"], folder.path)
    if folder.latest_checkpoint() is None:
        predecessor.check(experiment, config["data"])
    return predecessor


@contextmanager
def begun(
    config: Mapping[str, Any],
    folder: RunFolder,
    experiment: Experiment,
    *,
    together: int = 1,
    name: str = "",
    is_stage: bool = False,
) -> Iterator[Checkpoints]:
    """Lock a run's folder, record what it is made with, and open its checkpoints.

    Args:
      config: of the run.
      folder: the run's.
      experiment: what the configuration makes.
      together: number of runs that are trained as one program.
      name: of the run on the terminal, see `Terminal`.
      is_stage: whether it is a stage of a run, of which all has been said.

    Raises:
      WorkdirError: another process trains there, or has left another run there.
    """
    with ExitStack() as stack:
        refusal = None
        try:
            stack.enter_context(folder.locked())
            # Another process may have made the folder its run's until now.
            folder.claim(config, streamed=not experiment.dataset.train.resident)
        except WorkdirError as error:
            refusal = error
        if devices.any_process(refusal is not None):
            raise refusal or WorkdirError("refused, as the first process says")
        if not is_stage:
            _announce(Terminal(0, is_writer=jax.process_index() == 0, name=name), config)
        before = folder.read("environment.json")
        # The most of all starts: from then on the run's time is a share of others'.
        most = max(together, (before or {}).get("together", 1))
        folder.write("environment.json", {**environment(before), "together": most})
        with closing(Checkpoints(folder.checkpoints)) as checkpoints:
            yield checkpoints


def finish(config: Mapping[str, Any], lane: Lane) -> dict[str, Any]:
    """Write result.json at the end of a run, and return its content."""
    result = _result(config, lane.folder, lane.experiment)
    lane.folder.write("result.json", result)
    lane.terminal.line(_summary(result))
    return result


def _train_stages(
    config: Mapping[str, Any],
    parts: Sequence[Mapping[str, Any]],
    folder: RunFolder,
    stop: Stop | None,
) -> dict[str, Any] | None:
    places = stages.folders(folder.path, config)
    experiments = build_stages(parts)
    _predecessor(parts[0], experiments[0], _folder(places[0]))
    _check_teacher(config, experiments[0], folder)
    folder.claim(config, streamed=not experiments[0].dataset.train.resident)
    terminal = make_terminal(experiments[-1])
    finished = folder.result()
    if finished is not None:
        terminal.line(f"{folder.path} is finished already: {_summary(finished)}")
        return finished
    _announce(terminal, config)
    folder.write("environment.json", environment(folder.read("environment.json")))
    results = []
    with _listening(stop) as asked:
        for part, experiment, place in zip(parts, experiments, places, strict=True):
            if devices.any_process(asked.asked):
                terminal.line(f"stopped by a signal before {place.name}: the same command goes on")
                return None
            terminal.line(f"{place.name} of {len(places)}")
            result = _train_run(part, experiment, _folder(place), asked, is_stage=True)
            if result is None:
                return None
            results.append(result)
            devices.wait_for_all(f"the result of {place.name} is written")
    result = {**results[-1], "config": dict(config)}
    for key in ("epochs", "steps", "seconds", "timed_steps"):
        result[key] = sum(part[key] for part in results)
    images = sum(part["images_per_second"] * part["seconds"] for part in results)
    result["images_per_second"] = images / result["seconds"] if result["seconds"] else 0.0
    result["best_epoch"] += result["epochs"] - results[-1]["epochs"]
    folder.write("result.json", result)
    terminal.line(f"all stages: {_summary(result)}")
    return result


def build_stages(
    parts: Sequence[Mapping[str, Any]], loaded: dict[str, data.Dataset] | None = None
) -> list[Experiment]:
    """Build every stage before the first one trains, so that none is refused hours later.

    Args:
      parts: configurations of a run's stages, or the one of a run without.
      loaded: data sets by the text of their configuration; what is missing is added.

    Returns:
      An `Experiment` for each.

    Raises:
      ValueError: a configuration cannot run, or a stage cannot start from the one before.
    """
    loaded = {} if loaded is None else loaded
    names = [f"stage{number}" for number in range(1, len(parts) + 1)]
    experiments = []
    for part, name in zip(parts, names, strict=True):
        try:
            key = json.dumps(part["data"], sort_keys=True)
            if key not in loaded:
                loaded[key] = setup.load_data(part)
            experiments.append(setup.build(part, dataset=loaded[key]))
        except ValueError as error:
            raise setup.ConfigError(f"in {name}: {error}" if parts[1:] else str(error)) from error
    check_stages(names, experiments)
    return experiments


def evaluate(
    config: Mapping[str, Any] | None, workdir: str | Path, *, data_dir: str | None = None
) -> dict[str, dict[str, float]]:
    """Evaluate the last and the best checkpoint of a run on the test set, with 1-bit inference.

    The test set it is of a run that held training examples out, too, which has not seen it yet.

    Of a run in stages these are the last stage's. The devices need not be those of the training.

    Args:
      config: of the run, or None to take the one in the folder.
      workdir: the run's folder.
      data_dir: where the data lie now, see `saved.opened`.

    Returns:
      {"last": {"step", "loss", "accuracy"}, "best": {...}}, with "top5_accuracy" beside the
      accuracy of data with many classes.

    Raises:
      WorkdirError: there is no run, or no checkpoint, in the folder.
      ValueError, CheckpointError: as `train`.
    """
    answers = {}
    given = None if config is None else setup.typed(config)
    with saved.opened(workdir, given, data_dir=data_dir) as trained:
        evaluator = Evaluator(trained.experiment)
        for name in saved.CHECKPOINTS:
            found = trained.found(name)
            if found is None:
                continue
            step, state = found
            means = evaluator(devices.replicate(state)).means()
            answers[name] = {"step": step, **means}
            terminal = make_terminal(trained.experiment)
            terminal.line(f"{name} checkpoint (step {step}): test {told(means)}")
    return answers


def _announce(terminal: Terminal, config: Mapping[str, Any]) -> None:
    mark = budget.mark(config["train"])
    if mark:
        terminal.line(f"a part of the recipe alone: {mark}")
    if judged.holdout(config):
        terminal.line(
            f"{judged.mark(config)}, to be judged by: the test set is left for --mode=eval"
        )
    for words in idle(config):
        terminal.line(words)


def _listening(stop: Stop | None) -> AbstractContextManager[Stop]:
    return Stop() if stop is None else nullcontext(stop)


def _folder(workdir: str | Path) -> RunFolder:
    return RunFolder(Path(workdir), is_writer=jax.process_index() == 0)


def _result(config: Mapping[str, Any], folder: RunFolder, experiment: Experiment) -> dict[str, Any]:
    rows, total_steps = folder.metrics(), experiment.plan.total_steps
    split = experiment.dataset.eval_split
    trains, tests = ([row for row in rows if row["split"] == of] for of in ("train", split))
    if not (trains and tests and trains[-1]["step"] == tests[-1]["step"] == total_steps):
        raise WorkdirError(
            f"the run in {folder.path} is at its end, but its last epochs do not stand in "
            "metrics.jsonl, of which its result is made: restore the file, or train again in "
            "another --workdir"
        )
    last_train, last_test = trains[-1], tests[-1]
    top5 = last_test.get("top5_accuracy")
    last_key, best_key = judged.result_keys(split)
    best = best_row(rows)
    surroundings = folder.read("environment.json") or {}
    return {
        "method": config["method"]["name"],
        "model": config["model"]["name"],
        "dataset": config["data"]["name"],
        "config": dict(config),
        "seed": config["seed"],
        last_key: last_test["accuracy"],
        **({f"last_{split}_top5_accuracy": top5} if top5 is not None else {}),
        f"last_{split}_loss": last_test["loss"],
        best_key: best["accuracy"],
        "best_epoch": best["epoch"],
        f"{split}_examples": experiment.plan.num_test,
        "epochs": last_train["epoch"],
        "steps": last_train["step"],
        "seconds": last_train["seconds"],
        "timed_steps": last_train["timed_steps"],
        "images_per_second": last_train["images_per_second"],
        "device": surroundings.get("device"),
        "devices": surroundings.get("devices"),
        "together": surroundings.get("together", 1),
        "revision": surroundings.get("revision"),
        "dirty": surroundings.get("dirty"),
        "changes": surroundings.get("changes"),
    }


def _summary(result: Mapping[str, Any]) -> str:
    mark, split = budget.mark(result["config"]["train"]), judged.eval_split(result["config"])
    last, best = (result[key] for key in judged.result_keys(split))
    return (
        f"{split} accuracy {last:.2%} after epoch {result['epochs']}, "
        f"best {best:.2%} at epoch {result['best_epoch']}; "
        f"{duration(result['seconds'])} of training" + (f" ({mark})" if mark else "")
    )
