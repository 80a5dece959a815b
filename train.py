"""Train or evaluate a network, or train a sweep of them: flags in, exit code out.

python train.py --config=configs/cifar10_resnet20.py --workdir=runs/x
python train.py --config=configs/cifar10_resnet20.py:ste --workdir=runs/y --config.seed=1
python train.py --config=configs/cifar10_resnet20.py:mine:halved --workdir=runs/z  # of mine.py
python train.py --workdir=runs/x --mode=eval
python train.py --sweep=configs/sweeps/methods.py --workdir=runs/methods --seeds=3
python train.py --sweep=configs/sweeps/table2.py --workdir=runs/table2 --seeds=5 --budget=0.02
python train.py --sweep=configs/sweeps/methods.py --workdir=runs/methods --only=fda,ste \
    --override=train.epochs=2 --override=data.dir=/data
"""

import logging
import os
import re
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

sys.path.insert(0, str(Path(__file__).parent / "configs"))  # they import one another by bare name
sys.path.append(os.getcwd())  # where a method or network of one's own may lie, as for python -m

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, FILE.py[:METHOD].")
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
SWEEP = flags.DEFINE_string("sweep", None, "Sweep file, instead of --config; see configs/sweeps.")
SEEDS = flags.DEFINE_integer("seeds", 1, "With --sweep: train each run with seeds 0 to N - 1.")
OVERRIDE = flags.DEFINE_multi_string(
    "override", [], "With --sweep: KEY=VALUE of every run; may be given many times."
)
SHARD = flags.DEFINE_string(
    "shard", "0/1", "With --sweep: I/N takes every N-th run from the I-th (0 is the first) on."
)
BUDGET = flags.DEFINE_float(
    "budget",
    None,
    "With --sweep: train this share of every run's epochs, in (0, 1]; all outputs are marked. Of a "
    "single run it is --config.train.budget.",
)
ONLY = flags.DEFINE_list("only", [], "With --sweep: names of the runs to train; all if empty.")
SIDE_BY_SIDE = flags.DEFINE_boolean(
    "side_by_side",
    True,
    "With --sweep, where there are several local devices: a run on each, at the same time. "
    "--noside_by_side trains one run after another, each on all of them.",
)
TOGETHER = flags.DEFINE_enum(
    "together",
    "auto",
    ["auto", "always", "never"],
    "With --sweep: train the seeds of a run as one program. 'auto' does so on one GPU or TPU, "
    "where it is faster, for the runs that allow it.",
)
DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "With --mode=eval: where the data lie now, if not where the run found them; of "
    "folder:/PATH/NAME the folder that holds NAME.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, or 'auto' on a cluster that JAX knows (SLURM)."
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator=HOST:PORT.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator=HOST:PORT.")


