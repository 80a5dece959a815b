"""From a run's folder to the file that is shipped, compared with the run on all test images."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from fda_jax import __version__, deploy
from fda_jax.data.errors import require
from fda_jax.deploy import onnx_form
from fda_jax.deploy.network import write_whole
from fda_jax.experiment import saved
from fda_jax.experiment.environment import label
from fda_jax.experiment.folder import RunFolder, WorkdirError
from fda_jax.experiment.saved import SavedRun
from fda_jax.experiment.setup import Experiment
from fda_jax.training import feed

# Images as they are stored to logits.
Reader = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Answers:
    """How a network in a file answers beside the run that it is of.

    Attributes:
      accuracy: on the test images, in [0, 1].
      same: number of test images to which both give the same class.
      largest_difference: between a logit of one and of the other.
    """

    accuracy: float
    same: int
    largest_difference: float


@dataclasses.dataclass(frozen=True)
class Release:
    """A network in a file.

    Attributes:
      facts: what the file says of where it comes from.
      sizes: bytes, see `deploy.PackedNetwork.sizes`; of an ONNX file "binary" are the bits or
        signs alone, "real" all other numbers that it holds, and "program" the rest of it.
      file_bytes: size of the file.
      examples: number of test images.
      run_accuracy: of the run's own network on them, in [0, 1].
      answers: of the file's network, by the arithmetic, "real" and, where it can be had, "bits"; of
        an ONNX file "onnx", or "qonnx" of a QONNX one, for ONNX Runtime's.
    """

    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    file_bytes: int
    examples: int
    run_accuracy: float
    answers: dict[str, Answers]


def release(
    workdir: str | Path,
    out: str | Path,
    *,
    checkpoint: str = "last",
    data_dir: str | None = None,
    qonnx: bool = False,
) -> Release:
    """Write the network of a run into one file, and compare its answers with the run's.

    Args:
      workdir: the run's folder; of a run in stages the last stage's network is taken.
      out: the file, which must not exist: an ONNX model if its name ends with .onnx, see
        `deploy.to_onnx`, a `deploy.PackedNetwork` if with .npz.
      checkpoint: "last", or "best", which is picked on the test set itself.
      data_dir: where the data lie now, see `saved.opened`.
      qonnx: make the ONNX model one of QONNX, see `deploy.to_onnx`.

    Returns:
      A `Release`.

    Raises:
      WorkdirError: there is no run or no such checkpoint in the folder, or the file exists or
        cannot be written.
      ValueError, CheckpointError: as `experiment.evaluate`; or another ending, also than .onnx
        with `qonnx`, a weight that is not finite, or what an ONNX file needs is not installed.
    """
    out = Path(out)
    if out.suffix.lower() not in (".npz", ".onnx"):
        raise ValueError(
            f"{out} ends neither as {out.stem}.npz, which JAX runs, nor as {out.stem}.onnx, which "
            "other programs run: give it one of these two endings"
        )
    is_onnx = out.suffix.lower() == ".onnx"
    if qonnx and not is_onnx:
        raise ValueError(f"{out} is to be a QONNX model: name it {out.stem}.onnx")
    if is_onnx:
        require("onnxruntime", extra="onnx", purpose="comparing an ONNX file with its run")
    if checkpoint not in saved.CHECKPOINTS:
        choices = " or ".join(saved.CHECKPOINTS)
        raise ValueError(f"checkpoint is {checkpoint!r}: use {choices}")
    if out.exists():
        raise WorkdirError(f"{out} exists already: choose another name, or remove it")
    if not out.parent.is_dir():
        raise WorkdirError(f"there is no folder {out.parent}: make it, or choose another")
    with saved.opened(workdir, data_dir=data_dir) as trained:
        found = trained.found(checkpoint)
        if found is None:
            raise WorkdirError(
                f"the folder {workdir} has no checkpoint {checkpoint!r}: use 'last', or train on"
            )
        step, state = found
        variables = jax.device_get(state.inference_variables())
        experiment, facts = trained.experiment, _facts(trained, Path(workdir), step)
    trained_network = (experiment.model, variables, experiment.dataset.image_shape_hwc)
    preprocessing = experiment.preprocessing
    settings = {"mean": preprocessing.mean, "std": preprocessing.std, "facts": facts}
    network = deploy.freeze(*trained_network, **settings)
    try:
        if is_onnx:
            model = deploy.to_onnx(*trained_network, **settings, qonnx=qonnx)
            written = model.SerializeToString()
            sizes = {**_sizes(model, len(written)), "unpacked": network.sizes()["unpacked"]}
            write_whole(out, lambda file: file.write(written))
        else:
            sizes = network.sizes()
            network.save(out)
    except OSError as error:
        raise WorkdirError(f"{out} could not be written ({error.strerror or error})") from error
    if is_onnx:
        readers = {"qonnx" if qonnx else "onnx": _in_onnx_runtime(out)}
    else:
        readers = _in_jax(deploy.load(out))
    examples, run_accuracy, answers = _compared(experiment, variables, readers)
    return Release(facts, sizes, out.stat().st_size, examples, run_accuracy, answers)


def _sizes(model: Any, written: int) -> dict[str, int]:
    """Of an ONNX model and its bytes."""
    sizes = {"binary": 0, "real": 0}
    for tensor in model.graph.initializer:
        is_binary = tensor.name.endswith((onnx_form.BITS, onnx_form.SIGNS))
        kind = "binary" if is_binary else "real"
        sizes[kind] += len(tensor.raw_data)
    return {**sizes, "program": written - sum(sizes.values())}


def _in_jax(network: deploy.PackedNetwork) -> dict[str, Reader]:
    """A network read from its file, by its arithmetic."""
    readers: dict[str, Reader] = {"real": dataclasses.replace(network, arithmetic="real")}
    return {**readers, "bits": network} if network.counts_bits else readers


def _in_onnx_runtime(path: Path) -> Reader:
    """A network read from an ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    pixels = np.uint8 if taken.type == "tensor(uint8)" else np.float32
    return lambda images: session.run(None, {taken.name: np.asarray(images, pixels)})[0]


