"""Share of the training step that is spent waiting for data, in the library's own loop and feed.

A data set in memory costs the drawing of indices; JPEGs are read, decoded, cropped and resized on
the host while a step runs. Four things take turns: training; the loader without steps; steps
without the loader (one batch again and again); and the loader with steps that take none of the
host's cores, as an accelerator's do: sleeps as long as the loader needs for a batch, where waiting
is hardest to avoid. On a CPU the loader and the step share the cores, so training cannot come to
the larger of the two there. JPEGs are read again and again: the disk is not measured.

    python benchmarks/input_wait.py --out=results/input_wait
    python benchmarks/input_wait.py --out=results/input_wait --images=FOLDER_OF_TRAIN_AND_VAL
"""

import contextlib
import importlib
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import record
import sides

from fda_jax import data
from fda_jax.data.specs import SPECS
from fda_jax.experiment import loop, setup
from fda_jax.experiment.folder import RunFolder, from_words
from fda_jax.training import feed
from fda_jax.training.checkpoints import Checkpoints

sys.path.insert(0, str(sides.ROOT / "configs"))

METHOD = "ste"
# The loader works two batches ahead: those that it has ready when a turn begins are not timed.
AHEAD = 3
LIMIT_RESIDENT, LIMIT_OVERLAP = 0.01, 0.9
# Of ImageNet's photographs: 500 x 375 pixels, a hundred kilobytes.
WIDTH, HEIGHT, QUALITY = 500, 375, 90


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--images", type=from_words, help="folder of train/ and val/ class folders")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each turn")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each kind")
    args = parser.parse_args()
    # Network, pixels (None for 50,000 images of CIFAR-10's size in memory), batch.
    settings: list[tuple[str, int | None, int]] = [
        ("resnet20", None, 128),
        ("resnet20", 64, 32),
        ("resnet8", 64, 128),
        ("resnet8", 224, 32),
    ]
    if args.tiny:
        args.steps, args.rounds = 2, 1
        settings = [("resnet_digits", None, 8), ("resnet_digits", 16, 4)]
    report = record.Record("input_wait", "How much of a training step is waiting for data?")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        images = args.images or make_images(Path(scratch, "images"), 8 if args.tiny else 256)
        for number, (network, pixels, batch) in enumerate(settings):
            folder = Path(scratch, f"run{number}")
            trial = Trial(network, pixels, batch, images.resolve(), folder, args.steps)
            row = trial.measure(args.rounds)
            rows.append(row)
            print(" ".join(f"{key} {value}" for key, value in row.items() if key != "turns"))
    report.tables.append(table(rows))
    report.goals = goals(rows)
    report.answer = answer(rows)
    report.details = {"settings": rows, "images": str(args.images or "made of random numbers")}
    print(report.answer)
    report.write(args)


class Trial:
    """A network and a data set, and the four things that take turns.

    Args:
      network: name of `models.MODELS`.
      pixels: side of the crops; None for images in memory.
      batch: images a step.
      images: folder of class folders of JPEGs.
      folder: of the run, which is never finished.
      steps: timed steps of a turn.
    """

    def __init__(
        self,
        network: str,
        pixels: int | None,
        batch: int,
        images: Path,
        folder: Path,
        steps: int,
    ) -> None:
        config = importlib.import_module("cifar10_resnet20").get_config(METHOD)
        config.update_from_flattened_dict(
            {
                "model.name": network,
                "data.name": f"folder:{images}" if pixels else "cifar10",
                "data.image_size": pixels or 32,
                "augment.crop_px": 0 if pixels else 4,
                "train.batch_size": batch,
                "train.epochs": 10_000,
            }
        )
        settings = config.to_dict()
        dataset = None if pixels else random_images()
        self._experiment = setup.build(settings, dataset=dataset)
        self._steps = steps
        self._about = {"network": network, "pixels": pixels or 32, "batch": batch}
        self._is_resident = pixels is None
        run_folder = RunFolder(folder)
        run_folder.make()
        lane = loop.Lane(self._experiment, run_folder, Checkpoints(folder / "kept"))
        self._trainer = loop.Trainer(lane)
        self._progress = lane.restore()
        self._feeder = feed.Feeder(
            self._experiment.dataset.train, seed=self._experiment.seed, train=True
        )
        with self._feeds() as feeds:
            self._item = next(feeds)
        self._step(self._item)  # compiled here
        self._step(self._item)

    def measure(self, rounds: int) -> dict[str, Any]:
        """All turns, and what they come to."""
        self._load_seconds = self.loader()["seconds"]
        turns: dict[str, Callable[[], dict[str, Any]]] = {
            "training": self.training,
            "loader": self.loader,
            "step": self.step,
        }
        if not self._is_resident:
            turns["sleeping"] = self.sleeping
        done = sides.alternate(turns, rounds)
        seconds = {name: sides.median(answers) for name, answers in done.items()}
        batch = self._about["batch"]
        ideal = max(seconds["loader"], seconds["step"])
        row = {
            **self._about,
            "wait_share": sides.median(done["training"], "wait") / seconds["training"],
            "training_images": batch / seconds["training"],
            "loader_images": batch / seconds["loader"],
            "step_images": batch / seconds["step"],
            "of_larger": ideal / seconds["training"],
            "of_sum": (seconds["loader"] + seconds["step"]) / seconds["training"],
            "turns": done,
        }
        if not self._is_resident:
            row["sleeping_wait_share"] = (
                sides.median(done["sleeping"], "wait") / seconds["sleeping"]
            )
            row["sleeping_of_larger"] = statistics.median(
                max(one["asleep"], seconds["loader"]) / one["seconds"] for one in done["sleeping"]
            )
        return row

    def training(self) -> dict[str, Any]:
        """Steps of the trainer, each fed by the loader."""
        return self._fed(self._step)

    def sleeping(self) -> dict[str, Any]:
        """The loader with steps that leave the host's cores alone."""
        asleep = self._load_seconds
        return {**self._fed(lambda _: time.sleep(asleep)), "asleep": asleep}

    def loader(self) -> dict[str, Any]:
        """The loader alone."""
        answers = self._fed(lambda _: None)
        self._load_seconds = answers["seconds"]
        return answers

    def step(self) -> dict[str, Any]:
        """Steps alone, on one batch."""
        return self._timed(itertools.repeat(self._item), self._step)

    def _fed(self, use: Callable[[feed.Feed], None]) -> dict[str, Any]:
        with self._feeds() as feeds:
            for item in itertools.islice(feeds, AHEAD):
                use(item)
            return self._timed(feeds, use)

    def _timed(self, feeds: Iterator[feed.Feed], use: Callable[[feed.Feed], None]) -> dict:
        waits, uses = [], []
        for _ in range(self._steps):
            begin = time.perf_counter()
            item = next(feeds)
            ready = time.perf_counter()
            use(item)
            waits.append(ready - begin)
            uses.append(time.perf_counter() - ready)
        # Means, for a loader gives several batches at once and then none.
        return {
            "seconds": statistics.mean(waits) + statistics.mean(uses),
            "wait": statistics.mean(waits),
            "waits": waits,
            "uses": uses,
            "train_loss": self._progress.totals.means()["loss"],
        }

    def _feeds(self) -> Any:
        step = int(self._progress.state.step)
        chunks = feed.train_chunks(self._experiment.plan, self._experiment.seed, step)
        return contextlib.closing(self._feeder.feeds(chunks))

    def _step(self, item: feed.Feed) -> None:
        self._trainer._advance(self._progress, feed.Call(int(self._progress.state.step), 1), item)


