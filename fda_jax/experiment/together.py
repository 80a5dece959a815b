"""Runs that differ in their seed alone, trained together: one program, mapped over the runs.

A small network's kernels leave most of a GPU idle; the same kernels over several runs fill it.
Each run keeps its own folder, with the files that it has when it is trained alone, and may go on
either way: its checkpoint does not know in whose company it was written.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fda_jax.experiment import loop, run, setup, teaching
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.loop import Evaluator, Lane, Progress, Stop
from fda_jax.experiment.setup import Experiment
from fda_jax.experiment.side_by_side import Job
from fda_jax.training import devices, feed
from fda_jax.training.metrics import Metrics
from fda_jax.training.plan import Plan
from fda_jax.training.state import TrainState
from fda_jax.training.step import Health

# When runs are trained together: where it is faster, wherever it is possible, nowhere.
CHOICES = ("auto", "always", "never")


def pays() -> bool:
    """Whether it is faster here: on one GPU or TPU. On a CPU it was measured to be slower."""
    return jax.default_backend() in ("gpu", "tpu") and jax.device_count() == 1


def obstacle(experiments: Sequence[Experiment]) -> str:
    """Why runs of a configuration cannot be trained together; "" if they can.

    Args:
      experiments: of the configuration's stages, or the one of a configuration without.
    """
    if jax.process_count() > 1:
        return f"{jax.process_count()} processes share each run, and it takes a single one"
    if len(experiments) > 1:
        return f"the run has {len(experiments)} stages, and it takes one without any"
    dataset, plan = experiments[0].dataset, experiments[0].plan
    if not dataset.train.resident:
        return f"{dataset.name} is a stream of images, and it takes data that fit into memory"
    if plan.diagnose_every_steps:
        return f"diagnostics.every_steps is {plan.diagnose_every_steps}, and it takes 0"
    return ""


def train(jobs: Sequence[Job], *, stop: Stop, say: Callable[[str], None]) -> dict[str, Exception]:
    """Train runs that differ in their seed alone, or go on where they stand.

    Those that stand at one step are one program: what a killed process left at several steps goes
    on as several programs, one after another, as does what does not fit into the device's memory.
    A run that is finished, or has no companion, is trained by `run.train`. One that fails leaves
    the others alone.

    Args:
      jobs: runs without stages, see `obstacle`.
      stop: whether to stop.
      say: prints a line.

    Returns:
      Why each failed run failed, by name.
    """
    failures: dict[str, Exception] = {}
    for group in _alike(jobs):
        if devices.any_process(stop.asked):
            break
        failures |= _train_alike(group, stop, say)
        # What a finished run compiled is of no use to the next one.
        jax.clear_caches()
    return failures


def _alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Jobs by the step they stand at, the most advanced last; each finished one by itself."""
    finished, standing = [], {}
    for job in jobs:
        if (job.workdir / "result.json").exists():
            finished.append([job])
        else:
            step = RunFolder(job.workdir).latest_checkpoint() or 0
            standing.setdefault(step, []).append(job)
    return finished + [standing[step] for step in sorted(standing)]


def _train_alike(
    jobs: Sequence[Job], stop: Stop, say: Callable[[str], None]
) -> dict[str, Exception]:
    try:
        if len(jobs) > 1:
            return _lockstep(jobs, stop)
        run.train(jobs[0].config, jobs[0].workdir, stop=stop)
        return {}
    except Exception as error:  # a run's fault must not cost a night of others
        if len(jobs) == 1 or not _is_out_of_memory(error):
            return {job.name: error for job in jobs}
    # Outside of the handler, whose error keeps what is on the device alive.
    jax.clear_caches()
    half = len(jobs) // 2
    say(f"{len(jobs)} runs do not fit into the device's memory together: {half} are trained first")
    return train(jobs[:half], stop=stop, say=say) | train(jobs[half:], stop=stop, say=say)


