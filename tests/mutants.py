"""`make mutants`: one operator or constant of the core changed at a time; which do tests notice?"""

import argparse
import ast
import importlib.util
import io
import logging
import multiprocessing
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import SourceFileLoader
from multiprocessing.pool import AsyncResult
from pathlib import Path

import pandas  # noqa: F401 - loaded once, before the forks
import pytest
import scipy.stats  # noqa: F401
import statsmodels.stats.multitest  # noqa: F401
import torch  # noqa: F401

ROOT = Path(__file__).parents[1]
MODULES = (
    "agent.conditions",
    "agent.journal",
    "agent.pixels",
    "agent.plan",
    "agent.rounds",
    "agent.session",
    "agent.supervisor",
    "agent.worker",
    "decision.answers",
    "decision.budgets",
    "decision.choice",
    "decision.frontier",
    "decision.gates",
    "decision.limits",
    "decision.paired",
    "decision.ranking",
    "metrics.activations",
    "metrics.conditions",
    "metrics.energy",
    "metrics.latency",
    "metrics.quality",
    "metrics.rounds",
)
SWAPS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
}
# Settings that no result depends on: how strict a check is, how a table is copied.
INERT = {"strict", "frozen", "eq", "sort", "ignore_index", "check"}
SECONDS = 120
TESTED_BY = {"gates": "choice", "ranking": "choice"}  # modules whose tests are another's


def mutants(source: str) -> list[tuple[str, ast.Module]]:
    """Every change of one operator or constant: what it is, and the module's tree with it."""
    walked = [*ast.walk(ast.parse(source))]
    inert = {id(n.value) for n in walked if isinstance(n, ast.keyword) and n.arg in INERT}
    inert |= {id(default) for default in _seeds(walked)}
    found = []
    for number in (n for n, node in enumerate(walked) if id(node) not in inert):
        tree = ast.parse(source)
        node = [*ast.walk(tree)][number]
        before = ast.get_source_segment(source, node)
        if _mutate(node):
            after = ast.unparse(ast.fix_missing_locations(node))
            found.append((f"line {node.lineno}: {before} -> {after}", tree))
    return found


def _seeds(walked: list[ast.AST]) -> Iterator[ast.expr]:
    """Defaults of ``seed`` and ``replicates``: another one is no defect."""
    for function in (node for node in walked if isinstance(node, ast.FunctionDef)):
        pairs = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        yield from (
            default
            for argument, default in pairs
            if argument.arg in ("seed", "replicates") and default
        )


def _mutate(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        node.ops[0] = SWAPS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPS:
        node.op = SWAPS[type(node.op)]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
    else:
        return False
    return True


class Mutated(SourceFileLoader, MetaPathFinder):
    """Loads one module from a tree in place of its file."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self.tree = tree

    def find_spec(self, name, path=None, target=None):
        """Find the one module."""
        return importlib.util.spec_from_loader(name, self) if name == self.name else None

    def get_code(self, fullname):
        """Compile the tree, whatever is cached."""
        return compile(self.tree, self.path, "exec")


def is_noticed(mutant: tuple[str, ast.Module], *, module: str) -> bool:
    """Run the module's own tests on a mutant, in this process."""
    signal.alarm(SECONDS)  # a mutant that hangs leaves its place to the next
    room, name = module.split(".")
    path = ROOT / "edgeopt" / room / f"{name}.py"
    sys.meta_path.insert(0, Mutated(f"edgeopt.{module}", str(path), mutant[1]))
    quiet = io.StringIO()
    with redirect_stdout(quiet), redirect_stderr(quiet):
        test = ROOT / "tests" / room / f"test_{TESTED_BY.get(name, name)}.py"
        without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "xdist", "nbval")]
        return pytest.main(["-xq", *without, "-o", "filterwarnings=", str(test)]) != 0


def main() -> int:
    """Try some mutants of each module; 1 when tests notice less than the goal."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("modules", nargs="*", default=MODULES, help=", ".join(MODULES))
    parser.add_argument("--each", type=int, default=12, help="mutants tried of a module")
    parser.add_argument("--goal", type=float, default=0.95, help="share to be noticed")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    noticed = tried = 0
    context = multiprocessing.get_context("fork")
    for module in options.modules:
        source = (ROOT / "edgeopt" / f"{module.replace('.', '/')}.py").read_text()
        every = mutants(source)
        some = random.Random(0).sample(every, min(options.each, len(every)))
        with context.Pool(maxtasksperchild=1) as pool:
            try_one = partial(is_noticed, module=module)
            nothing = ("nothing", ast.parse(source))
            if _result(pool.apply_async(try_one, (nothing,))):
                raise RuntimeError(f"the tests of {module} fail without a mutant")
            jobs = [pool.apply_async(try_one, (mutant,)) for mutant in some]
            found = [_result(job) for job in jobs]
        logging.info("%s: %d of %d (%d in all)", module, sum(found), len(found), len(every))
        for (text, _), seen in zip(some, found, strict=True):
            if not seen:
                logging.info("  not noticed: %s", text)
        noticed, tried = noticed + sum(found), tried + len(found)
    logging.info("noticed %d of %d: %.0f %%", noticed, tried, 100 * noticed / tried)
    return int(noticed < options.goal * tried)


def _result(job: AsyncResult) -> bool:
    try:
        return job.get(timeout=SECONDS)
    except multiprocessing.TimeoutError:
        return True  # it hangs, which a suite notices too


if __name__ == "__main__":
    sys.exit(main())
