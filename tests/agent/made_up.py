"""Plans of tiny artifacts, each a NumPy file of weights, and sessions that behave or do not."""

import hashlib
import io
import json
import os
import signal
import sys
import weakref
from contextlib import contextmanager

import numpy as np

from edgeopt.agent.session import Session

# Five images with one white pixel each; the even pixels speak for class 0, the odd ones for 1.
PIXELS = 255 * np.eye(4, dtype=np.uint8)[[0, 1, 2, 3, 0]].reshape(5, 1, 2, 2)
WEIGHTS = np.array([[1, -1], [-1, 1], [1, -1], [-1, 1]], np.float32)
CLASSES = [0, 1, 0, 1, 0]


class Product(Session):
    """Images times weights, in NumPy."""

    threads = 0

    def __init__(self, artifact, *, threads):
        super().__init__(artifact)
        self.threads, self.weights = threads, np.load(artifact.path)

    @contextmanager
    def _ready(self, images):
        yield lambda: images.reshape(len(images), -1) @ self.weights

    def _logits(self, returned):
        return returned


class Restless(Product):
    """Computes with more threads than it was asked for."""

    def __init__(self, artifact, *, threads):
        super().__init__(artifact, threads=threads + 2)


class Drifting(Product):
    """Other logits when it is timed than when it is scored."""

    def _score(self, images):
        return super()._score(images) + 1


class Raising(Product):
    """Can be loaded, but not called."""

    def _logits(self, returned):
        raise RuntimeError("operator Foo is not supported")


class Counted(Product):
    """Notes how many of its kind there are whenever one more is loaded."""

    alive, counts = weakref.WeakSet(), []

    def __init__(self, artifact, *, threads):
        super().__init__(artifact, threads=threads)
        self.alive.add(self)
        self.counts.append(len(self.alive))


class Deadly(Product):
    """Ends its process when it is called."""

    def _logits(self, returned):
        os.kill(os.getpid(), signal.SIGKILL)


class DeadlyOnce(Product):
    """Ends its process when it is called for the first time ever."""

    def _logits(self, returned):
        mark = self.artifact.path.with_suffix(".died")
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return returned


class Exiting(Product):
    """Ends its process without a word."""

    def _logits(self, returned):
        os._exit(7)


class Complaining(Product):
    """Says why it ends its process."""

    def _logits(self, returned):
        os.write(2, b"loading\nillegal instruction\n")
        os._exit(1)


class Forgetful(Product):
    """Ends the process that reads its memory, and no other."""

    def _logits(self, returned):
        return os._exit(7) if "memory" in sys.argv else returned


class Holding(Product):
    """Holds 64 MiB, and talks."""

    def __init__(self, artifact, *, threads):
        super().__init__(artifact, threads=threads)
        self.held = b"1" * 2**26
        sys.stdout.write("a runtime that talks\n")


def write_file(folder, array):
    """Write an array below ``files/`` under its SHA-256, and return the name."""
    content = io.BytesIO()
    np.save(content, array)
    name = hashlib.sha256(content.getvalue()).hexdigest() + ".npy"
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files" / name).write_bytes(content.getvalue())
    return name


def entry(folder, name, session="Product", **changes):
    """Describe an artifact as the plan does."""
    file = write_file(folder, WEIGHTS)
    return {
        "name": name,
        "file": file,
        "size_bytes": (folder / "files" / file).stat().st_size,
        "runtime": "made up",
        "precision": "fp32",
        "input_shape": [2, 1, 2, 2],
        "place": f"tests.agent.made_up:{session}",
        "images": "shown",
        "threads": 1,
        "score": True,
        "logits": "",
        **changes,
    }


def write_plan(folder, artifacts, **changes):
    """Write a plan of three rounds, with all its files."""
    converted = {"channels": 1, "mean": None, "std": None}
    values = {
        "format": 1,
        "rounds": 3,
        "calls_per_round": 2,
        "warmup_calls": 1,
        "seed": 0,
        "memory": False,
        "keep_compiled": False,
        "packages": [],
        "images": {"shown": {"file": write_file(folder, PIXELS), "converted": converted}},
        "artifacts": artifacts,
        **changes,
    }
    (folder / "plan.json").write_text(json.dumps(values))
    return folder
