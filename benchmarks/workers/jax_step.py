"""Worker of `sides`: one training step of ours a turn.

python benchmarks/workers/jax_step.py NETWORK METHOD BATCH [KNOB=VALUE ...]
"""

import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import sides
import steps

from fda_jax.experiment import heap


def main(network: str, method: str, batch: str, *knobs: str) -> None:
    heap.reuse_pages()  # as train.py does
    values = {name: json.loads(value) for name, value in (knob.split("=", 1) for knob in knobs)}
    setting = steps.make_setting(network, method, int(batch), augment=False, **values)
    stepper = steps.Stepper(setting)
    first = stepper()

    def turn() -> dict[str, float]:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {**stepper(), "peak_mib": peak}

    sides.serve(
        turn,
        {
            "program": f"fda_jax, jax {jax.__version__}",
            "compile_seconds": stepper.compile_seconds,
            "first_loss": first["loss"],
            "gflop": stepper.flops() / 1e9,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
