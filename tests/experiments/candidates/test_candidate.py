import copy
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from torch.utils.data import DataLoader, TensorDataset

from edgeopt.experiments.candidates import prepared, preparing
from edgeopt.experiments.candidates.candidate import (
    Candidate,
    CandidateSpec,
    artifact_of,
    grid,
    split_logits,
)
from edgeopt.experiments.candidates.preparing import prepare_candidates
from edgeopt.experiments.candidates.seeds import score
from edgeopt.experiments.comparison import fp32_parents, testable_parents
from edgeopt.experiments.sweep import gather
from edgeopt.model.networks import SmallCNN
from edgeopt.model.training import predict_logits
from edgeopt.runtimes.contract import Artifact
from edgeopt.runtimes.export import export_artifact
from edgeopt.runtimes.registry import load_session
from edgeopt.system import process_pool
from tests.artifacts import PRECISIONS_OF_RUNTIME, require_runtime


@pytest.mark.parametrize(
    ("runtime", "precision"), [(r, p) for r, known in PRECISIONS_OF_RUNTIME.items() for p in known]
)
def test_every_runtime_and_precision_is_what_its_label_says(runtime, precision, options, trained):
    require_runtime(runtime, precision)
    [candidate] = prepare_candidates([CandidateSpec(0.0, precision, runtime)], **options)
    assert candidate.error == ""
    parent = predict_logits(trained, options["validation"]["small_cnn"]).numpy()
    assert candidate.facts["agreement"] == np.mean(parent.argmax(1) == candidate.logits.argmax(1))
    assert candidate.facts["agreement"] >= 0.95
    assert (candidate.facts["int8_mac_share"] > 0.9) == precision.startswith("int8")
    hits = candidate.logits.argmax(1) == options["validation"]["small_cnn"].labels.numpy()
    assert candidate.facts["accuracy"] == pytest.approx(hits.mean())
    assert candidate.artifact.path.stat().st_size == candidate.facts["artifact_bytes"]


def test_facts_of_an_fp32_candidate_are_those_counted_by_hand(options):
    [candidate] = prepare_candidates([CandidateSpec(0.0, "fp32")], **options)
    facts = candidate.facts
    parameters = (6 * 9 + 6) + (8 * 6 * 9 + 8) + (8 * 49 * 4 + 4)
    assert facts["parameters"] == parameters
    assert facts["weight_bytes"] == 4 * parameters
    assert facts["memory_mb"] == 4 * parameters / 2**20
    assert facts["macs"] == 784 * 6 * 9 + 196 * 8 * 6 * 9 + 8 * 49 * 4
    # conv1's output, which ReLU writes over, beside the pooled one that is made from it.
    assert facts["peak_activation_bytes"] == 4 * (784 * 6 + 196 * 6)


def test_activations_are_counted_in_the_precision_s_element_size(options):
    specs = grid([0.0], ["fp32", "fp16", "int8", "int8-dynamic"], ["torch", "onnxruntime"])
    candidates = prepare_candidates(specs, **options)
    sizes = {c.spec.precision: c.facts["peak_activation_bytes"] for c in candidates}
    elements = 784 * 6 + 196 * 6
    assert sizes == {
        "fp32": 4 * elements,
        "fp16": 2 * elements,
        "int8": elements,
        "int8-dynamic": 4 * elements,
    }


def test_a_failed_candidate_is_a_row_with_its_error_and_the_others_finish(options):
    options["calibration"] = {"small_cnn": []}
    specs = grid([0.0], ["fp32", "int8"], ["torch"])
    fp32, int8 = prepare_candidates(specs, **options)
    assert fp32.error == ""
    assert int8.artifact is None
    assert "the calibration set holds no images" in int8.error


class Deadly(SmallCNN):
    """Ends any process but the one that it was made in."""

    def __init__(self) -> None:
        super().__init__(6, 8, 4)
        self.home = os.getpid()

    def forward(self, images):
        if os.getpid() != self.home:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().forward(images)


