from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from edgeopt.candidates import (
    Candidate,
    CandidateSpec,
    artifact_of,
    fp32_parents,
    gather,
    grid,
    measure_candidates,
    measured_energy_table,
    peak_rss_table,
    prepare_candidate,
    prepare_candidates,
    score,
    with_failures,
)
from edgeopt.data import Split
from edgeopt.model import SmallCNN
from edgeopt.runtimes import TorchSession, load_session
from edgeopt.schema import PRECISIONS_OF_RUNTIME
from edgeopt.training import fit, predict_logits


@pytest.fixture(scope="session")
def trained(striped):
    loader = striped.loader(32, shuffle=True, seed=0)
    return fit(SmallCNN(6, 8, 4), loader, epochs=3, learning_rate=0.01, progress=False).model


@pytest.fixture
def options(trained, striped, tmp_path):
    return {
        "models": {(0, 0.0): trained},
        "calibration_loader": striped.loader(32),
        "images": striped.images[:64].numpy(),
        "labels": striped.labels[:64].numpy(),
        "directory": tmp_path,
    }


@pytest.mark.parametrize(
    ("runtime", "precision"), [(r, p) for r, known in PRECISIONS_OF_RUNTIME.items() for p in known]
)
def test_every_runtime_and_precision_is_what_its_label_says(runtime, precision, options, trained):
    [candidate] = prepare_candidates([CandidateSpec(0.0, precision, runtime)], **options)
    assert candidate.error == ""
    parent = predict_logits(trained, torch.from_numpy(options["images"])).numpy()
    assert candidate.facts["agreement"] == np.mean(parent.argmax(1) == candidate.logits.argmax(1))
    assert candidate.facts["agreement"] >= 0.95
    assert (candidate.facts["int8_mac_share"] > 0.9) == precision.startswith("int8")
    hits = candidate.logits.argmax(1) == options["labels"]
    assert candidate.facts["accuracy"] == pytest.approx(hits.mean())
    assert candidate.artifact.path.stat().st_size == candidate.facts["artifact_bytes"]


def test_facts_of_an_fp32_candidate_are_those_counted_by_hand(options):
    facts = prepare_candidate(CandidateSpec(0.0, "fp32"), **options).facts
    parameters = (6 * 9 + 6) + (8 * 6 * 9 + 8) + (8 * 49 * 4 + 4)
    assert facts["parameters"] == parameters
    assert facts["weight_bytes"] == 4 * parameters
    assert facts["memory_mb"] == 4 * parameters / 2**20
    assert facts["macs"] == 784 * 6 * 9 + 196 * 8 * 6 * 9 + 8 * 49 * 4
    # conv1's output is alive beside ReLU's of the same size: both are the peak.
    assert facts["peak_activation_bytes"] == 4 * 2 * 784 * 6


def test_activations_are_counted_in_the_precision_s_element_size(options):
    specs = grid([0.0], ["fp32", "fp16", "int8", "int8-dynamic"], ["torch", "onnxruntime"])
    candidates = prepare_candidates(specs, **options)
    sizes = {c.spec.precision: c.facts["peak_activation_bytes"] for c in candidates}
    elements = 2 * 784 * 6
    assert sizes == {
        "fp32": 4 * elements,
        "fp16": 2 * elements,
        "int8": elements,
        "int8-dynamic": 4 * elements,
    }


def test_a_failed_candidate_is_a_row_with_its_error_and_the_others_finish(options):
    options["calibration_loader"] = []
    specs = grid([0.0], ["fp32", "int8"], ["torch"])
    fp32, int8 = prepare_candidates(specs, **options)
    assert fp32.error == ""
    assert int8.artifact is None
    assert "the calibration set holds no images" in int8.error


def test_an_executor_gives_the_same_candidates(options):
    specs = grid([0.0], ["fp32", "int8"], ["torch"])
    serial = prepare_candidates(specs, **options)
    with ThreadPoolExecutor(1) as executor:
        pooled = prepare_candidates(specs, executor=executor, **options)
    for one, other in zip(serial, pooled, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


def test_samples_of_every_candidate_and_errors_while_timing(options):
    candidates = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)
    samples = measure_candidates(candidates, options["images"][:1], rounds=2, calls_per_round=3)
    assert samples.groupby("candidate").size().to_dict() == {c.name: 6 for c in candidates}
    wrong = measure_candidates(candidates, options["images"][:2], rounds=1, calls_per_round=1)
    latency = wrong.drop_duplicates("candidate")
    failed = with_failures(candidates, latency)
    assert all("got float32 (2, 1, 28, 28)" in c.error for c in failed)
    assert [c.error for c in candidates] == ["", ""]


