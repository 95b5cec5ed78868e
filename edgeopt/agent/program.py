"""The agent's commands."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeopt.agent.journal import SHOWN
from edgeopt.agent.offline import is_bundle, run_bundle
from edgeopt.agent.plan import PlanError, read_plan

COMMANDS = ("run", "work", "memory", "bundle")
FAILED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; one line on standard error and exit code 2 for what can be told.

    Started without a command, an archive that holds a bundle measures it.
    """
    parser = argparse.ArgumentParser(prog="edgeopt agent", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("folder", type=Path, help="of a plan; for bundle, the archive")
    parser.add_argument("name", nargs="?", default="", help="of the artifact, for memory")
    parser.add_argument("--show", default="", choices=SHOWN, help="on standard output")
    words = sys.argv[1:] if arguments is None else arguments
    archive = Path(sys.modules["__main__"].__file__ or "").parent
    if not words and is_bundle(archive):
        words = ["bundle", str(archive)]
    options = parser.parse_args(words)
    from edgeopt.agent.supervisor import AgentError, end_with_parent

    by_hand = options.command == "run" and options.show == "progress"
    if options.command != "bundle" and not by_hand:
        end_with_parent()
    try:
        _run(options)
    except (PlanError, AgentError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return FAILED
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.command == "run":
        from edgeopt.agent.supervisor import run

        run(options.folder, show=options.show)
    elif options.command == "bundle":
        run_bundle(options.folder, to=Path.cwd())
    elif options.command == "work":
        from edgeopt.agent.worker import work

        work(options.folder, show=options.show)
    else:
        from edgeopt.agent.memory import memory_of

        job = next(
            job for job in read_plan(options.folder, verify=False).jobs if job.name == options.name
        )
        found = memory_of(job.artifact, place=job.place, threads=job.threads)
        sys.stdout.write(f"\n{json.dumps(found)}\n")
