"""Worker of `sides`: a shipped network answers.

python benchmarks/workers/jax_answer.py FILE bits|real IMAGES SECONDS
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import answering
import jax
import numpy as np

from fda_jax import deploy


def main(file: str, arithmetic: str, images: str, seconds: str) -> None:
    network, batch = deploy.load(file, arithmetic=arithmetic), np.load(images)
    answering.serve(
        lambda: np.asarray(network(batch)),
        f"fda_jax, jax {jax.__version__}, {arithmetic}",
        float(seconds),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
