"""How the launches of a GPU program are counted, on a text like XLA's."""

import gpu_kernels

THUNKS = """\
000: kCommandBuffer [source       | next=001 (1)]
    001: kCopy         [source       | sink        ] kCopy
002: kWhile         [prev=000 (1) | next=000 (1)]
condition:
    003: kCustomKernel [source | sink] loop_and_fusion grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source       | next=084 (1)]
        004: kCustomKernel [source        | sink         ] loop_multiply_fusion grid: [1, 1, 1]
        005: kCopy         [source        | sink         ] kCopy
    006: kConvolution   [prev=000 (1) | next=000 (1)] kConvolution
    007: kConvolution   [prev=006 (1) | next=000 (1)] kConvolution
    000: kCommandBuffer [prev=007 (1) | sink        ]
        008: kCustomKernel [source        | sink         ] input_reduce_fusion grid: [8, 1, 1]
000: kCommandBuffer [prev=002 (1) | sink        ]
    009: kCopy [source        | sink          ] kCopy
"""


def test_what_a_graph_holds_and_what_follows_the_loop_are_no_launches_of_a_step() -> None:
    counts = gpu_kernels.launches_of_loop(THUNKS)
    assert +counts == {"kCommandBuffer": 2, "kConvolution": 2}
    assert counts.total() == 4


def test_a_program_without_a_loop_launches_nothing_in_it() -> None:
    assert gpu_kernels.launches_of_loop("000: kCopy [source | sink] kCopy\n").total() == 0