def test_a_candidate_that_ends_its_process_is_a_row_and_the_others_finish(options):
    sound = grid([0.0], ["fp32"], ["torch"])
    deadly = grid([0.0], ["fp32"], ["torch"], seed=1)
    options["models"] = {**options["models"], deadly[0].network: Deadly().eval()}
    with process_pool(2) as pool:
        first, second = prepare_candidates([*deadly, *sound], executor=pool, **options)
    assert first.error == "WorkerDied: its exporter or runtime ended the process"
    assert second.facts["agreement"] == 1


def test_an_executor_gives_the_same_candidates(options):
    specs = grid([0.0], ["fp32", "int8"], ["torch"])
    serial = prepare_candidates(specs, **options)
    with ThreadPoolExecutor(1) as executor:
        pooled = prepare_candidates(specs, executor=executor, **options)
    for one, other in zip(serial, pooled, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_score_runs_the_artifacts_that_were_prepared(options, striped):
    failed = Candidate(CandidateSpec(0.0, "int8"), error="broken")
    candidates = [*prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options), failed]
    scored = score(candidates, {"small_cnn": striped.first(64)})
    assert list(scored) == [candidates[0].name]
    np.testing.assert_array_equal(scored[candidates[0].name], [candidates[0].logits.argmax(1)])


def test_score_has_a_row_per_seed_in_their_order(options, striped):
    [first] = prepare_candidates([CandidateSpec(0.0, "fp32")], **options)
    options["models"] = {("small_cnn", 1, 0.0): SmallCNN(6, 8, 4)}
    [second] = prepare_candidates([CandidateSpec(0.0, "fp32", seed=1)], **options)
    with ThreadPoolExecutor(1) as executor:
        scored = score([first, second], {"small_cnn": striped.first(64)}, executor=executor)
    expected = [first.logits.argmax(1), second.logits.argmax(1)]
    np.testing.assert_array_equal(scored[first.name], expected)


def test_losses_are_counted_from_the_same_network_in_fp32():
    specs = grid([0.0, 0.5], ["fp32", "int8"], ["torch", "onnxruntime"], recipe="fine-tuned")
    candidates = [Candidate(spec) for spec in specs]
    assert fp32_parents(candidates) == {
        "small_cnn-p0-torch-int8": "small_cnn-p0-torch-fp32",
        "small_cnn-p0-onnxruntime-fp32": "small_cnn-p0-torch-fp32",
        "small_cnn-p0-onnxruntime-int8": "small_cnn-p0-torch-fp32",
        "small_cnn-p50-torch-fp32": "small_cnn-p0-torch-fp32",
        "small_cnn-p50-torch-int8": "small_cnn-p50-torch-fp32",
        "small_cnn-p50-onnxruntime-fp32": "small_cnn-p50-torch-fp32",
        "small_cnn-p50-onnxruntime-int8": "small_cnn-p50-torch-fp32",
    }
    failed = [replace(c, error="broken") if c.spec.runtime == "torch" else c for c in candidates]
    assert fp32_parents(failed)["small_cnn-p0-onnxruntime-int8"] == "small_cnn-p0-onnxruntime-fp32"
    assert "small_cnn-p0-onnxruntime-fp32" not in fp32_parents(failed)


testable_parents.__test__ = False  # pytest takes the name for a test


def stored(spec, *, file=None, error=""):
    """Candidate of an artifact with the contents ``file``, its own when omitted."""
    artifact = Artifact(
        path=None,
        runtime=spec.runtime,
        precision=spec.precision,
        input_shape=(1, 1, 28, 28),
        sha256=file or spec.name,
        size_bytes=1,
    )
    return Candidate(spec, artifact=artifact, error=error)


def onnx_candidates():
    """Candidates of three runtimes, of which the two that read ONNX share their files."""
    runtimes = ["torch", "onnxruntime", "openvino"]
    specs = grid([0.0, 0.5], ["fp32", "int8"], runtimes, recipe="fine-tuned")
    onnx = "{0.pruning_level}-{0.precision}"
    return [stored(s, file=None if s.runtime == "torch" else onnx.format(s)) for s in specs]