def main(argv: list[str]) -> int:
    """Run what the flags say; the exit code is 1 for what a user can mend."""
    if len(argv) > 1:
        sys.exit(f"error: unknown arguments {argv[1:]}: overrides are --config.KEY=VALUE")
    if not WORKDIR.value:
        sys.exit("error: --workdir is empty: give the run's folder, e.g. --workdir=runs/x")
    config = None if CONFIG.value is None else CONFIG.value.to_dict()
    if SWEEP.value is not None and (config is not None or MODE.value != "train"):
        sys.exit("error: --sweep names its configurations itself, and trains: leave the rest")
    if BUDGET.value is not None and SWEEP.value is None:
        sys.exit("error: --budget is of a --sweep: of a run it is --config.train.budget")
    for flag in (SEEDS, OVERRIDE, SHARD, ONLY, SIDE_BY_SIDE, TOGETHER):
        if flag.present and SWEEP.value is None:
            sys.exit(f"error: --{flag.name} is of a --sweep: give one, or leave it out")
    if DATA_DIR.present and MODE.value != "eval":
        sys.exit("error: --data_dir is of --mode=eval: in training it is --config.data.dir")
    if config is None and SWEEP.value is None and MODE.value == "train":
        sys.exit("error: --config is missing: e.g. --config=configs/digits_resnet.py")
    for chatty in ("jax", "absl"):  # every backend that is not there, every file that is saved
        logging.getLogger(chatty).setLevel(logging.WARNING)
    import jax

    from fda_jax import experiment
    from fda_jax.experiment import compilation, heap, setup, side_by_side, sweep

    if COORDINATOR.value is not None:
        where = None if COORDINATOR.value == "auto" else COORDINATOR.value
        jax.distributed.initialize(where, NUM_PROCESSES.value, PROCESS_ID.value)
    compilation.keep_programs()
    config = None if config is None else setup.words_apart(config)
    budget = [] if BUDGET.value in (None, 1.0) else [f"train.budget={BUDGET.value}"]
    try:
        if SWEEP.value is not None:
            asked = sweep.read(SWEEP.value, [*OVERRIDE.value, *budget])
            alone = COORDINATOR.value is not None or not SIDE_BY_SIDE.value
            # Before reuse_pages, which starts JAX's backend.
            environments = [] if alone else side_by_side.pins()
            heap.reuse_pages()
            failures = sweep.train(
                asked,
                WORKDIR.value,
                seeds=SEEDS.value,
                shard=SHARD.value,
                only=ONLY.value,
                environments=environments,
                together=TOGETHER.value,
            )
            for name, why in failures.items():
                print(f"error: {name}: {why}", file=sys.stderr)
            return 1 if failures else 0
        heap.reuse_pages()
        if MODE.value == "eval":
            experiment.evaluate(config, WORKDIR.value, data_dir=DATA_DIR.value)
        elif config is not None:
            experiment.train(config, WORKDIR.value)
    except experiment.USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the flags; what the configuration cannot be or lacks ends the program."""
    for word in argv:
        flag, _, method = word.lstrip("-").partition("=")
        if flag == "config.method.name":
            # Its knobs stand in the configuration, which has those of another.
            sys.exit(f"error: {word}: a method is chosen by FILE.py:{method or 'METHOD'}")
    try:
        rest = flags.FLAGS([_at_home(word) for word in argv])
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # where a file that could not be read is told
        return rest
    except OSError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        sys.exit(f"error: the file of --config cannot be read ({reason}): see configs")
    except SyntaxError as error:
        where = f"{error.filename}, line {error.lineno}"
        sys.exit(f"error: the file of --config is not Python ({error.msg} in {where}): see configs")
    except flags.Error as error:
        words, kind = str(error).strip(), "ValueError: "
        last = words.splitlines()[-1].strip()
        if "parsing config file" in words and last.startswith(kind):
            words = last.removeprefix(kind)  # the file's own, e.g. of a method that there is not
        hint = "--help lists the flags"
        if "as a ConfigDict" in words:
            hint = "a group is set key by key, --config.GROUP.KEY=VALUE; a method is FILE.py:METHOD"
        print(f"error: {words}\n({hint})", file=sys.stderr)
        sys.exit(1)
    except (AttributeError, KeyError) as error:
        if "get_config" in str(error):
            words = "error: --config names a file without get_config(): a sweep's is --sweep=FILE"
            print(words, file=sys.stderr)
            sys.exit(1)
        # The library names the key, and on a second line the nearest one if there is any.
        name, _, hint = str(error).replace("\\n", "\n").replace("\\", "").partition("\n")
        quotes = "\"'"
        name = name.strip(quotes)
        words = [word for word in argv if name in word.partition("=")[0].split(".")[1:]]
        if not words:  # a fault of the configuration file itself
            raise
        print(
            f"error: {' '.join(words)} overrides nothing, for the configuration has no key "
            f"{name!r} there. {hint.strip(quotes)} The keys stand in configs/base.py, the knobs "
            "of each method in configs/methods.py or, of your own, in its function",
            file=sys.stderr,
        )
        sys.exit(1)


def _at_home(word: str) -> str:
    """A flag's word, the ~ of whose path a shell leaves to us behind the =; that of a key of the
    configuration means the home folder of each machine, and stays."""
    return re.sub(r"^(--?\w+=)(~.*)", lambda found: found[1] + os.path.expanduser(found[2]), word)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
