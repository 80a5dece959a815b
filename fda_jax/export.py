"""One file of a trained network, to be shipped: python -m fda_jax.export WORKDIR --out=FILE."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fda_jax.experiment import USER_ERRORS
from fda_jax.experiment.folder import from_words
from fda_jax.experiment.logs import quiet_pipe
from fda_jax.experiment.saved import CHECKPOINTS
from fda_jax.experiment.shipping import Release, release


@quiet_pipe
def main(argv: Sequence[str] | None = None) -> int:
    """Write the file, and print its size and how it answers beside the run.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0, or 1 if the run cannot be read or the file not written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fda_jax.export",
        description="Write a trained network into one file, a bit for each binary weight, and "
        "compare its answers with the run's on all test images.",
    )
    parser.add_argument("folder", type=from_words, metavar="WORKDIR", help="a run's folder")
    parser.add_argument(
        "--out",
        type=from_words,
        required=True,
        help="the file: fda.npz, for JAX, or fda.onnx, for other programs",
    )
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="last", help="best is picked on the test set"
    )
    parser.add_argument("--data_dir", help="where the data lie now")
    parser.add_argument(
        "--qonnx",
        action="store_true",
        help="with .onnx: say what is binary by QONNX's operator, for compilers of hardware",
    )
    flags = parser.parse_args(argv)
    try:
        made = release(
            flags.folder,
            flags.out,
            checkpoint=flags.checkpoint,
            data_dir=flags.data_dir,
            qonnx=flags.qonnx,
        )
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(_summary(flags.out, made))
    return 0


_ARITHMETICS = {
    "real": "in floating point",
    "bits": "by counting bits",
    "onnx": "in ONNX Runtime, in float32",
    "qonnx": "in ONNX Runtime, in float32",
}


def _summary(path: Path, made: Release) -> str:
    sizes = made.sizes
    parts = "binary layers {binary:,} bytes, real numbers {real:,}, programs {program:,} before "
    parts += "compression"
    if "onnx" in made.answers:
        parts = "bits of weights {binary:,} bytes, other numbers {real:,}, graph {program:,}"
    if "qonnx" in made.answers:
        parts = "weights -1 and 1 {binary:,} bytes, other numbers {real:,}, graph {program:,}"
    share = sizes["unpacked"] / made.file_bytes
    # Of a tiny network the program is most of the file.
    part = f"1/{share:.1f} of" if share > 1 else f"{1 / share:.1f} times"
    lines = [
        f"{path}: {made.file_bytes:,} bytes, {part} its {sizes['unpacked']:,} bytes in float32",
        f"  {parts.format(**sizes)}",
        f"  test accuracy of the run {made.run_accuracy:.2%}",
    ]
    for arithmetic, answers in made.answers.items():
        logits = f"logits differ by at most {answers.largest_difference:.2g}"
        if answers.largest_difference == 0:
            logits = "all logits are equal bit for bit"
        lines.append(
            f"  {_ARITHMETICS[arithmetic]} {answers.accuracy:.2%}: {answers.same:,} of "
            f"{made.examples:,} answers are the run's, {logits}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