@dataclasses.dataclass(frozen=True)
class _Member:
    """One of the runs.

    Attributes:
      job: what is asked for.
      lane: the run beside the program.
      progress: of the run; its state and totals are as old as when they were last taken out.
    """

    job: Job
    lane: Lane
    progress: Progress


def _lockstep(jobs: Sequence[Job], stop: Stop) -> dict[str, Exception]:
    """Train runs that stand at one step as one program; why each failed run failed, by name."""
    config, workdir = jobs[0].config, jobs[0].workdir
    shared = teaching.engage(setup.build(config), config, workdir)
    evaluator = Evaluator(shared)
    failures: dict[str, Exception] = {}
    done = False
    with contextlib.ExitStack() as stack:
        members = []
        for job in jobs:
            experiment = dataclasses.replace(shared, seed=job.config["seed"])
            with _at_its_own_cost(job, failures):
                member = _enter(job, experiment, evaluator, len(jobs), stack)
                if members:
                    _check_step(member, members[0])
                members.append(member)
        if members:
            done = _Company(members, failures).train(stop)
    for member in members:
        if done and member.job.name not in failures:
            with _at_its_own_cost(member.job, failures):
                run.finish(member.job.config, member.lane)
    return failures


def _enter(
    job: Job,
    experiment: Experiment,
    evaluator: Evaluator,
    together: int,
    stack: contextlib.ExitStack,
) -> _Member:
    folder = RunFolder(job.workdir)
    predecessor = run.claim(job.config, experiment, folder)
    begun = run.begun(job.config, folder, experiment, together=together, name=job.name)
    checkpoints = stack.enter_context(begun)
    lane = Lane(experiment, folder, checkpoints, predecessor, evaluator=evaluator, name=job.name)
    return _Member(job, lane, stack.enter_context(lane.opened()))


def _check_step(member: _Member, first: _Member) -> None:
    """Refuse a run that stands at another step than the first of its company."""
    step, wanted = (int(one.progress.state.step) for one in (member, first))
    if step != wanted:
        raise WorkdirError(
            f"{member.job.workdir} stands at step {step} and {first.job.workdir} at {wanted}, for "
            "another process has trained there meanwhile: start the same command again"
        )


