"""The hand-off of a run: what it holds, what its card says, and when there is none."""

import io
import json
import sys
import zipfile
from dataclasses import replace

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest

from edgeopt.config import ExperimentConfig
from edgeopt.decision.choice import decide
from edgeopt.decision.gates import Gates
from edgeopt.devices.ship import ShipError
from edgeopt.model import SmallCNN
from edgeopt.reports.pages import ship
from edgeopt.reports.records.manifest import provenance, verify, write_manifest
from edgeopt.reports.records.results import Results, read_results
from edgeopt.runtimes.export import export_artifact
from edgeopt.study.study import open_study
from edgeopt.system import host_facts
from tests.browser.synthetic import synthetic_sweep
from tests.devices.bare import bare_python, run

NETWORK = "small_cnn-p70-onnxruntime-fp32"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    root = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEOPT_REPORTS", str(root))
        yield root


@pytest.fixture(scope="module")
def network() -> SmallCNN:
    torch.manual_seed(0)
    return SmallCNN(4, 6, 10).eval()


@pytest.fixture(scope="module")
def study(reports):
    return open_study(ExperimentConfig(run="tiny", val_subset=40, test_subset=50))


@pytest.fixture(scope="module")
def results(study, network) -> Results:
    """A run of which the pick alone was made, untrained; its other numbers are invented."""
    folder = study.folder
    target = {"runtime": "onnxruntime", "precision": "fp32", "input_shape": (1, 1, 28, 28)}
    artifact = export_artifact(network, folder.path(f"artifacts/sweep/seed0/{NETWORK}"), **target)
    sweep = synthetic_sweep()
    sweep = sweep[(sweep["runtime"] == "onnxruntime") & (sweep["precision"] == "fp32")]
    sweep = sweep.assign(
        device="host",
        model="small_cnn",
        seeds=3,
        parameters=1234,
        latency_kind="measured",
        artifact=f"seed0/{artifact.path.name}",
        artifact_sha256=artifact.sha256,
        artifact_bytes=artifact.size_bytes,
    )
    decision = decide(sweep, gates=Gates())
    assert decision.pick["candidate"] == NETWORK
    slow = {"latency_p50_ms": 7.5, "latency_p50_low_ms": 7.25, "latency_p50_high_ms": 7.75}
    elsewhere = {name: sweep.assign(device=name, **slow) for name in ("ssh://pi", "offline:dog")}
    sweep = sweep.merge(decision.standings, "left", "candidate")
    folder.write_table("sweep_results.csv", pd.concat([sweep, elsewhere["ssh://pi"]]))
    folder.write_table("devices/dog/rows.csv", elsewhere["offline:dog"])
    folder.write_json("devices/dog/facts.json", {"offline:dog": {"cpu": "Cortex-M7"}})
    cpus = {"host": host_facts(), "ssh://pi": {"cpu": "Cortex-A72"}}
    folder.write_json("devices.json", cpus)
    folder.write_json("summary.json", decision.to_dict())
    folder.write_bytes("right_answers.csv", b"candidate\n")
    folder.write_json("devices/dog/decided.json", folder.decision_digests)
    folder.write_json("data.json", study.data_facts())
    parameters = study.config.model_dump(mode="json")
    made = {"parameters": parameters, "notebooks": {}, "root": folder.root}
    write_manifest(folder, provenance(folder, **made))
    found = read_results(folder)
    return Results(folder, found.manifest, found.decision, sweep, ())


@pytest.fixture(scope="module")
def page(results) -> str:
    return ship.hand_off(results).data


def test_hand_off_links_the_folder_the_zip_and_the_card_and_says_the_command(page):
    for link in ("ship/MODEL_CARD.md", "ship.zip"):
        assert f'href="{link}"' in page
    assert "<code>python predict.py picture.png</code>" in page
    assert "self-test passed: the logits of 10 pictures are those stored, bit for bit" in page


def test_what_was_handed_off_runs_where_there_is_no_edgeopt(page, results, study, tmp_path):
    device = bare_python(tmp_path / "device", "numpy", "pillow", "onnxruntime")
    assert run(device, "-c", "import edgeopt", cwd=tmp_path).returncode == 1
    with zipfile.ZipFile(results.run.path("ship.zip")) as archive:
        archive.extractall(tmp_path)
    tested = run(device, "predict.py", "--self-test", cwd=tmp_path / "ship")
    assert (tested.returncode, tested.stderr) == (0, "")
    predicted = run(device, "predict.py", "self_test/04.png", cwd=tmp_path / "ship")
    facts = json.loads((tmp_path / "ship/model.json").read_text())
    assert facts["class_names"] == [*study.class_names]
    assert len(predicted.stdout.splitlines()) == 10


def test_running_it_in_the_run_leaves_the_run_as_it_was(page, results):
    folder = results.run
    write_manifest(folder, results.manifest)
    run(sys.executable, folder.path("ship/predict.py"), "--self-test", cwd=folder.root)
    assert verify(folder).empty
    content = folder.path("ship/model.json").read_bytes()
    folder.write_bytes("ship/model.json", content + b" ")
    assert verify(folder).to_numpy().tolist() == [["ship/model.json", "differs"]]
    folder.write_bytes("ship/model.json", content)


