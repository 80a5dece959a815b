"""Worker of `sides`: one training step of the PyTorch peer a turn.

python benchmarks/workers/torch_step.py NETWORK METHOD BATCH NPZ eager|compile

NPZ holds the variables of fda_jax by their paths, joined by "/", and "images" and "labels".
"""

import ctypes
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import sides
import torch
import torch_peer


def main(network: str, method: str, batch: str, npz: str, mode: str) -> None:
    torch.set_flush_denormal(True)  # as XLA has it
    # As `fda_jax.experiment.heap` does: large tensors from the heap, which is kept.
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 0)
    mallopt(-1, 2**31 - 1)
    variables = dict(np.load(npz))
    images, labels = (variables.pop(name)[: int(batch)] for name in ("images", "labels"))
    trainer = torch_peer.Trainer(
        network, method, variables, images, labels, compiled=mode == "compile"
    )

    def turn() -> dict[str, float]:
        start = time.perf_counter()
        loss = trainer.step()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {"seconds": seconds, "loss": loss, "peak_mib": peak}

    first = turn()
    sides.serve(
        turn,
        {
            "program": f"PyTorch {torch.__version__}, {mode}",
            "compile_seconds": first["seconds"],
            "first_loss": first["loss"],
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
