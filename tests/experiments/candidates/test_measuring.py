from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from edgeopt.experiments.candidates.candidate import Candidate, CandidateSpec, grid
from edgeopt.experiments.candidates.measuring import (
    measure_candidates,
    measured_energy_table,
    with_failures,
)
from edgeopt.experiments.candidates.preparing import prepare_candidates


def measured(candidates, options, **counts):
    counts = {"rounds": 1, "calls_per_round": 2, **counts}
    return measure_candidates(candidates, options["validation"], **counts)


def test_samples_of_every_candidate_and_errors_while_timing(options):
    candidates = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)
    found = measured(candidates, options, rounds=2, calls_per_round=3)
    samples = found.measured.samples
    assert samples.groupby("candidate").size().to_dict() == {c.name: 6 for c in candidates}
    assert samples["latency_ms"].gt(0).all()
    assert found.measured.conditions["round"].tolist() == [0, 1]


def test_a_timed_session_has_to_give_the_scored_logits(options):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    other = replace(good, spec=replace(good.spec, precision="fp16"), logits=good.logits + 1)
    errors = measured([good, other], options).errors
    assert [*errors] == [other.name]
    assert "timed, its logits are up to 1 from those that were scored" in errors[other.name]


def test_a_file_that_is_gone_is_refused_before_anything_is_timed(options):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    good.artifact.path.unlink()
    with pytest.raises(FileNotFoundError, match=good.artifact.path.name):
        measured([good], options)


def test_when_all_failed_their_errors_are_told(options):
    failed = [Candidate(CandidateSpec(0.0, name), error=f"no {name}") for name in ("fp32", "int8")]
    expected = "no candidate could be prepared: small_cnn-p0-torch-fp32: no fp32; .*int8: no int8"
    with pytest.raises(ValueError, match=expected):
        measured(failed, options)


def test_memory_grows_by_at_least_the_runtimes_library(options):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["onnxruntime"]), **options)
    table = measured(candidates, options).memory
    assert list(table["candidate"]) == [candidates[0].name]
    grown = (table["peak_rss_bytes"] - table["idle_rss_bytes"]).item()
    libraries = [*Path(onnxruntime.__file__).parent.glob("capi/*.so*")]
    # Of the library's text about half is touched; its file is an upper bound of what is mapped.
    assert 0.3 < grown / sum(path.stat().st_size for path in libraries) < 3


def test_measured_energy_is_what_the_counter_gained_per_call(options, tmp_path, monkeypatch):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    image = {m: s.take(1).numpy() for m, s in options["validation"].items()}
    monkeypatch.setattr("edgeopt.metrics.energy.POWERCAP_ROOT", tmp_path)
    nothing = measured_energy_table(candidates, image)
    assert nothing["energy_measured_j"].isna().all()
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "name").write_text("package-0\n")
    counter = package / "energy_uj"
    counter.write_text("0\n")
    (package / "max_energy_range_uj").write_text("262143328850\n")

    class Metered:
        @contextmanager
        def bound(self, batch):
            yield lambda: counter.write_text(f"{int(counter.read_text()) + 250}\n")

    monkeypatch.setattr(
        "edgeopt.experiments.candidates.measuring.load_session", lambda *_, **__: Metered()
    )
    table = measured_energy_table(candidates, image, seconds=0.01)
    assert table["energy_measured_j"].tolist() == pytest.approx([250e-6])


def test_a_runtime_that_cannot_run_is_a_failed_row_and_the_others_are_timed(options):
    good, bad = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)
    bad = replace(bad, artifact=replace(bad.artifact, input_shape=(1, 1, 5, 5)))
    found = measured([good, bad], options)
    samples = found.measured.samples
    counts = samples.groupby("candidate")["latency_ms"].count()
    assert counts.to_dict() == {good.name: 2, bad.name: 0}
    failed = with_failures([good, bad], samples.drop_duplicates("candidate", keep="last"))
    assert [bool(c.error) for c in failed] == [False, True]
    assert "(1, 1, 5, 5), got float32 (1, 1, 28, 28)" in failed[1].error
