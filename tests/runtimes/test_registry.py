import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from edgeopt.runtimes import registry
from edgeopt.runtimes.contract import Artifact, ArtifactError
from edgeopt.runtimes.registry import RUNTIMES, load_session
from edgeopt.system.upstream import RuntimeUnavailable
from tests.artifacts import CLASSES, TARGETS, artifact_of, require_runtime
from tests.conftest import striped_split

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def images():
    return striped_split(10, seed=5).take(10).numpy()


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_a_session_says_what_it_is_and_returns_fresh_logits(runtime, precision, images):
    session = load_session(artifact_of(runtime, precision))
    first = session(images[:1])
    kept = first.copy()
    second = session(images[1:2])
    assert (session.artifact.runtime, session.artifact.precision) == (runtime, precision)
    assert session.input_shape == (1, 1, 28, 28)
    assert first.dtype == np.float32
    assert first.shape == (1, CLASSES)
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_read_only_and_strided_images_are_taken_as_they_are(runtime, images):
    session = load_session(artifact_of(runtime, "fp32"))
    expected = session(images[:1])
    read_only = images[:1].copy()
    read_only.setflags(write=False)
    strided = np.ascontiguousarray(images[:1].transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    assert np.array_equal(session(read_only), expected)
    assert not strided.flags.c_contiguous
    assert np.array_equal(session(strided), expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "wrong",
    [np.zeros((2, 1, 28, 28), np.float32), np.zeros((1, 1, 28, 28)), np.zeros((1, 784), np.uint8)],
    ids=["batch", "float64", "flat"],
)
def test_another_shape_or_dtype_is_refused(runtime, wrong):
    session = load_session(artifact_of(runtime, "fp32"))
    message = (
        rf"artifact cnn.* \({runtime} fp32\) takes float32 \(1, 1, 28, 28\), got {wrong.dtype}"
    )
    with pytest.raises(ValueError, match=message):
        session(wrong)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("threads", range(1, min(CORES, 2) + 1))
def test_the_runtime_reports_the_threads_it_was_given(runtime, threads, images):
    session = load_session(artifact_of(runtime, "fp32"), threads=threads)
    session(images[:1])
    assert session.threads == threads


def test_torch_gets_its_own_thread_count_back(images):
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, CORES))
    try:
        load_session(artifact_of("torch", "fp32"), threads=1)(images[:1])
        assert torch.get_num_threads() == CORES
    finally:
        torch.set_num_threads(before)


LOGITS_OF = {
    "torch": lambda native: native.float().numpy(),
    "onnxruntime": lambda native: native[0],
    "executorch": lambda native: native[0].numpy(),
    "openvino": lambda native: native[0],
}


@pytest.mark.parametrize(("runtime", "precision"), TARGETS)
def test_bound_calls_give_the_logits_of_the_session(runtime, precision, images):
    session = load_session(artifact_of(runtime, precision))
    expected = session(images[:1])
    session(images[1:2])
    with session.bound(images[:1]) as call:
        found = [LOGITS_OF[runtime](call()).copy() for _ in range(2)]
    assert np.array_equal(found, [expected, expected])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_bound_calls_enter_no_function_of_this_package(runtime, images):
    session, entered = load_session(artifact_of(runtime, "fp32")), set()

    def note(frame, event, _):
        if event == "call":
            entered.add(Path(frame.f_code.co_filename).parent)

    with session.bound(images[:1]) as call:
        sys.setprofile(note)
        try:
            call()
        finally:
            sys.setprofile(None)
    assert Path(registry.__file__).parent not in entered


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 1, 28, 28), np.float32), np.zeros((1, 1, 28, 28))], ids=["batch", "f64"]
)
def test_bound_refuses_another_shape_or_dtype(runtime, wrong):
    session = load_session(artifact_of(runtime, "fp32"))
    with (
        pytest.raises(ValueError, match=rf"takes float32 \(1, 1, 28, 28\), got {wrong.dtype}"),
        session.bound(wrong),
    ):
        pass


@pytest.mark.skipif(CORES < 2, reason="one core has one thread count")
@pytest.mark.parametrize("fails", [False, True])
def test_bound_gives_torch_its_threads_back(fails, images):
    session = load_session(artifact_of("torch", "fp32"))
    before, inside = torch.get_num_threads(), []
    torch.set_num_threads(CORES)
    try:
        with suppress(ZeroDivisionError), session.bound(images[:1]):
            inside.append(torch.get_num_threads())
            if fails:
                raise ZeroDivisionError
        assert (inside, torch.get_num_threads()) == ([1], CORES)
    finally:
        torch.set_num_threads(before)


CPU_TIME_PER_THREAD = """
import json, pathlib, sys, time
import numpy as np
from edgeopt.runtimes import Artifact, load_session

def cpu_times():
    tasks = pathlib.Path("/proc/self/task").iterdir()
    return {task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}

fields, threads = json.loads(sys.argv[1])
for artifact in fields:
    artifact["path"] = pathlib.Path(artifact["path"])
    artifact["input_shape"] = tuple(artifact["input_shape"])
    session = load_session(Artifact(**artifact), threads=threads)
    batch = np.zeros(session.input_shape, np.float32)
    session(batch)
    found = 0
    for window in range(20):
        before, start = cpu_times(), time.process_time()
        while time.process_time() - start < 0.2:
            session(batch)
        used = [spent - before.get(task, 0) for task, spent in cpu_times().items()]
        if window:
            found = max(found, sum(spent > 0.003 * sum(used) for spent in used))
        if found >= threads:
            break
    print(json.dumps([artifact["runtime"], found]))
"""


