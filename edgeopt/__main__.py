"""The commands of edgeopt: report, verify, compare, readme, rebuild-embedded."""

import argparse
import logging
import sys
from contextlib import ExitStack
from pathlib import Path

from edgeopt.config import load_config
from edgeopt.data import rebuild_embedded
from edgeopt.reports import (
    compare_runs,
    find_notebooks,
    find_run,
    make_comparison,
    make_report,
    only_one,
    read_manifest,
    verify,
    write_back,
    write_readme,
)
from edgeopt.study import open_run
from edgeopt.system import project_root

log = logging.getLogger("edgeopt")


def report(options: argparse.Namespace) -> int:
    """Execute the notebooks of a parameter file; 1 when one of them failed."""
    config = load_config(options.params)
    notebooks = find_notebooks(config.notebooks, root=project_root())
    run = open_run(config.run)
    with ExitStack() as stack:
        stack.enter_context(only_one(run))
        if not make_report(run, notebooks, config=config):
            return 1
        if options.write_back:
            write_back(run, notebooks)
    return 0


def verify_run(options: argparse.Namespace) -> int:
    """Check a run against its manifest; 1 when something differs."""
    run = find_run(options.run)
    differences = verify(run)
    for row in differences.itertuples():
        log.error("%-8s %s", row.problem, row.file)
    total = len(read_manifest(run)["artifacts"])
    if len(differences):
        log.error("run %s: %d of its files differ from manifest.json", run.name, len(differences))
        return 1
    log.info("run %s: all %d files are as manifest.json says", run.name, total)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare two runs on a page; with --fail 1 when the second's pick got worse beyond noise."""
    runs = find_run(options.first), find_run(options.second)
    found = compare_runs(*runs)
    for warning in found.warnings:
        log.warning("%s", warning)
    if not make_comparison(*runs):
        return 1
    for number in found.regressions if options.fail else ():
        log.error("%s of the pick got worse from run %s to %s", number, *(r.name for r in runs))
    return int(options.fail and bool(found.regressions))


def readme(options: argparse.Namespace) -> int:
    """Write a run's results into README.md."""
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
    commands = top.add_subparsers(dest="command", required=True)
    for name, action in COMMANDS.items():
        command = commands.add_parser(name, help=action.__doc__, description=action.__doc__)
        command.set_defaults(action=action)
        for flags, settings in ARGUMENTS[name].items():
            command.add_argument(flags, **settings)
    return top


COMMANDS = {
    "report": report,
    "verify": verify_run,
    "compare": compare,
    "readme": readme,
    "rebuild-embedded": rebuild,
}
RUN = {"help": "name of the run"}
ARGUMENTS = {
    "report": {
        "--params": {"required": True, "type": Path, "help": "e.g. params/quick.yaml"},
        "--write-back": {"action": "store_true", "help": "put the outputs into notebooks/ too"},
    },
    "verify": {"--run": {**RUN, "required": True}},
    "compare": {
        "first": RUN,
        "second": RUN,
        "--fail": {"action": "store_true", "help": "exit with 1 when the pick got worse"},
    },
    "readme": {"--run": {**RUN, "default": "default"}},
    "rebuild-embedded": {
        "--data-dir": {"default": "data", "help": "where the full set is, or will be"},
        "--output": {"type": Path, "help": "also write the rebuilt file here"},
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 2 when it cannot start, with the reason in one line."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("papermill").setLevel(logging.WARNING)
    try:
        return options.action(options)
    except (OSError, ValueError) as error:
        log.error("%s", error)
        return 2


if __name__ == "__main__":
    sys.exit(main())
