"""Worker of `sides`: the PyTorch peer answers.

python benchmarks/workers/torch_answer.py NETWORK NPZ eager|compile binary|real IMAGES SECONDS

NPZ holds the variables of fda_jax by their paths, joined by "/".
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import answering
import numpy as np
import torch
import torch_peer


def main(network: str, npz: str, mode: str, kind: str, images: str, seconds: str) -> None:
    torch.set_flush_denormal(True)  # as XLA has it
    model = torch_peer.Predictor(network, dict(np.load(npz)), is_binary=kind == "binary").eval()
    predict = model
    if mode == "compile":
        # Weights are constants then, laid out as oneDNN likes them best.
        torch._inductor.config.freezing = True
        predict = torch.compile(model, dynamic=False)
    batch = torch.from_numpy(np.load(images))

    def answer() -> np.ndarray:
        with torch.no_grad():
            return predict(batch).numpy()

    answering.serve(answer, f"PyTorch {torch.__version__}, {mode}, {kind}", float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
