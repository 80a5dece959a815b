"""Worker of `sides`: the Fourier slope's backward pass in PyTorch, closed and as the literal sum.

python benchmarks/workers/torch_slope.py ELEMENTS TERMS OMEGA WINDOW
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import sides
import torch
from torch import Tensor


def main(elements: str, terms: str, omega: str, window: str) -> None:
    rng = np.random.default_rng(0)
    x, cotangent = (
        torch.from_numpy(rng.standard_normal(int(elements), dtype=np.float32)) for _ in range(2)
    )
    number, frequency, half_width = int(terms), float(omega), float(window)
    slopes: dict[str, Callable[[], Tensor]] = {
        "literal": lambda: literal(x, number, frequency),
        "closed": lambda: closed(x, number, frequency),
        "ste": lambda: torch.ones_like(x),
    }

    def seconds(slope: Callable[[], Tensor]) -> float:
        start = time.perf_counter()
        slope().masked_fill_(x.abs() > half_width, 0.0).mul_(cotangent)
        return time.perf_counter() - start

    def turn() -> dict[str, float]:
        times = {name: seconds(slope) for name, slope in slopes.items()}
        return {**times, "seconds": sum(times.values())}

    turn()
    difference = (literal(x, number, frequency) - closed(x, number, frequency)).abs().max()
    peak = 4 / math.pi * frequency * number
    facts = {
        "program": f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads",
        "difference_of_peak": float(difference) / peak,
    }
    sides.serve(turn, facts)


def literal(x: Tensor, terms: int, omega: float) -> Tensor:
    """Eq. 10 as it is written, added up in place."""
    total = torch.cos(x * omega)
    for i in range(1, terms):
        total.add_(torch.cos(x * ((2 * i + 1) * omega)))
    return total.mul_(4 / math.pi * omega)


def closed(x: Tensor, terms: int, omega: float) -> Tensor:
    """The sum's closed form; off its singularity at 0 by a hair."""
    angle = (x * omega).abs_().add_(1e-20)
    return torch.sin(2 * terms * angle).div_(angle.sin_()).mul_(2 / math.pi * omega)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(*sys.argv[1:])
