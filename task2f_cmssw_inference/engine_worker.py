"""Run a model in whatever ONNX Runtime this interpreter has; a program for CPython 3.7 and newer.

    python engine_worker.py model.onnx input.npz output.npz

``input.npz``: arrays of frames by name, scored as they are; ``frames_per_event`` (k,) and
``events`` for the timing. ``output.npz``: scores under the same names, and the timing as JSON in
``report``. It imports nothing but NumPy and ONNX Runtime: the engines of old CMSSW releases exist
only for interpreters that the rest of this project does not run on.
"""

import json
import platform
import sys
import time

import numpy as np
import onnxruntime

SETTINGS = ("frames_per_event", "events", "sessions")


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # as CMSSW does: it runs one event a thread
    options.inter_op_num_threads = 1
    if onnxruntime.__version__ >= "1.9":  # must be named there, is unknown before
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnxruntime.InferenceSession(path, options)


def milliseconds(function, repetitions):
    """Wall-clock milliseconds of every single call."""
    found = []
    for number in range(repetitions):
        start = time.perf_counter()
        function(number)
        found.append(1e3 * (time.perf_counter() - start))
    return found


def time_events(path, session, frames, per_event, events, sessions):
    """Milliseconds an event with one session for all, and with a new session for each."""
    name = session.get_inputs()[0].name
    batches = [
        frames[np.arange(i * per_event, (i + 1) * per_event) % len(frames)] for i in range(events)
    ]

    def infer(number):
        session.run(None, {name: batches[number]})

    def open_and_infer(number):
        open_session(path).run(None, {name: batches[number]})

    milliseconds(infer, min(50, events))  # warm-up: the first runs allocate
    return {
        "one_session": milliseconds(infer, events),
        "session_per_event": milliseconds(open_and_infer, min(sessions, events)),
    }


def main(model, source, target):
    stored = dict(np.load(source))
    session = open_session(model)
    name = session.get_inputs()[0].name
    frames = {key: value for key, value in stored.items() if key not in SETTINGS}
    scores = {key: session.run(None, {name: value})[0] for key, value in frames.items()}
    largest = max(frames.values(), key=len)
    timing = {
        str(int(k)): time_events(
            model, session, largest, int(k), int(stored["events"]), int(stored["sessions"])
        )
        for k in stored["frames_per_event"]
    }
    report = {
        "engine": onnxruntime.__version__,
        "python": platform.python_version(),
        "timing": timing,
    }
    np.savez(target, report=json.dumps(report), **scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