def test_testable_parents_leave_out_what_cannot_differ():
    assert testable_parents(onnx_candidates()) == {
        "small_cnn-p0-torch-int8": "small_cnn-p0-torch-fp32",
        "small_cnn-p0-onnxruntime-int8": "small_cnn-p0-torch-fp32",
        "small_cnn-p50-torch-fp32": "small_cnn-p0-torch-fp32",
        "small_cnn-p50-torch-int8": "small_cnn-p50-torch-fp32",
        "small_cnn-p50-onnxruntime-int8": "small_cnn-p50-torch-fp32",
    }


def test_testable_parents_take_the_second_runtime_of_a_file_when_the_first_failed():
    failed = [
        replace(c, error="not timed") if "onnxruntime-int8" in c.name else c
        for c in onnx_candidates()
    ]
    assert "small_cnn-p0-openvino-int8" in testable_parents(failed)
    assert "small_cnn-p0-onnxruntime-int8" not in testable_parents(failed)


def test_testable_parents_keep_a_file_that_is_run_in_another_precision():
    fp32, bf16 = (CandidateSpec(0.0, precision, "openvino") for precision in ("fp32", "bf16"))
    own = [stored(fp32, file="x"), stored(bf16, file="x")]
    assert testable_parents(own) == {bf16.name: fp32.name}


def test_an_artifact_is_found_again_from_its_row(options):
    [candidate] = prepare_candidates([CandidateSpec(0.0, "fp32")], **options)
    row = pd.Series({"runtime": "torch", "precision": "fp32", **candidate.facts})
    found = artifact_of(row, options["directory"], input_shape=(1, 1, 28, 28))
    assert found == candidate.artifact
    assert load_session(found)(options["validation"]["small_cnn"].take(1).numpy()).shape == (1, 4)


def test_grid_is_what_the_runtimes_offer():
    names = [s.name for s in grid([0.0, 0.5], ["fp32", "bf16"], ["torch", "openvino"])]
    assert names == [
        "small_cnn-p0-torch-fp32",
        "small_cnn-p0-openvino-fp32",
        "small_cnn-p0-openvino-bf16",
        "small_cnn-p50-torch-fp32",
        "small_cnn-p50-openvino-fp32",
        "small_cnn-p50-openvino-bf16",
    ]
    recipes = [s.recipe for s in grid([0.0, 0.5], ["fp32"], ["torch"], recipe="fine-tuned")]
    assert recipes == ["baseline", "fine-tuned"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], ["int4"], ["torch"]), "unknown precision 'int4'; allowed: fp32"),
        (([0.0], ["fp32"], ["tflite"]), "unknown runtime 'tflite'; allowed: torch"),
        (([0.0], ["bf16"], ["torch"]), r"none of the runtimes \['torch'\] runs any of \['bf16'\]"),
        (([], ["fp32"], ["torch"]), "no candidate"),
    ],
)
def test_an_impossible_grid_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        grid(*arguments)


def test_a_runtime_without_the_precision_is_named():
    with pytest.raises(ValueError, match="torch does not run bf16; allowed: fp32, fp16, int8"):
        CandidateSpec(0.0, "bf16", "torch")


def test_gather_keeps_the_order(striped):
    foreign = DataLoader(TensorDataset(striped.take(250), striped.labels[:250]), batch_size=100)
    gathered = gather(foreign)
    assert gathered.take(250).equal(striped.take(250))
    assert gathered.labels.equal(striped.labels[:250])
    assert gather(striped.loader(100)) is striped


def test_split_logits_are_those_of_all_images_at_once(trained, striped, tmp_path):
    artifact = export_artifact(
        trained, tmp_path / "x", runtime="onnxruntime", precision="fp32", input_shape=(3, 1, 28, 28)
    )
    session = load_session(artifact)
    whole = session.score(striped.take(len(striped)).numpy())
    # 192 and 64 images, neither a multiple of three at the end
    np.testing.assert_array_equal(split_logits(session, striped), whole)


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "prepared"


