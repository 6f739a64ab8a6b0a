"""Run a model in whatever ONNX Runtime this interpreter has; a program for CPython 3.7 and newer.

    python engine_worker.py model.onnx input.npz output.npz

``input.npz``: arrays of frames by name, scored as they are; ``events`` and ``sessions`` for the
timing of the array ``pairs``, two frames per event. ``output.npz``: scores under the same names,
and engine and timing as JSON in ``report``. It imports nothing but NumPy and ONNX Runtime: the
engines of old CMSSW releases exist only for interpreters that the rest of this project does not run
on.
"""

import json
import platform
import sys
import time

import numpy as np
import onnxruntime

SETTINGS = ("events", "sessions")


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


def time_events(path, session, pairs, events, sessions):
    """Milliseconds per event of two frames, with one session for all and with one for each."""
    name = session.get_inputs()[0].name
    batches = [pairs[np.arange(2 * i, 2 * i + 2) % len(pairs)] for i in range(events)]

    def infer(number):
        session.run(None, {name: batches[number]})

    def open_and_infer(number):
        open_session(path).run(None, {name: batches[number]})

    milliseconds(infer, min(50, events))  # warm-up: the first runs allocate
    return {
        "session kept": milliseconds(infer, events),
        "session per event": milliseconds(open_and_infer, min(sessions, events)),
    }


def main(model, source, target):
    stored = dict(np.load(source))
    session = open_session(model)
    name = session.get_inputs()[0].name
    frames = {key: value for key, value in stored.items() if key not in SETTINGS}
    scores = {key: session.run(None, {name: value})[0] for key, value in frames.items()}
    events, sessions = int(stored["events"]), int(stored["sessions"])
    timing = time_events(model, session, frames["pairs"], events, sessions) if events else {}
    report = {
        "engine": onnxruntime.__version__,
        "python": platform.python_version(),
        "timing": timing,
    }
    np.savez(target, report=json.dumps(report), **scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
