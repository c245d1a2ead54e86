"""Change one operator or constant at a time in the pure modules, and see whether a test fails.

    python scripts/mutate.py --n 60 --seed 0

A change that no test notices is a survivor: it is listed, and wants a test. Each change is made in a copy
of the checkout, two copies at a time. It takes some twenty minutes on two cores, so CI does not run it.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
FILES = (  # scoring, splits and codecs; draws; top k and samples; how numbers are packed
    "neuroexplain/scoring/*.py",
    "neuroexplain/sampling.py",
    "neuroexplain/collecting/running_best.py",
    "neuroexplain/collecting/sample.py",
    "neuroexplain/collecting/top_k.py",
    "neuroexplain/store/packing.py",
)
TESTS = (  # the fastest first: a change that they notice costs seconds
    "tests/scoring",
    "tests/test_sampling.py",
    "tests/collecting/test_top_k.py",
    "tests/collecting/test_sample.py",
    "tests/store/test_store.py",
    "tests/store/test_old_databases.py",
    "tests/scorers/test_plugin.py",
    "tests/collecting/test_collector.py",
    "tests/explaining",
)
OPERATORS: dict[type[ast.AST], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "+",
    ast.Div: "*",
    ast.FloorDiv: "+",
    ast.Mod: "+",
    ast.Pow: "*",
    ast.LShift: ">>",
    ast.RShift: "<<",
    ast.BitOr: "&",
    ast.BitAnd: "|",
    ast.BitXor: "|",
    ast.And: "or",
    ast.Or: "and",
}
TEST_SECONDS = 600  # a change can make a loop endless: that counts as noticed


@dataclass(frozen=True)
class Change:
    """Text to put in place of a piece of a file."""

    file: Path  # from the root
    line: int
    start: int  # in the file, in bytes
    end: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {self.old.strip()} -> {self.new.strip()}"


def find_changes(file: Path) -> Iterator[Change]:
    """Every change of an operator or constant in a file, in order."""
    source = (ROOT / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def change(line: int, start: int, end: int, new: str) -> Change:
        return Change(file, line, start, end, source[start:end].decode(), new)

    for node in _mutable_nodes(ast.parse(source)):
        if isinstance(node, ast.Constant):
            new = _other_constant(node.value)
            start = place(node.lineno, node.col_offset)
            if new is not None and node.end_lineno is not None and node.end_col_offset is not None:
                yield change(node.lineno, start, place(node.end_lineno, node.end_col_offset), new)
            continue
        for left, operator, right in _operations(node):
            start = place(left.end_lineno or 0, left.end_col_offset or 0)
            end = place(right.lineno, right.col_offset)
            between = source[start:end].decode()
            new = OPERATORS.get(type(operator))
            if new is not None and not {"\n", "(", ")"} & set(between):
                yield change(left.lineno, start, end, f" {new} ")


def _mutable_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes of code that computes: not annotations, docstrings, messages or imports."""
    waiting: list[ast.AST] = list(reversed(tree.body))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring
        yield node
        children = [
            child
            for name, value in ast.iter_fields(node)
            if name not in ("annotation", "returns", "decorator_list", "bases")
            for child in (value if isinstance(value, list) else [value])
            if isinstance(child, ast.AST)
        ]
        waiting += reversed(children)


def _operations(node: ast.AST) -> Iterator[tuple[ast.expr, ast.AST, ast.expr]]:
    """(left, operator, right) of an expression."""
    if isinstance(node, ast.BinOp):
        yield node.left, node.op, node.right
    elif isinstance(node, ast.Compare):
        operands = [node.left, *node.comparators]
        yield from zip(operands, node.ops, operands[1:], strict=False)
    elif isinstance(node, ast.BoolOp):
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield left, node.op, right


def _other_constant(value: object) -> str | None:
    """Another constant of the same type; None for texts and None, whose change proves little."""
    if isinstance(value, bool):
        return str(not value)
    if isinstance(value, int):
        return str(value + 1)
    return repr(value * 2 + 0.1) if isinstance(value, float) else None


def is_noticed(change: Change, copy: Path) -> bool:
    """Whether a test fails with the change. `copy` is a checkout of its own, and is left as it was."""
    target = copy / change.file
    source = target.read_bytes()
    target.write_bytes(source[: change.start] + change.new.encode() + source[change.end :])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-m",
        "not model",
        *TESTS,
    ]
    try:
        done = subprocess.run(
            command,
            cwd=copy,
            check=False,
            capture_output=True,
            timeout=TEST_SECONDS,
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        return done.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_bytes(source)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--n", type=int, default=60, help="changes to make (60)")
    parser.add_argument("--seed", type=int, default=0, help="which changes (0)")
    parser.add_argument("--list", action="store_true", help="only list the changes")
    options = parser.parse_args()
    files = sorted({file.relative_to(ROOT) for pattern in FILES for file in ROOT.glob(pattern)})
    changes = [change for file in files for change in find_changes(file)]
    sample = random.Random(options.seed).sample(changes, min(options.n, len(changes)))
    print(
        f"{len(sample)} of {len(changes)} possible changes in {len(files)} files, seed {options.seed}",
        flush=True,
    )
    if options.list:
        print("\n".join(map(str, sample)))
        return
    copies: SimpleQueue[Path] = SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        for number in range(2):
            copy = Path(folder) / str(number)
            ignore = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "*.db", "vendor")
            shutil.copytree(ROOT, copy, ignore=ignore, symlinks=True)
            copies.put(copy)

        def run(change: Change) -> bool:
            copy = copies.get()
            try:
                return is_noticed(change, copy)
            finally:
                copies.put(copy)

        survivors = []
        for number, (change, noticed) in enumerate(zip(sample, pool.map(run, sample), strict=True), 1):
            print(f"{number:3}  {'noticed ' if noticed else 'SURVIVED'}  {change}", flush=True)
            survivors += [] if noticed else [change]
    print(f"{len(sample) - len(survivors)} of {len(sample)} changes make a test fail.")


if __name__ == "__main__":
    main()
