"""What a student learns from a teacher's logits."""

from __future__ import annotations

import numpy as np
import onnxruntime

from examples.digits import train
from examples.distil import distil
from tests.support.digits import MODEL

SPLIT = train.load_split()


def test_a_student_learns_to_read_without_a_label() -> None:
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(["logits"], {"image": SPLIT.images})[0])
    student = distil.learn(SPLIT.images, logits, epochs=4)
    read = train.predict(student, SPLIT.held_out_images)
    assert train.accuracy(read, SPLIT.held_out_labels) > 0.85
