"""How many kernels does a training step launch on a GPU, read from the program for an H100?

Needs no GPU: XLA compiles for the described one (without trying out variants, so that convolutions
and matrix products have their default form). What it does need is JAX's CUDA plugin,
`pip install "jax[cuda13]"`. A step of a small network is mostly kernels that take as long as a
kernel takes at least, so their number is worth watching, and it does not depend on the clock. The
host launches them one by one or, more cheaply, many as a CUDA graph: launches are counted too.

    python benchmarks/gpu_kernels.py --out=runs/gpu_kernels
"""

import collections
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

# The plugin looks for a driver otherwise.
os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")

import jax
import jax.numpy as jnp
import numpy as np
import record
import steps
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fda_jax.training import devices
from fda_jax.training.metrics import Metrics
from fda_jax.training.step import make_train_call

# What XLA must know of a GPU; an H100 SXM with 80 GB, as it reports itself.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.12.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
STEPS_PER_CALL, EXAMPLES = 50, 50_000
# Instructions that are no work of their own.
FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = .*?\s([a-z][a-z\-]*)\((.*)")
KINDS = ("loops", "reductions and transposes", "matrix products", "convolutions", "others")
# The passes' last word on what the host launches, and a line of it.
THUNKS = "*thunk_sequence_after_thunk_passes.txt"
THUNK = re.compile(r"( *)\d+: (k\w+)")
# For XLA: convolutions may be part of a graph, so that a step is one.
ONE_GRAPH = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONVOLUTION"
}
# Method, dtype, seeds.
ROWS = (
    ("ste", "bfloat16", 1),
    ("fda", "bfloat16", 1),
    ("fda", "float32", 1),
    ("fda", "bfloat16", 3),
)


def main() -> None:
    parser = record.parser(__doc__)
    parser.add_argument("--network", default="resnet20")
    args = parser.parse_args()
    mesh = Mesh(np.array(jax.devices()[:1] if args.tiny else h100(parser.error)), (devices.AXIS,))
    rows = (("ste", "float32", 1), ("ste", "float32", 2)) if args.tiny else ROWS
    made = record.Record("gpu_kernels", __doc__.splitlines()[0])
    counts, launches = {}, {}
    for row in rows:
        program, thunks = compile_call(mesh, args.network, *row, tiny=args.tiny)
        counts[row] = kernels_of_loop(program)
        if not args.tiny:
            _, one_graph = compile_call(mesh, args.network, *row, tiny=False, options=ONE_GRAPH)
            launches[row] = [launches_of_loop(thunks), launches_of_loop(one_graph)]
        print(*row, dict(counts[row]), *map(dict, launches.get(row, ())), flush=True)
    made.tables.append(table(args.network, counts))
    if launches:
        made.tables.append(launch_table(args.network, launches))
    made.details["counts"] = {" ".join(map(str, row)): dict(c) for row, c in counts.items()}
    *alone, seeds = rows[-1]
    one, several = (counts[*alone, number].total() for number in (1, seeds))
    made.goals = [
        record.Goal("a step of FDA with noise modules: at most 600 kernels", f"{one}", one <= 600),
        record.Goal(
            "several seeds as one program: less than twice the kernels of one seed",
            f"{several / one:.2f} times with {seeds} seeds",
            several < 2 * one,
        ),
    ]
    made.answer = (
        f"A step of {args.network} with FDA and its noise modules launches {one} kernels; as one "
        f"program {seeds} seeds launch {several}, {several / seeds:.0f} each."
    )
    print(made.write(args))


def h100(fail: Callable[[str], Any]) -> list[Any]:
    """The described device."""
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
        )
    except NotImplementedError:
        fail(
            'XLA cannot compile for a GPU here: pip install "jax[cuda13]" (no GPU is needed), or '
            "try the script with --tiny"
        )
        raise
    return topology.devices