def test_what_was_prepared_before_is_read_from_the_store(options, store, tmp_path, monkeypatch):
    specs = grid([0.0], ["fp32", "int8"], ["torch", "onnxruntime"])
    first = prepare_candidates(specs, store=store, **options)
    monkeypatch.delattr(preparing, "export_artifact")
    options["directory"] = tmp_path / "elsewhere"
    second = prepare_candidates(specs, store=store, **options)
    for made, kept in zip(first, second, strict=True):
        assert made.facts == kept.facts
        np.testing.assert_array_equal(made.logits, kept.logits)
        assert kept.artifact.path.parent == tmp_path / "elsewhere" / "seed0"
        assert kept.artifact == replace(made.artifact, path=kept.artifact.path)
        found = split_logits(load_session(kept.artifact), options["validation"]["small_cnn"])
        np.testing.assert_array_equal(found, made.logits)


@pytest.mark.parametrize("change", ["weights", "images", "batches", "precision", "code"])
def test_the_store_knows_what_a_preparation_depends_on(
    change, options, store, trained, monkeypatch
):
    [spec] = grid([0.0], ["fp32"], ["torch"])
    prepare_candidates([spec], store=store, **options)
    if change == "weights":
        network = copy.deepcopy(trained)
        network.classifier.bias.data += 1
        options["models"] = {spec.network: network}
    elif change == "images":
        images = options["validation"]["small_cnn"]
        options["validation"] = {"small_cnn": images.first(len(images) - 1)}
    elif change == "batches":
        calibration = options["calibration"]["small_cnn"]
        options["calibration"] = {"small_cnn": [*calibration][:3]}
    elif change == "precision":
        spec = replace(spec, precision="fp16")
    else:
        monkeypatch.setattr(prepared, "package_sha256", lambda: "other code")
    prepare_candidates([spec], store=store, **options)
    assert len(list(store.iterdir())) == 2


def test_a_failed_candidate_is_tried_again(options, store):
    calibration = options.pop("calibration")
    [spec] = grid([0.0], ["int8"], ["torch"])
    empty = {"small_cnn": calibration["small_cnn"].dataset.first(1).loader(1)}
    [failed] = prepare_candidates([spec], store=store, calibration=empty, **options)
    assert failed.error
    assert not store.exists()


def test_a_layer_in_float_between_integers_leaves_the_others_int8(options):
    require_runtime("onnxruntime", "int8")
    spec = CandidateSpec(0.0, "int8", "onnxruntime", float_layers=("conv1",))
    [candidate] = prepare_candidates([spec], **options)
    conv1, conv2, classifier = 784 * 6 * 9, 196 * 8 * 6 * 9, 8 * 49 * 4
    share = (conv2 + classifier) / (conv1 + conv2 + classifier)
    assert candidate.facts["int8_mac_share"] == pytest.approx(share)
    assert candidate.spec.precision == "int8-mixed"
    assert candidate.name == f"small_cnn-p0-onnxruntime-int8-mixed-{int(100 * share)}-float-conv1"


def test_integers_suit_this_machine_when_no_scheme_is_given(options, monkeypatch):
    seen = []
    monkeypatch.setattr("edgeopt.system.int8.host_facts", lambda: {"isa": ["avx2"]})
    monkeypatch.setattr(
        "edgeopt.experiments.candidates.preparing.export_artifact",
        lambda *_, options, **__: seen.append(options.scheme.name),
    )
    prepare_candidates([CandidateSpec(0.0, "int8", runtime="torch")], **options)
    assert seen == ["U8S8 reduced range"]  # full range would saturate there


def test_layers_in_float_between_integers_are_of_onnx_files(options):
    [candidate] = prepare_candidates(
        [CandidateSpec(0.0, "int8", float_layers=("conv1",))], **options
    )
    assert "float_alone: int8 as ONNX" in candidate.error
