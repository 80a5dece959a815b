"""What a network costs: python -m fda_jax.summary WORKDIR, or of any network by its name.

python -m fda_jax.summary runs/fda
python -m fda_jax.summary --network=resnet20 --method=fda --dataset=cifar10
python -m fda_jax.summary --network=resnet18 --method=abc_net --knob=weight_bases=3 \
    --image_shape=224,224,3 --num_classes=1000
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from fda_jax import data, layers, models
from fda_jax.experiment import USER_ERRORS, stages
from fda_jax.experiment.folder import RunFolder, WorkdirError, from_words
from fda_jax.experiment.logs import quiet_pipe
from fda_jax.experiment.setup import DTYPES


@quiet_pipe
def main(argv: Sequence[str] | None = None) -> int:
    """Print the parameters, bytes and products of each layer, and what they add up to.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0, or 1 if the run cannot be read or there is no such network (2 is that of flags
      that do not belong together).
    """
    flags = _flags(argv)
    try:
        model, image_shape = _network(flags) if flags.folder is None else _of_run(flags)
        print(models.summarize(model, image_shape))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fda_jax.summary",
        description="Say what a network costs at inference: parameters, bytes and products of each "
        "layer. Nothing is trained or run.",
    )
    parser.add_argument(
        "folder", nargs="?", type=from_words, metavar="WORKDIR", help="a run's folder"
    )
    known = ", ".join(models.MODELS)
    parser.add_argument(
        "--network", help=f"in place of a run: {known}, or module:function for one's own"
    )
    parser.add_argument("--method", help="by which its layers are binary; fda if not given")
    parser.add_argument(
        "--knob",
        action="append",
        type=_knob,
        metavar="NAME=VALUE",
        help="a setting of the method; as often as needed",
    )
    parser.add_argument(
        "--real_layers",
        action="append",
        metavar="PATTERN",
        help="names of hidden layers that stay real, e.g. 'stage3_*'; as often as needed",
    )
    parser.add_argument(
        "--dataset", choices=tuple(data.SPECS), help="whose images and classes the network is for"
    )
    parser.add_argument(
        "--image_shape",
        type=_shape,
        metavar="HEIGHT,WIDTH,CHANNELS",
        help="of an image in pixels, in place of --dataset or of what the run says",
    )
    parser.add_argument("--num_classes", type=int, metavar="N", help="likewise")
    flags = parser.parse_args(argv)
    if (flags.folder is None) == (flags.network is None):
        parser.error("give either a run's folder or --network")
    of_network = (flags.method, flags.knob, flags.real_layers, flags.dataset)
    if flags.folder is not None and any(of_network):
        parser.error(
            "a run has its own method and data: give --method, --knob, --real_layers and --dataset "
            "alone"
        )
    if flags.network and not (flags.dataset or (flags.image_shape and flags.num_classes)):
        parser.error("give --dataset, or --image_shape and --num_classes, beside --network")
    return flags


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.strip().isdecimal() and int(size) for size in sizes):
        raise argparse.ArgumentTypeError(f"{text} is no height,width,channels: use e.g. 32,32,3")
    return tuple(map(int, sizes))


def _knob(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text} is no NAME=VALUE: use e.g. scale=filter")
    if value.lower() in ("true", "false"):  # as on the command line of a run
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):  # a word
        return name, value


def _network(flags: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """The network that the flags name, and the shape of its images."""
    image_shape, num_classes = flags.image_shape, flags.num_classes
    if flags.dataset is not None:
        spec = data.SPECS[flags.dataset]
        image_shape = image_shape or spec.image_shape_hwc
        num_classes = num_classes or spec.num_classes
    method = layers.make_method(flags.method or "fda", **dict(flags.knob or ()))
    kept = flags.real_layers or ()
    return _built(flags.network, method, image_shape, num_classes, real_layers=kept), image_shape


def _of_run(flags: argparse.Namespace) -> tuple[nn.Module, tuple[int, ...]]:
    """The network of a run's folder, of a run in stages the last one's; its data need not be
    there."""
    folder = RunFolder(flags.folder, is_writer=False)
    config = folder.config()
    if config is None:
        raise WorkdirError(
            f"the folder {folder.path} holds no run (no config.json): give the --workdir of one, "
            "or --network"
        )
    parts = stages.split(config)
    if parts:
        folder = RunFolder(stages.folders(folder.path, config)[-1], is_writer=False)
        config = parts[-1]
    name = config["data"]["name"]
    spec = data.SPECS.get(name)
    image_shape, num_classes = flags.image_shape, flags.num_classes
    if spec is not None:
        image_shape = image_shape or spec.image_shape_hwc
        num_classes = num_classes or spec.num_classes
    elif name.startswith("folder:"):
        image_shape = image_shape or (*[config["data"]["image_size"]] * 2, 3)
    if num_classes is None:
        num_classes = len((folder.read("dataset.json") or {}).get("classes", ()))
    if not image_shape or not num_classes:
        raise WorkdirError(
            f"the run in {folder.path} is of {name}, and does not say what its images and classes "
            "are: add --image_shape and --num_classes"
        )
    knobs = dict(config["method"])
    method = layers.make_method(knobs.pop("name"), **knobs)
    settings = dict(config["model"])
    network, dtype = settings["name"], DTYPES[settings["dtype"]]
    kept = settings.get("real_layers", ())
    return _built(
        network, method, image_shape, num_classes, dtype=dtype, real_layers=kept
    ), image_shape


def _built(
    name: str, method: layers.Method, image_shape: Any, num_classes: Any, **settings: Any
) -> nn.Module:
    models.check_image_shape(name, image_shape)
    model = models.build(name, num_classes=num_classes, method=method, **settings)
    models.check_network(name, model, image_shape, num_classes=num_classes, method=method)
    return model


if __name__ == "__main__":
    sys.exit(main())