def compile_call(
    mesh: Mesh,
    network: str,
    method: str,
    dtype: str,
    seeds: int,
    *,
    tiny: bool,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[str, str]:
    """The program of a call, of several seeds as `together` trains them, as text; and what the host
    launches for it, likewise, which is empty if tiny."""
    batch, side = (4, 8) if tiny else (128, 32)
    with jax.default_device(jax.devices("cpu")[0]):
        setting = steps.make_setting(
            network,
            method,
            batch,
            image_shape_hwc=(side, side, 3),
            dtype=dtype,
            axis_name=devices.AXIS,
            sizes={"stage_sizes": (1,), "widths": (4,)} if tiny else None,
        )
    call = make_train_call(setting.train_step, steps_per_call=STEPS_PER_CALL)
    start, key = (setting.state, Metrics.zero()), setting.key
    indices = jnp.zeros((STEPS_PER_CALL, batch), jnp.int32)
    if seeds > 1:
        start, key, indices = jax.tree.map(
            lambda leaf: jnp.stack([leaf] * seeds), (start, key, indices)
        )
        call = jax.vmap(call, in_axes=(0, 0, None, None, 0, None, 0))
    examples = (
        jax.ShapeDtypeStruct((EXAMPLES, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((EXAMPLES,), jnp.int32),
    )
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P())
        ),
        (*start, *examples, indices, jnp.int32(0), key),
    )
    mapped = jax.shard_map(call, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    lowered = jax.jit(mapped, donate_argnums=(0, 1)).lower(*arguments)
    if tiny:
        return lowered.compile().as_text(), ""
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"xla_gpu_autotune_level": 0, "xla_dump_to": folder, **options}
        program = lowered.compile({**chosen, "xla_dump_hlo_as_text": True}).as_text()
        (thunks,) = Path(folder).glob(THUNKS)
        return program, thunks.read_text()


def kernels_of_loop(program: str) -> collections.Counter[str]:
    """What the body of a program's largest loop launches, by kind."""
    bodies = set(re.findall(r"while\(.*body=%?([\w.\-]+)", program))
    found: dict[str, collections.Counter[str]] = {name: collections.Counter() for name in bodies}
    inside = None
    for line in program.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+) ", line)
            inside = found.get(name[1]) if name else None
        elif line.startswith("}"):
            inside = None
        elif inside is not None and (match := INSTRUCTION.match(line)) and match[1] not in FREE:
            inside[kind_of(*match.groups())] += 1
    return max(found.values(), key=lambda counts: counts.total())


def launches_of_loop(thunks: str) -> collections.Counter[str]:
    """What the host launches for one turn of a program's largest loop, by kind."""
    lines = thunks.splitlines()
    found = [collections.Counter[str]()]
    for start, line in enumerate(lines):
        if line.strip() != "body:":
            continue
        inside = len(line) - len(line.lstrip()) + 2
        counts = collections.Counter[str]()
        for later in lines[start + 1 :]:
            match = THUNK.match(later)
            if match is None or len(match[1]) < inside:
                break
            counts[match[2]] += len(match[1]) == inside  # what is further in, a graph holds
        found.append(counts)
    return max(found, key=lambda counts: counts.total())


def kind_of(operation: str, rest: str) -> str:
    if "conv" in rest.partition("custom_call_target=")[2] or operation == "convolution":
        return "convolutions"
    if "kind=kInput" in rest:
        return "reductions and transposes"
    if "kind=kLoop" in rest:  # also of what reads a product
        return "loops"
    return "matrix products" if "gemm" in rest or operation == "dot" else "others"


def table(network: str, counts: dict[Any, collections.Counter[str]]) -> record.Table:
    rows = [
        [
            f"{method}, {dtype}, seeds: {seeds}",
            found.total(),
            found.total() / seeds,
            *(found[kind] for kind in KINDS),
        ]
        for (method, dtype, seeds), found in counts.items()
    ]
    return record.Table(
        f"Kernels of a step of {network}, batch 128",
        ["method, dtype", "kernels", "for a seed", *KINDS],
        rows,
        "An entry of the compiled loop's body each: a loop over elements, a reduction or transpose "
        "(both with what is fused into them), a product, a convolution.",
    )


def launch_table(
    network: str, launches: Mapping[Any, list[collections.Counter[str]]]
) -> record.Table:
    rows = [
        [
            f"{method}, {dtype}, seeds: {seeds}",
            default.total(),
            default["kCommandBuffer"],
            default["kConvolution"],
            one_graph.total(),
        ]
        for (method, dtype, seeds), (default, one_graph) in launches.items()
    ]
    flag = "--xla_gpu_enable_command_buffer=+CONVOLUTION"
    return record.Table(
        f"Launches of a step of {network}, batch 128",
        ["method, dtype", "launches", "of them graphs", "of them convolutions", "with the flag"],
        rows,
        f"What the host starts on the GPU; a CUDA graph holds many kernels. The flag is {flag}.",
    )


if __name__ == "__main__":
    main()