def test_the_zip_holds_the_folder_in_the_same_bytes_every_time(page, results):
    folder = results.run
    before = folder.path("ship.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    assert packed == {
        path.relative_to(folder.root).as_posix(): path.read_bytes()
        for path in folder.path("ship").rglob("*")
        if path.is_file()
    }
    ship.hand_off(results)
    assert folder.path("ship.zip").read_bytes() == before


def test_the_card_says_how_good_the_file_is_class_by_class(page, results, study, network):
    card = results.run.path("ship/MODEL_CARD.md").read_text()
    images, labels = study.splits["small_cnn"].test[:]
    with torch.inference_mode():
        right = (network(images).argmax(1) == labels).numpy()
    bags = right[labels.numpy() == study.class_names.index("Bag")]
    for name, own in {"all classes": right, "Bag": bags}.items():
        hits, count = int(own.sum()), len(own)
        ends = binomtest(hits, count).proportion_ci(method="wilson")
        row = [name, f"{count}", f"{hits / count:.1%}", f"{ends.low:.1%} to {ends.high:.1%}"]
        assert row in rows_of(card)


def rows_of(card: str) -> list[list[str]]:
    """Cells of every table's row."""
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_card_says_how_fast_it_is_on_each_device(page, results):
    rows = rows_of(results.run.path("ship/MODEL_CARD.md").read_text())[-3:]
    here = results.rows["pick"]["latency_p50_ms"]
    assert [row[:2] for row in rows] == [
        ["host", host_facts()["cpu"]],
        ["ssh://pi", "Cortex-A72"],
        ["offline:dog", "Cortex-M7"],
    ]
    assert [row[2] for row in rows] == [f"{here:.4g} ms", "7.5 ms", "7.5 ms"]
    assert rows[1][3] == "7.25 ms to 7.75 ms"


def test_the_card_says_what_it_is_from_what_on_which_data_and_its_checksums(page, results):
    card = results.run.path("ship/MODEL_CARD.md").read_text()
    assert card.startswith(f"# {NETWORK}\n\nsmall_cnn, 70.0% of the channels pruned, fine-tuned")
    assert results.decision["reason"] in card
    assert "then 28x28 by stretch, bilinear, grey, values from 0 to 1." in card
    assert f"fashion-mnist-20k, SHA-256 `{results.manifest['data']['checksum']}`" in card
    assert "- test: 50 images\n" in card
    assert "the mean of 3 trainings" in card
    assert "U8S8" not in card  # of int8 in ONNX files alone
    assert results.run.path("ship/SHA256SUMS").read_text() in card


def test_limits_of_int8_and_of_the_data_are_on_the_card(page, results):
    facts = results.manifest["data"] | {"test_warning": "images may have been seen"}
    pick = results.decision["pick"] | {"precision": "int8"}
    changed = {"decision": results.decision | {"pick": pick}}
    warned = replace(results, manifest=results.manifest | {"data": facts}, **changed)
    accuracies = pd.DataFrame(
        [["all classes", 4, 0.5, 0.1, 0.9], ["Bag", 2, 1.0, 0.3, 1.0], ["Coat", 2, 0.0, 0.0, 0.7]],
        columns=["class_name", "images", "accuracy", "low", "high"],
    )
    card = ship.model_card(warned, accuracies, checksums="")
    assert "- images may have been seen\n" in card
    assert f"- {results.manifest['int8_scheme']['note']}\n" in card
    assert "Its worst class is Coat, 0.0%." in card


def no_pick(results: Results) -> Results:
    return replace(results, decision=results.decision | {"pick": None})


def no_file(results: Results) -> Results:
    pick = results.decision["pick"] | {"artifact_sha256": "0" * 64}
    return replace(results, decision=results.decision | {"pick": pick})


def no_decision(results: Results) -> Results:
    return replace(results, decision=None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (no_pick, "no candidate can be recommended"),
        (no_file, f"the file of {NETWORK} is not in this run"),
        (no_decision, "there is no decision yet"),
    ],
)
def test_without_a_pick_there_is_no_hand_off_and_the_page_says_so(results, change, words):
    ship.hand_off(results)
    html = ship.hand_off(change(results)).data
    assert html.strip() == f"<p>There is no folder to hand off: {words}.</p>"
    assert not results.run.path("ship").exists()
    assert not results.run.path("ship.zip").exists()


def test_a_hand_off_that_fails_its_self_test_is_not_left(results, monkeypatch):
    def fails(folder):
        raise ShipError("predict.py --self-test: 03.png <b>")

    monkeypatch.setattr(ship, "self_tested", fails)
    html = ship.hand_off(results).data
    assert "no folder to hand off: predict.py --self-test: 03.png &lt;b&gt;." in html
    assert not results.run.path("ship").exists()