def test_a_timed_session_has_to_give_the_scored_logits(options):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    other = replace(good, spec=replace(good.spec, model="other"), logits=good.logits + 1)
    samples = measure_candidates([good, other], options["images"][:1], rounds=1, calls_per_round=2)
    errors = samples.drop_duplicates("candidate", keep="last").set_index("candidate")["error"]
    assert errors[good.name] == ""
    assert "timed, its logits are up to 1 from those that were scored" in errors[other.name]


def test_a_timed_session_has_to_have_the_threads(options, monkeypatch):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    monkeypatch.setattr(TorchSession, "threads", property(lambda self: 7))
    samples = measure_candidates([good], options["images"][:1], rounds=1, calls_per_round=2)
    assert "it computes with 7 threads; 1 were asked for" in samples["error"].iloc[-1]


def test_when_all_failed_their_errors_are_told():
    failed = [Candidate(CandidateSpec(0.0, name), error=f"no {name}") for name in ("fp32", "int8")]
    expected = "no candidate could be prepared: small_cnn-p0-torch-fp32: no fp32; .*int8: no int8"
    with pytest.raises(ValueError, match=expected):
        measure_candidates(failed, np.zeros((1, 1, 28, 28), np.float32))


def test_score_runs_the_artifacts_that_were_prepared(options, striped):
    failed = Candidate(CandidateSpec(0.0, "int8"), error="broken")
    candidates = [*prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options), failed]
    scored = score(candidates, Split(striped.images[:64], striped.labels[:64]))
    assert list(scored) == [candidates[0].name]
    np.testing.assert_array_equal(scored[candidates[0].name], [candidates[0].logits.argmax(1)])


def test_score_has_a_row_per_seed_in_their_order(options, striped):
    [first] = prepare_candidates([CandidateSpec(0.0, "fp32")], **options)
    options["models"] = {(1, 0.0): SmallCNN(6, 8, 4)}
    [second] = prepare_candidates([CandidateSpec(0.0, "fp32", seed=1)], **options)
    with ThreadPoolExecutor(1) as executor:
        scored = score(
            [first, second], Split(striped.images[:64], striped.labels[:64]), executor=executor
        )
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


def test_resident_memory_holds_at_least_what_the_process_held_before(options):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["onnxruntime"]), **options)
    table = peak_rss_table(candidates)
    assert list(table["candidate"]) == [candidates[0].name]
    assert (table["peak_rss_bytes"] > table["idle_rss_bytes"]).all()


def test_measured_energy_is_what_the_counter_gained_per_call(options, tmp_path, monkeypatch):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    image = options["images"][:1]
    nothing = measured_energy_table(candidates, image, powercap_root=tmp_path / "none")
    assert nothing["energy_measured_j"].isna().all()
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "name").write_text("package-0\n")
    counter = package / "energy_uj"
    counter.write_text("0\n")

    class Metered:
        def __call__(self, batch):
            counter.write_text(f"{int(counter.read_text()) + 250}\n")

    monkeypatch.setattr("edgeopt.candidates.load_session", lambda *_, **__: Metered())
    table = measured_energy_table(candidates, image, seconds=0.01, powercap_root=tmp_path)
    assert table["energy_measured_j"].tolist() == pytest.approx([250e-6])


def test_an_artifact_is_found_again_from_its_row(options):
    candidate = prepare_candidate(CandidateSpec(0.0, "fp32"), **options)
    row = pd.Series({"runtime": "torch", "precision": "fp32", **candidate.facts})
    found = artifact_of(row, options["directory"], input_shape=(1, 1, 28, 28))
    assert found == candidate.artifact
    assert load_session(found)(options["images"][:1]).shape == (1, 4)


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
    images, labels = gather(striped.loader(100))
    np.testing.assert_array_equal(images, striped.images.numpy())
    np.testing.assert_array_equal(labels, striped.labels.numpy())
