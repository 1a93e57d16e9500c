"""The bare limit: ONNX Runtime alone in a process. Prints JSON: rows a second and CPU a row, by rows in a batch.

python limit.py FILE THREADS SECONDS ROWS ...
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import onnxruntime


def main() -> None:
    """Execute each batch size over and over for that long."""
    file, threads, seconds, *sizes = sys.argv[1:]
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(threads)
    settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    (told,) = session.get_inputs()
    found = {}
    for rows in map(int, sizes):
        shape = (rows, *told.shape[1:])
        values = np.ones(shape, np.int64 if "int64" in told.type else np.float32)
        session.run(None, {told.name: values})
        done, began, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() < began + float(seconds):
            session.run(None, {told.name: values})
            done += rows
        found[rows] = (done / (time.perf_counter() - began), (time.process_time() - cpu) / done * 1e6)
    print(json.dumps(found))


main()
