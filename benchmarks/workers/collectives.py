"""Worker: what a training step on several simulated devices sends between them.

python benchmarks/workers/collectives.py NETWORK METHOD DEVICES BATCH STEPS SIDE [SIZE=JSON ...]

It trains through `devices.parallel` and reads the program that XLA made of it from its dump.
"""

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "pred": 1}
ALL_REDUCE = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.*?) all-reduce(?:-start)?\(")
ELEMENT = re.compile(r"get-tuple-element\(%?([\w.-]+)\), index=(\d+)")
OPERATION = re.compile(r'op_name="([^"]*)"')
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def main(
    network: str, method: str, devices: str, batch: str, steps: str, side: str, *sizes: str
) -> None:
    with tempfile.TemporaryDirectory() as dump:
        os.environ["XLA_FLAGS"] = " ".join(
            [os.environ.get("XLA_FLAGS", ""), f"--xla_dump_to={dump} --xla_dump_hlo_as_text"]
        )
        attributes = {
            name: json.loads(value) for name, value in (size.split("=") for size in sizes)
        }
        facts = train(network, method, int(devices), int(batch), int(steps), int(side), attributes)
        programs = [path.read_text() for path in Path(dump).glob("*after_optimizations.txt")]
    # The other programs make the first weights and put arrays on the devices.
    step = max(programs, key=lambda program: len(list(collectives(program))))
    facts["collectives"] = list(collectives(step))
    print(json.dumps(facts), flush=True)


def train(
    network: str,
    method: str,
    num_devices: int,
    batch: int,
    steps: int,
    side: int,
    sizes: dict[str, Any],
) -> dict[str, Any]:
    """Train some steps as a run does; the number of parameters and the losses."""
    import jax

    jax.config.update("jax_num_cpu_devices", num_devices)
    import numpy as np
    from steps import make_setting

    from fda_jax.training import devices
    from fda_jax.training.metrics import Metrics
    from fda_jax.training.step import make_train_call

    setting = make_setting(
        network,
        method,
        batch,
        image_shape_hwc=(side, side, 3),
        axis_name=devices.AXIS,
        augment=False,
        sizes=sizes,
    )
    call = devices.parallel(
        make_train_call(setting.train_step, steps_per_call=1),
        in_axes=(None, None, None, None, 0, None, None),
        donate=(0, 1),
    )
    images, labels = devices.replicate((setting.batch.images, setting.batch.labels))
    state, totals = devices.replicate((setting.state, Metrics.zero()))
    indices = devices.split(np.arange(batch, dtype=np.int32)[None])
    losses = []
    for _ in range(steps):
        state, totals, health = call(
            state, totals, images, labels, indices, np.int32(1), setting.key
        )
        losses.append(float(health.loss))  # waits: the devices of a CPU share one thread pool
    sizes_of = [leaf.size for leaf in jax.tree.leaves(setting.state.params)]
    return {"devices": jax.device_count(), "parameters": sum(sizes_of), "losses": losses}


def collectives(program: str) -> Iterator[dict[str, Any]]:
    """The all-reduces of a program, in its order: bytes of each part by what it is for."""
    operations = {
        (match[1], int(match[2])): name[1]
        for line in program.splitlines()
        if (match := ELEMENT.search(line)) and (name := OPERATION.search(line))
    }
    for line in program.splitlines():
        match = ALL_REDUCE.match(line)
        if match is None:
            continue
        own = OPERATION.search(line)
        sent: dict[str, int] = {}
        for i, (dtype, shape) in enumerate(ARRAY.findall(match[2])):
            operation = operations.get((match[1], i), own[1] if own else "")
            size = BYTES[dtype]
            for length in filter(None, shape.split(",")):
                size *= int(length)
            part = purpose(dtype, operation)
            sent[part] = sent.get(part, 0) + size
        yield sent


def purpose(dtype: str, operation: str) -> str:
    """What an array is sent for, by its type and the operation that asked for it."""
    if "norm" in operation.rsplit("/psum", 1)[0]:
        return "norm_backward" if "transpose" in operation else "norm_forward"
    return "metrics" if dtype.startswith("s") else "gradient"


if __name__ == "__main__":
    main(*sys.argv[1:])
