from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeopt.experiments.candidates import Candidate, CandidateSpec, grid, prepare_candidates
from edgeopt.experiments.measuring import (
    measure_candidates,
    measured_energy_table,
    peak_rss_table,
    with_failures,
)
from edgeopt.runtimes.registry import load_session
from edgeopt.runtimes.torch import TorchSession


def images_of(options, count):
    """Batches by model, of the first validation images."""
    return {model: split.take(count).numpy() for model, split in options["validation"].items()}


def test_samples_of_every_candidate_and_errors_while_timing(options):
    candidates = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)
    image = images_of(options, 1)
    samples = measure_candidates(candidates, image, rounds=2, calls_per_round=3).samples
    assert samples.groupby("candidate").size().to_dict() == {c.name: 6 for c in candidates}
    pair = images_of(options, 2)
    wrong = measure_candidates(candidates, pair, rounds=1, calls_per_round=1).samples
    latency = wrong.drop_duplicates("candidate")
    failed = with_failures(candidates, latency)
    assert all("got float32 (2, 1, 28, 28)" in c.error for c in failed)
    assert [c.error for c in candidates] == ["", ""]


def test_a_timed_session_has_to_give_the_scored_logits(options):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    other = replace(good, spec=replace(good.spec, precision="fp16"), logits=good.logits + 1)
    image = images_of(options, 1)
    samples = measure_candidates([good, other], image, rounds=1, calls_per_round=2).samples
    errors = samples.drop_duplicates("candidate", keep="last").set_index("candidate")["error"]
    assert errors[good.name] == ""
    assert "timed, its logits are up to 1 from those that were scored" in errors[other.name]


def test_a_timed_session_has_to_have_the_threads(options, monkeypatch):
    [good] = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    monkeypatch.setattr(TorchSession, "threads", property(lambda self: 7))
    image = images_of(options, 1)
    samples = measure_candidates([good], image, rounds=1, calls_per_round=2).samples
    assert "it computes with 7 threads; 1 were asked for" in samples["error"].iloc[-1]


def test_a_file_that_is_gone_is_a_failed_row_and_memory_with_a_reason(options):
    good, gone = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)
    gone.artifact.path.unlink()
    image = images_of(options, 1)
    samples = measure_candidates([good, gone], image, rounds=1, calls_per_round=2).samples
    errors = samples.drop_duplicates("candidate").set_index("candidate")["error"]
    assert errors[good.name] == ""
    assert "FileNotFoundError" in errors[gone.name]
    memory = peak_rss_table([good, gone]).set_index("candidate")
    assert memory["peak_rss_bytes"].isna().tolist() == [False, True]
    assert memory.loc[gone.name, "rss_unavailable"].startswith("unavailable: the process that runs")


def test_when_all_failed_their_errors_are_told():
    failed = [Candidate(CandidateSpec(0.0, name), error=f"no {name}") for name in ("fp32", "int8")]
    expected = "no candidate could be prepared: small_cnn-p0-torch-fp32: no fp32; .*int8: no int8"
    with pytest.raises(ValueError, match=expected):
        measure_candidates(failed, {"small_cnn": np.zeros((1, 1, 28, 28), np.float32)})


def test_peak_rss_table_grows_by_at_least_the_runtimes_library(options):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["onnxruntime"]), **options)
    table = peak_rss_table(candidates)
    assert list(table["candidate"]) == [candidates[0].name]
    grown = (table["peak_rss_bytes"] - table["idle_rss_bytes"]).item()
    libraries = [*Path(onnxruntime.__file__).parent.glob("capi/*.so*")]
    # Of the library's text about half is touched; its file is an upper bound of what is mapped.
    assert 0.3 < grown / sum(path.stat().st_size for path in libraries) < 3


def test_measured_energy_is_what_the_counter_gained_per_call(options, tmp_path, monkeypatch):
    candidates = prepare_candidates(grid([0.0], ["fp32"], ["torch"]), **options)
    image = images_of(options, 1)
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

    monkeypatch.setattr("edgeopt.experiments.measuring.load_session", lambda *_, **__: Metered())
    table = measured_energy_table(candidates, image, seconds=0.01)
    assert table["energy_measured_j"].tolist() == pytest.approx([250e-6])


def test_a_runtime_that_raises_is_a_failed_row_and_the_others_are_timed(options, monkeypatch):
    good, bad = prepare_candidates(grid([0.0], ["fp32", "fp16"], ["torch"]), **options)

    def load(artifact, **settings):
        session = load_session(artifact, **settings)
        if artifact.precision == "fp16":
            session._ready = lambda images: nullcontext(lambda: 1 / 0)
        return session

    monkeypatch.setattr("edgeopt.experiments.measuring.load_session", load)
    image = images_of(options, 1)
    samples = measure_candidates([good, bad], image, rounds=1, calls_per_round=2).samples
    assert samples.groupby("candidate")["latency_ms"].count().to_dict() == {
        good.name: 2,
        bad.name: 0,
    }
    assert "ZeroDivisionError" in samples["error"].str.cat()
