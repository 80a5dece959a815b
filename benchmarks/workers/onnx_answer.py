"""Worker of `sides`: ONNX Runtime answers.

python benchmarks/workers/onnx_answer.py FILE IMAGES SECONDS
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import answering
import numpy as np
import onnxruntime


def main(file: str, images: str, seconds: str) -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count() or 1  # as the others have it
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    batch = {"images": np.load(images)}
    answering.serve(
        lambda: session.run(None, batch)[0],
        f"ONNX Runtime {onnxruntime.__version__}",
        float(seconds),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