@contextlib.contextmanager
def _at_its_own_cost(job: Job, failures: dict[str, Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):  # the company's fault
            raise
        failures[job.name] = error


def _is_out_of_memory(error: Exception) -> bool:
    # A full disk has the same code, and another type.
    is_of_device = isinstance(error, jax.errors.JaxRuntimeError)
    return is_of_device and "RESOURCE_EXHAUSTED" in str(error)


class _Company:
    """The loop of runs that are trained together: one call for all, the rest run by run.

    The lane of a run that failed stays in the program, where its state moves no more.

    Args:
      members: the runs, at one step.
      failures: takes up why a run failed, by name.
    """

    def __init__(self, members: Sequence[_Member], failures: dict[str, Exception]) -> None:
        experiments = [member.lane.experiment for member in members]
        self._members = members
        self._failures = failures
        self._plan = experiments[0].plan
        self._seeds = [experiment.seed for experiment in experiments]
        self._feeder = feed.Feeder(experiments[0].dataset.train, seed=0, train=True)
        self._call = make_call(experiments)
        self._slice = devices.parallel(
            lambda tree, place, _: jax.tree.map(lambda leaf: leaf[place], tree),
            in_axes=(None, None, 0),
        )
        self._state = _stack([member.progress.state for member in members])
        self._totals = _stack([member.progress.totals for member in members])

    def train(self, stop: Stop) -> bool:
        """Train to the end; False if a signal asked to stop before it, or no run is left."""
        plan, failures = self._plan, self._failures
        first = int(self._members[0].progress.state.step)
        feeds = self._feeder.feeds(_chunks(plan, self._seeds, first))
        with contextlib.closing(feeds):
            for call in feed.calls(plan, first):
                self._advance(call, feeds, is_compiled=call.step > first)
                step, epoch = call.step + call.count, plan.epoch_of_step(call.step)
                if step == plan.end_of_epoch(epoch):
                    for place, member in self._going():
                        with _at_its_own_cost(member.job, failures):
                            self._take_out(place, member)
                            member.lane.finish_epoch(member.progress, epoch)
                    self._totals = _stack([Metrics.zero()] * len(self._members))
                if step < plan.total_steps and stop.asked:
                    for place, member in self._going():
                        with _at_its_own_cost(member.job, failures):
                            self._take_out(place, member)
                            member.lane.stop(member.progress)
                    return False
                if not self._going():
                    return False
        return True

    def _advance(self, call: feed.Call, feeds: Iterator[feed.Feed], *, is_compiled: bool) -> None:
        """Run one compiled call; a run for which it was not finite fails."""
        start = time.monotonic()
        item = next(feeds)
        self._state, self._totals, health = self._call(self._state, self._totals, call, item)
        finite = np.asarray(health.is_finite())
        seconds = (time.monotonic() - start) / len(self._members)
        totals = jax.device_get(self._totals)
        for place, member in self._going():
            with _at_its_own_cost(member.job, self._failures):
                if not finite[place]:
                    self._take_out(place, member)
                    own = dataclasses.replace(item, indices=item.indices[:, place])
                    member.lane.fail(member.progress, call, own)
                if is_compiled:
                    member.progress.time(seconds, call.count)
                means = jax.tree.map(lambda leaf, place=place: leaf[place], totals).means()
                epoch = self._plan.epoch_of_step(call.step)
                member.lane.terminal.tick(epoch, call.step + call.count, means)

    def _going(self) -> list[tuple[int, _Member]]:
        """The runs that have not failed, with their places in the program."""
        pairs = enumerate(self._members)
        return [pair for pair in pairs if pair[1].job.name not in self._failures]

    def _take_out(self, place: int, member: _Member) -> None:
        """Bring a run's own state and totals up to date."""
        whole = (self._state, self._totals)
        every_device = np.zeros((jax.local_device_count(),), np.int32)
        member.progress.state, member.progress.totals = self._slice(
            whole, np.int32(place), every_device
        )


def make_call(
    experiments: Sequence[Experiment],
) -> Callable[..., tuple[TrainState, Metrics, Health]]:
    """Compile the training steps of experiments that differ in their seed alone, for all devices.

    Args:
      experiments: what is trained.

    Returns:
      (state, totals, call, feed) -> (state, totals, health), each with the experiments as leading
      axis, as `loop.make_call` of each. The feed's indices are (local devices, experiments, ...);
      the memory of the first two is taken over.
    """
    keys = jnp.stack([loop.augment_key(experiment) for experiment in experiments])
    mapped = devices.parallel(
        jax.vmap(loop.train_call(experiments[0]), in_axes=(0, 0, None, None, 0, None, 0, None)),
        in_axes=(None, None, None, None, 0, None, None, None),
        donate=(0, 1),
    )
    knowledge = devices.replicate(experiments[0].knowledge)

    def advance(state: TrainState, totals: Metrics, call: feed.Call, item: feed.Feed) -> Any:
        count = np.int32(call.count)
        arrays = item.images, item.labels, item.indices
        return mapped(state, totals, *arrays, count, keys, knowledge)

    return advance


def _chunks(plan: Plan, seeds: Sequence[int], step: int) -> feed.Chunks:
    """`feed.train_chunks` of each seed, the indices stacked as (seeds, rows_per_call, batch)."""
    for parts in zip(*(feed.train_chunks(plan, seed, step) for seed in seeds), strict=True):
        yield np.stack([indices for indices, _ in parts]), parts[0][1]


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, on the devices, with a leading axis for them."""
    return devices.replicate(jax.tree.map(lambda *leaves: np.stack(leaves), *trees))
