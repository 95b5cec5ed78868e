"""The hand-off of a run: its pick in a folder and a zip that run on a device as they are."""

import io
import shutil

from IPython.display import HTML

from edgeopt.devices.archive import write_zip
from edgeopt.devices.ship import CHECKSUMS, ShipError, self_tested, shipped_files
from edgeopt.reports.pages.card import render
from edgeopt.reports.pages.model_card import class_accuracies, model_card
from edgeopt.reports.records.manifest import config_of
from edgeopt.reports.records.results import Results
from edgeopt.runtimes import Artifact
from edgeopt.study import RunFolder, Study, open_study
from edgeopt.study.layout import MODEL_CARD, SHIP, SHIP_ZIP


def hand_off(results: Results) -> HTML:
    """Make the hand-off of the pick anew and show the way to it, or say why there is none.

    Where its self-test fails on this machine, none is left.
    """
    said, problem = "", ""
    _remove(results.run)
    try:
        said = make_ship(results)
    except ShipError as error:
        _remove(results.run)
        problem = str(error)
    names = {"folder": SHIP, "archive": SHIP_ZIP, "card": MODEL_CARD}
    return render("ship.html.j2", said=said, problem=problem, **names)


def make_ship(results: Results) -> str:
    """Write ``ship/`` and ``ship.zip`` of the pick; return what the self-test there says.

    Raises ``ShipError`` when there is no pick, its file is not there, or the self-test fails.
    """
    if not results.artifact:
        raise ShipError(_why_none(results))
    study = open_study(config_of(results.run))
    files = _files(results, study)
    for name, content in files.items():
        results.run.write_bytes(name, content)
    said = self_tested(results.run.path(SHIP))
    archive = io.BytesIO()
    write_zip(archive, files.items())
    results.run.write_bytes(SHIP_ZIP, archive.getvalue())
    return said


def _remove(run: RunFolder) -> None:
    shutil.rmtree(run.path(SHIP), ignore_errors=True)
    run.path(SHIP_ZIP).unlink(missing_ok=True)


def _why_none(results: Results) -> str:
    if "pick" in results.rows:
        return f"the file of {results.rows['pick']['candidate']} is not in this run"
    return "no candidate can be recommended" if results.decision else "there is no decision yet"


def _files(results: Results, study: Study) -> dict[str, bytes]:
    pick = results.rows["pick"]
    splits, how = study.splits[pick["model"]], study.preprocessing[pick["model"]]
    artifact = Artifact(
        path=results.run.path(results.artifact),
        runtime=pick["runtime"],
        precision=pick["precision"],
        input_shape=(study.config.benchmark_batch_size, *splits.test.shape),
        sha256=pick["artifact_sha256"],
        size_bytes=int(pick["artifact_bytes"]),
    )
    names = {"class_names": splits.class_names}
    files = shipped_files(artifact, images=splits.validation, preprocessing=how, **names)
    accuracies = class_accuracies(artifact, splits.test, **names)
    card = model_card(results, accuracies, checksums=files[CHECKSUMS].decode())
    return {f"{SHIP}/{name}": content for name, content in files.items()} | {
        MODEL_CARD: card.encode()
    }