def random_images() -> data.Dataset:
    """Images in memory, as many and as large as CIFAR-10's."""
    rng = np.random.default_rng(0)

    def split(count: int) -> data.ArraySplit:
        pixels = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return data.ArraySplit(pixels, rng.integers(0, 10, count, np.int32))

    return data.Dataset(
        name="random images",
        num_classes=10,
        image_shape_hwc=(32, 32, 3),
        mean=SPECS["cifar10"].mean,
        std=SPECS["cifar10"].std,
        classes=tuple(map(str, range(10))),
        train=split(50_000),
        test=split(1000),
    )


def make_images(folder: Path, count: int) -> Path:
    """Class folders of JPEGs of random texture, of the size of ImageNet's."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(count):
        # Coarse patches under fine noise, so that a file is about as large as a photograph.
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + rng.normal(0, 10, smooth.shape)
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        side = "val" if number < 4 else "train"
        path = folder / side / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=QUALITY)
    return folder


def table(rows: list[dict[str, Any]]) -> record.Table:
    columns = [
        "data, network, batch",
        "waiting, % of a step",
        "training, images/s",
        "loader alone, images/s",
        "step alone, images/s",
        "larger of the two / training",
        "sum of the two / training",
        "waiting with sleeping steps, %",
        "larger of the two / sleeping steps",
    ]
    return record.Table(
        "Waiting for data",
        columns,
        [
            [
                describe(row),
                round(100 * row["wait_share"], 2),
                *(round(row[key]) for key in ("training_images", "loader_images", "step_images")),
                round(row["of_larger"], 2),
                round(row["of_sum"], 2),
                rounded(row.get("sleeping_wait_share"), 100),
                rounded(row.get("sleeping_of_larger"), 1),
            ]
            for row in rows
        ],
        "1 in the columns of the larger: the loader and the step overlap wholly. On a CPU they "
        "share the cores, where the sum is 1 if neither wastes anything. Sleeping steps take as "
        "long as the loader needs, and no core.",
    )


def goals(rows: list[dict[str, Any]]) -> list[record.Goal]:
    made = []
    for row in rows:
        if "sleeping_of_larger" in row:
            share = row["sleeping_of_larger"]
            what = f"steps that take no core reach {LIMIT_OVERLAP:.0%} of the loader's own speed"
            made.append(
                record.Goal(f"{describe(row)}: {what}", f"{share:.0%}", share >= LIMIT_OVERLAP)
            )
        else:
            share = row["wait_share"]
            what = f"waiting is less than {LIMIT_RESIDENT:.0%} of a step"
            made.append(
                record.Goal(f"{describe(row)}: {what}", f"{share:.3%}", share < LIMIT_RESIDENT)
            )
    return made


def answer(rows: list[dict[str, Any]]) -> str:
    shares = [f"{describe(row)}: {row['wait_share']:.2%}" for row in rows]
    return f"Waiting for data, as a share of the training step: {'; '.join(shares)}."


def describe(row: dict[str, Any]) -> str:
    where = "JPEGs" if "sleeping_of_larger" in row else "in memory"
    return f"{where}, {row['pixels']} px, {row['network']}, {row['batch']}"


def rounded(value: float | None, factor: float) -> float | None:
    return None if value is None else round(factor * value, 2)


if __name__ == "__main__":
    main()
