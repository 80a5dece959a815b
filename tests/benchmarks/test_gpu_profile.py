"""What the profile of a GPU's step makes of the kernels that a profiler recorded."""

import dataclasses

import gpu_profile
import pytest


@dataclasses.dataclass
class Event:
    name: str
    start_ns: float
    duration_ns: float


@dataclasses.dataclass
class Line:
    name: str
    events: list


@dataclasses.dataclass
class Plane:
    name: str
    lines: list


@dataclasses.dataclass
class Data:
    planes: list


def test_kernels_are_those_of_the_device_on_its_streams():
    stream = Line("Stream #13(Compute)", [Event("loop_add_fusion", 5.0, 2.0)])
    device = Plane("/device:GPU:0", [stream, Line("XLA Ops", [Event("add", 5.0, 2.0)])])
    host = Plane("/host:CPU", [Line("Stream #1", [Event("python", 0.0, 9.0)])])
    found = list(gpu_profile.kernels(Data([host, device])))
    assert found == [("loop_add_fusion", 5.0, 7.0)]


def test_time_at_work_counts_what_runs_side_by_side_once():
    assert gpu_profile.busy([(5.0, 7.0), (0.0, 3.0), (2.0, 4.0), (2.5, 3.5)]) == 6.0
    assert gpu_profile.busy([]) == 0.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions"),
        ("void cudnn::engines_precompiled::nhwcToNchwKernel", "convolutions"),
        ("gemm_fusion_dot_125", "matrix products"),
        ("nvjet_tst_64x8_64x16", "matrix products"),
        ("input_add_reduce_fusion_12", "reductions"),
        ("input_transpose_fusion_2", "transposes and copies"),
        ("MemcpyD2D", "transposes and copies"),
        ("loop_multiply_fusion", "other loops"),
    ],
)
def test_a_kernel_has_a_kind(name, kind):
    assert gpu_profile.kind_of(name) == kind


def test_a_step_is_told_in_words():
    names = {"loop_a": {"ms": 0.4, "count": 2.0}, "sm90_xmma": {"ms": 0.8, "count": 1.0}}
    result = {"step_ms": 2.0, "busy_ms": 1.0, "kernels": 3.0, "names": names}
    assert gpu_profile.answer("one", result) == (
        "one: the card is at work for 50% of a step of 2.00 ms, longest with convolutions (0.80 ms)"
    )
    (row,) = gpu_profile.times_table({"one": result}).rows
    assert row == ["one", 2.0, 1.0, 3, 0.8, 0.0, 0.0, 0.0, 0.4]