def _facts(trained: SavedRun, workdir: Path, step: int) -> dict[str, object]:
    """What the file says of where it comes from."""
    settings = trained.settings
    surroundings = RunFolder(workdir, is_writer=False).read("environment.json")
    return {
        "network": settings["model"]["name"],
        "method": settings["method"]["name"],
        "dataset": settings["data"]["name"],
        "classes": list(trained.experiment.dataset.classes),
        "seed": settings["seed"],
        "step": step,
        "revision": label(surroundings or {}),
        "fda_jax": __version__,
        "jax": jax.__version__,
    }


def _compared(
    experiment: Experiment, variables: dict, readers: Mapping[str, Reader]
) -> tuple[int, float, dict[str, Answers]]:
    """Number of test images, the run's accuracy on them, and the answers of each reader."""

    @jax.jit
    def of_run(variables: dict, images: jax.Array) -> jax.Array:
        inputs = experiment.preprocessing.evaluate(images)
        return cast(jax.Array, experiment.model.apply(variables, inputs))

    counts = {name: np.zeros(2, int) for name in readers}  # right answers, and the run's
    largest = dict.fromkeys(readers, 0.0)
    examples = run_correct = 0
    for images, labels in _test_batches(experiment):
        known = labels >= 0  # the last batch is filled up
        own = np.asarray(of_run(variables, images))[known]
        right, own_answer = labels[known], own.argmax(axis=1)
        examples += len(right)
        run_correct += int(np.sum(own_answer == right))
        for name, reader in readers.items():
            logits = np.asarray(reader(images))[known]
            answer = logits.argmax(axis=1)
            counts[name] += [np.sum(answer == right), np.sum(answer == own_answer)]
            largest[name] = max(largest[name], float(np.abs(logits - own).max()))
    answers = {
        name: Answers(correct / examples, int(same), largest[name])
        for name, (correct, same) in counts.items()
    }
    return examples, run_correct / examples, answers


def _test_batches(experiment: Experiment) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """Images and labels of every batch of the test set; -1 is the label of what fills the last."""
    feeder = feed.Feeder(experiment.dataset.test, seed=experiment.seed, train=False)
    for item in feeder.feeds(feed.eval_chunks(experiment.plan)):
        rows = dataclasses.replace(item, indices=item.indices[:, None])
        images, labels = rows.examples_of(0)
        yield images, np.where(item.indices.reshape(-1) >= 0, np.asarray(labels), -1)
