"""Binary convolutions against PyTorch: numbers that tools/make_torch_cases.py computed once.

Each file of cases/ is a method at one progress: its output, and the gradients of
sum(output * cotangent) for the activations, the latent weights and every other trained parameter.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from fda_jax.layers import BinaryConv, make_method

CASES = Path(__file__).parent / "cases"
NAMES = sorted(path.stem for path in CASES.glob("*.json") if path.stem != "inputs")
# Half a second of compilation each; their parts have tests of their own.
SLOW = {"abc_net", "lns", "pcnn", "proxconnect", "proxquant"}


def read(name: str) -> dict:
    return json.loads((CASES / f"{name}.json").read_text())


def arrays(numbers: dict) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.float32) for name, value in numbers.items()}


@functools.cache
def inputs() -> dict[str, np.ndarray]:
    return arrays(read("inputs"))


@functools.cache
def compiled(method: str, knobs: str, strides: int) -> tuple[dict, Callable]:
    """The shapes of a layer's parameters, and its output and gradients at any progress."""
    made = make_method(method, **json.loads(knobs))
    layer = BinaryConv(inputs()["cotangent"].shape[-1], strides=strides, method=made)

    @jax.jit
    def run(params, a, g, progress):
        def forward(params, a):
            variables = {"params": params}
            return layer.apply(variables, a, train=True, progress=progress, mutable=["batch_stats"])

        output, pullback, _ = jax.vjp(forward, params, a, has_aux=True)
        return output, *pullback(g)

    shapes = jax.eval_shape(layer.init, jax.random.key(0), inputs()["activations"])["params"]
    return jax.tree.map(np.shape, shapes), run


def compute(case: dict) -> dict[str, np.ndarray]:
    """By this package, what the case's file holds."""
    strides = case["strides"]
    shapes, run = compiled(case["method"], json.dumps(case["knobs"]), strides)
    params = {"latent_kernel": inputs()["latent_kernel"], **arrays(case["params"])}
    params = unflatten_dict(params, sep="/")
    assert jax.tree.map(np.shape, params) == shapes
    cotangent = inputs()["cotangent"][:, ::strides, ::strides]
    output, of_params, of_activations = run(
        params, inputs()["activations"], cotangent, np.float32(case["progress"])
    )
    of_params = flatten_dict(of_params, sep="/")
    return {"output": output, "of activations": of_activations, **of_params}


def distances(case: dict) -> dict[str, float]:
    """By array, our largest difference from torch, in units of the largest expected magnitude.

    The unit is at least the cotangent's, 1: the sum that is a scalar's gradient may nearly cancel.
    """
    expected = arrays(
        {
            "output": case["output"],
            "of activations": case["activations_gradient"],
            "latent_kernel": case["latent_kernel_gradient"],
            **case["params_gradient"],
        }
    )
    ours = compute(case)
    assert ours.keys() == expected.keys()
    return {
        name: float(np.max(np.abs(ours[name] - value)) / max(1.0, np.max(np.abs(value))))
        for name, value in expected.items()
    }


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)
def test_output_and_gradients_are_those_of_torch(name: str) -> None:
    assert {what: far for what, far in distances(read(name)).items() if not far < 1e-5} == {}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("irnet_middle", {"progress": 0.72}),
        ("reste_middle", {"progress": 0.42}),
        ("fda_sine_middle", {"progress": 0.82}),
        ("ste", {"knobs": {"window": 1.1}}),
    ],
)
def test_the_comparison_sees_a_wrong_progress_and_a_wrong_window(name: str, changes: dict) -> None:
    wrong = distances({**read(name), **changes})
    assert wrong["output"] < 1e-5
    assert wrong["of activations"] > 1e-2
    assert wrong["latent_kernel"] > 1e-2