@pytest.mark.parametrize("threads", range(1, min(CORES, 2) + 1))
def test_as_many_threads_compute_as_were_asked_for(threads):
    """By the kernel's CPU time per thread, in the window in which most of them computed.

    On a busy machine OpenVINO's caller does nearly all the work of a helper that is not awake
    yet, so that a helper counts from 0.3% of the time; threads that were not asked for have none.
    """
    artifacts = [dataclasses.asdict(artifact_of(runtime, "fp32", 4)) for runtime in RUNTIMES]
    child = subprocess.run(
        [sys.executable, "-c", CPU_TIME_PER_THREAD, json.dumps([artifacts, threads], default=str)],
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(json.loads(line) for line in child.stdout.splitlines() if line.startswith("["))
    assert found == dict.fromkeys(RUNTIMES, threads)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_batches_are_filled_up_and_cut_off_again(runtime, images):
    one = load_session(artifact_of(runtime, "fp32")).score(images)
    four = load_session(artifact_of(runtime, "fp32", 4)).score(images)
    assert four.shape == (10, CLASSES)
    assert np.abs(four - one).max() <= 1e-4


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_scores_of_torch_in_large_batches_are_those_of_its_own_size(precision, images):
    session = load_session(artifact_of("torch", precision))
    many = np.concatenate([images] * 7)  # more than one large batch
    alone = np.concatenate([session(image[None]) for image in many])
    gap = np.abs(session.score(many) - alone).max()
    assert gap <= {"fp32": 1e-5, "fp16": 1e-2, "int8": 0.0}[precision]


def test_filling_up_leaves_dynamic_ranges_alone(images):
    session = load_session(artifact_of("onnxruntime", "int8-dynamic", 4))
    last = np.repeat(images[-1:], 4, axis=0)
    assert np.array_equal(session.score(images[-1:]), session(last)[:1])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_of_another_kind_are_not_scored(runtime, images):
    session = load_session(artifact_of(runtime, "fp32"))
    with pytest.raises(ValueError, match=r"takes float32 \(10, 1, 28, 28\), got float64"):
        session.score(images.astype(np.float64))
    with pytest.raises(ValueError, match=r"got float32 \(10, 1, 27, 28\)"):
        session.score(images[:, :, 1:])


def test_no_images_is_an_error(images):
    with pytest.raises(ValueError, match="no images to run; allowed: 1 or more"):
        load_session(artifact_of("onnxruntime", "fp32")).score(images[:0])


@pytest.mark.parametrize("threads", [0, -1, CORES + 1])
def test_thread_counts_that_the_machine_has_not(threads):
    message = rf"artifact .* \(onnxruntime fp32\): threads is {threads}; allowed: 1 to {CORES}"
    with pytest.raises(ValueError, match=message):
        load_session(artifact_of("onnxruntime", "fp32"), threads=threads)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_flipped_bit_is_found(runtime, tmp_path):
    artifact = artifact_of(runtime, "fp32")
    content = bytearray(artifact.path.read_bytes())
    content[len(content) // 2] ^= 1
    broken = dataclasses.replace(artifact, path=tmp_path / artifact.path.name)
    broken.path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"\({runtime} fp32\) is corrupt: its SHA-256 is "):
        load_session(broken)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_that_the_runtime_rejects_is_named(runtime, tmp_path):
    require_runtime(runtime)
    content = b"not a model" * 100
    (tmp_path / "m.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    artifact = Artifact(tmp_path / "m.bin", runtime, "fp32", (1, 1, 28, 28), digest, len(content))
    with pytest.raises(
        ArtifactError, match=rf"artifact m\.bin \({runtime} fp32\) cannot be loaded"
    ):
        load_session(artifact)


def test_a_missing_file_is_named(tmp_path):
    artifact = dataclasses.replace(artifact_of("torch", "fp32"), path=tmp_path / "gone.pt")
    with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
        load_session(artifact)


@pytest.mark.parametrize(
    ("runtime", "module"),
    [("executorch", "executorch.extension.pybindings._C"), ("openvino", "openvino")],
)
def test_a_runtime_that_is_not_installed_says_so(runtime, module, monkeypatch):
    artifact = artifact_of(runtime, "fp32")
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"edgeopt.runtimes.sessions.{runtime}", raising=False)
    message = rf"{runtime} is not installed: pip install edgeopt\[{runtime}\]"
    with pytest.raises(RuntimeUnavailable, match=message):
        load_session(artifact)


def test_bf16_needs_a_cpu_that_has_it(monkeypatch):
    artifact = artifact_of("openvino", "bf16")
    monkeypatch.setattr("openvino.Core.get_property", lambda *_: ["FP32", "INT8"])
    with pytest.raises(RuntimeUnavailable, match=r"\(openvino bf16\): this CPU has no bf16"):
        load_session(artifact)
