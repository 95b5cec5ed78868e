"""The commands of edgeopt: report, check, verify, compare, bundle, results, readme and others.

A command imports what it needs itself: to check a file must not wait for Sphinx.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

from edgeopt.config import load_config
from edgeopt.data import rebuild_embedded
from edgeopt.devices import DeviceError
from edgeopt.reports.records.manifest import find_run, read_manifest, verify
from edgeopt.study import check_run
from edgeopt.system import RuntimeUnavailable, SchedulerError, project_root

log = logging.getLogger("edgeopt")


def report(options: argparse.Namespace) -> int:
    """Execute the notebooks of a parameter file; 1 when one of them failed."""
    from edgeopt.reports.runner import make_report

    config = load_config(options.params)
    return 0 if make_report(config, write_back=options.write_back) else 1


def check(options: argparse.Namespace) -> int:
    """Check a parameter file and all that it names, and train nothing."""
    log.info("%s: %s", options.params, check_run(load_config(options.params)))
    return 0


def verify_run(options: argparse.Namespace) -> int:
    """Check a run against its manifest; 1 when something differs."""
    run = find_run(options.run)
    differences = verify(run)
    for row in differences.itertuples():
        log.error("%-8s %s", row.problem, row.file)
    if len(differences):
        log.error("run %s: %d of its files differ from manifest.json", run.name, len(differences))
        return 1
    total = len(read_manifest(run)["artifacts"])
    log.info("run %s: all %d files are as manifest.json says", run.name, total)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare two runs on a page; with --fail 1 when the second's pick got worse beyond noise."""
    from edgeopt.reports.pages.comparison import compare_runs
    from edgeopt.reports.runner import make_comparison

    runs = find_run(options.first), find_run(options.second)
    found = compare_runs(*runs)
    for warning in found.warnings:
        log.warning("%s", warning)
    if not make_comparison(*runs):
        return 1
    for number in found.regressions if options.fail else ():
        log.error("%s of the pick got worse from run %s to %s", number, *(r.name for r in runs))
    return int(options.fail and bool(found.regressions))


def bundle(options: argparse.Namespace) -> int:
    """Write a run as one file that a device without a network measures."""
    from edgeopt.reports.runner import make_bundle

    path = make_bundle(find_run(options.run))
    log.info("bundle: %s; on the device: python3 %s", path, path.name)
    return 0


def results(options: argparse.Namespace) -> int:
    """Take in the results of a run's bundle, and make the pages of the run anew."""
    from edgeopt.reports.runner import take_in

    return 0 if take_in(find_run(options.run), options.from_file) else 1


def readme(options: argparse.Namespace) -> int:
    """Write a run's results into README.md."""
    from edgeopt.reports.pages.readme import write_readme

    path = write_readme(find_run(options.run), root=project_root())
    log.info("results of run %s: %s", options.run, path)
    return 0


def rebuild(options: argparse.Namespace) -> int:
    """Make the embedded data set again; 1 when it differs from the shipped file in a byte."""
    verdict = rebuild_embedded(options.data_dir, output=options.output)
    log.info("rebuilt fashion-mnist-20k: %s", verdict or "is equal byte for byte")
    return int(bool(verdict))


def parser() -> argparse.ArgumentParser:
    """Build the parser of all commands; each sets ``action``, what it calls."""
    top = argparse.ArgumentParser(prog="python -m edgeopt", description=__doc__)
    commands = top.add_subparsers(required=True)

    def add(name: str, action: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        command.set_defaults(action=action)
        return command

    command = add("report", report)
    command.add_argument("--params", required=True, type=Path, help="e.g. params/quick.yaml")
    command.add_argument(
        "--write-back", action="store_true", help="put outputs into notebooks/ too"
    )
    add("check", check).add_argument("--params", required=True, type=Path)
    add("verify", verify_run).add_argument("--run", required=True, help="name of the run")
    command = add("compare", compare)
    command.add_argument("first", help="name of the run")
    command.add_argument("second", help="name of the run")
    command.add_argument("--fail", action="store_true", help="exit with 1 when the pick got worse")
    add("bundle", bundle).add_argument("--run", required=True, help="name of the run")
    command = add("results", results)
    command.add_argument("--run", required=True, help="name of the run")
    command.add_argument("--from", dest="from_file", required=True, type=Path, help="results.json")
    add("readme", readme).add_argument("--run", default="default", help="name of the run")
    command = add("rebuild-embedded", rebuild)
    command.add_argument("--data-dir", default="data", help="where the full set is, or will be")
    command.add_argument("--output", type=Path, help="also write the rebuilt file here")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 2 when it cannot start, with the reason in one line."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.WARNING)
    try:
        return options.action(options)
    except (OSError, ValueError, DeviceError, RuntimeUnavailable, SchedulerError) as error:
        log.error("%s", error)
        return 2
    except KeyboardInterrupt:
        # Tasks that are given up now would be told of, with their tracebacks.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        log.error("interrupted; what is finished is kept, and the same command goes on from there")
        return 130  # as shells say it of a program that was interrupted
