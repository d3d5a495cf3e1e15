"""House rules that no linter knows, read from the sources themselves.

Who may import whom is in ``[tool.importlinter]``; here is what happens inside a module.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import pytest

import crypto_qlib

PACKAGE = Path(crypto_qlib.__file__).parent
TREES = {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}

MAX_LINES = 600
MAX_PARAMETERS = 8

WALL_CLOCK = {
    "time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "datetime.datetime.now",
    "date.today", "pd.Timestamp.now", "pd.Timestamp.utcnow", "pd.Timestamp.today",
}  # fmt: skip
GLOBAL_RANDOMNESS = ("np.random.", "numpy.random.", "random.")
SEEDED = {"default_rng", "Generator", "SeedSequence", "BitGenerator", "PCG64", "Philox", "Random"}

HEAVY = {
    "pandera",
    "ccxt",
    "distributed",
    "lightgbm",
    "matplotlib",
    "mlflow",
    "pandas",
    "plotly",
    "qlib",
    "torch",
    "yfinance",
    "curl_cffi",
    "pytorch_forecasting",
    "crepes",
    "dask",
}
"""May be imported inside a function: each costs from half a second to several, and not every run needs it."""

HEAVY_OWN = {
    "crypto_qlib.modeling.mlflow_registry",
    "crypto_qlib.data_collector.qlib_data_adapter",
    "crypto_qlib.modeling.tuning",
}
"""Own modules that bring MLflow or Optuna in; training needs them only when a recorder or a search is wanted."""

BROAD_EXCEPT = {"cli/failure.py", "live_trading/runner.py", "scheduler/job_runner.py"}
"""The supervisors: the command line's outermost frame, the live session and the scheduler's job wrapper."""

LAZY_ROOMS = {"cli"}
"""Rooms whose functions may import this package: commands load Qlib and ccxt only once the settings are known to be good."""


Fence = Callable[[ast.Module], Sequence[object]]


def violations(fence: Fence, *, exempt: Container[str] = ()) -> list[str]:
    """Return ``room/file.py: what`` for every module outside ``exempt`` in which ``fence`` finds something."""
    found = {name: list(fence(tree)) for name, tree in TREES.items() if name not in exempt}
    return [f"{name}: {what}" for name, what in found.items() if what]


def dotted(node: ast.AST) -> str:
    """Return ``a.b.c`` for a chain of names, else an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node.lineno, dotted(node.func)


def reads_wall_clock(tree: ast.Module) -> list[int]:
    return [line for line, name in calls(tree) if name in WALL_CLOCK]


def uses_global_randomness(tree: ast.Module) -> list[int]:
    return [
        line
        for line, name in calls(tree)
        if name.startswith(GLOBAL_RANDOMNESS) and name.rpartition(".")[2] not in SEEDED and not name.startswith("random.Random")
    ]


def prints(tree: ast.Module) -> list[int]:
    return [line for line, name in calls(tree) if name in {"print", "pprint", "pprint.pprint", "sys.stdout.write"}]


def catches_everything(tree: ast.Module) -> list[int]:
    """A handler of ``Exception`` or wider that does not end by raising again."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            is_broad = any(kind is None or dotted(kind) in {"Exception", "BaseException"} for kind in kinds)
            last = node.body[-1]
            if is_broad and not isinstance(last, ast.Raise):
                found.append(node.lineno)
    return found


def imports_inside_functions(tree: ast.Module) -> list[tuple[int, str]]:
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found += [(node.lineno, alias.name) for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    found.append((node.lineno, node.module or ""))
    return found


def too_many_parameters(tree: ast.Module) -> list[str]:
    """Functions a person calls; compiled kernels take their columns one by one and are judged in review."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_kernel_or_command(node):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in {"self", "cls"} for a in arguments)
            if count > MAX_PARAMETERS:
                found.append(f"{node.name} (line {node.lineno}) takes {count}")
    return found


def is_kernel_or_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    decorators = {dotted(d.func if isinstance(d, ast.Call) else d) for d in node.decorator_list}
    is_command = any(d.endswith((".command", ".callback")) for d in decorators)
    return any(name.startswith("njit") for name in decorators) or is_command


def imported_libraries(tree: ast.AST) -> set[str]:
    names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    return {name.partition(".")[0] for name in names}


def test_only_the_clock_module_reads_the_wall_clock() -> None:
    assert violations(reads_wall_clock, exempt={"core/clock.py"}) == []


def test_randomness_comes_from_explicit_seeds() -> None:
    assert violations(uses_global_randomness) == []


def test_nothing_prints() -> None:
    assert violations(prints) == []


def test_only_supervisors_catch_everything() -> None:
    assert violations(catches_everything, exempt=BROAD_EXCEPT) == []


def test_functions_import_nothing_but_heavy_libraries() -> None:
    strangers = [
        f"{name}: {imported} (line {line})"
        for name, tree in TREES.items()
        for line, imported in imports_inside_functions(tree)
        if imported.partition(".")[0] not in HEAVY
        and imported not in HEAVY_OWN
        and not (name.partition("/")[0] in LAZY_ROOMS and imported.startswith("crypto_qlib."))
    ]
    assert strangers == []


def test_no_module_is_longer_than_can_be_read_at_once() -> None:
    lengths = {name: len((PACKAGE / name).read_text().splitlines()) for name in TREES}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_no_function_takes_more_parameters_than_can_be_remembered() -> None:
    assert violations(too_many_parameters) == []


def test_the_http_server_library_is_only_in_the_embedded_exchange() -> None:
    users = {name for name, tree in TREES.items() if "aiohttp" in imported_libraries(tree)}
    assert {name for name in users if not name.startswith("exchange/embedded/")} == set()


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}
    assert {name for name in TREES if Path(name).stem in drawers} == set()


ROWS: list[tuple[str, Fence, str, bool]] = [
    ("time.time is the wall clock", reads_wall_clock, "import time\nx = time.time()", True),
    ("now with a zone is still the wall clock", reads_wall_clock, "x = datetime.now(tz=UTC)", True),
    ("a stopwatch is not the wall clock", reads_wall_clock, "x = time.perf_counter()", False),
    ("numpy's global generator", uses_global_randomness, "x = np.random.normal()", True),
    ("a seeded generator", uses_global_randomness, "x = np.random.default_rng(1).normal()", False),
    ("print", prints, "print(1)", True),
    ("a method called print", prints, "console.print(1)", False),
    ("a broad handler", catches_everything, "try:\n  f()\nexcept Exception:\n  x = 1", True),
    ("a bare handler", catches_everything, "try:\n  f()\nexcept:\n  pass", True),
    ("a broad member of a tuple", catches_everything, "try:\n  f()\nexcept (ValueError, Exception):\n  pass", True),
    ("clean up and raise again", catches_everything, "try:\n  f()\nexcept BaseException:\n  g()\n  raise", False),
    ("a named error", catches_everything, "try:\n  f()\nexcept ValueError:\n  pass", False),
    ("an import inside", imports_inside_functions, "def f():\n  import json", True),
    ("an import at the top", imports_inside_functions, "import json\ndef f(): ...", False),
    ("nine parameters", too_many_parameters, "def f(a, b, c, d, e, f, g, h, i): ...", True),
    ("eight parameters and self", too_many_parameters, "class A:\n  def f(self, a, b, c, d, e, f, g, h): ...", False),
    ("a compiled kernel", too_many_parameters, "@njit\ndef f(a, b, c, d, e, f, g, h, i): ...", False),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "fence", "source", "is_caught"), ROWS, ids=[row[0] for row in ROWS])
def test_a_fence_catches_what_it_names(reason: str, fence: Fence, source: str, is_caught: bool) -> None:
    assert bool(fence(ast.parse(source))) is is_caught, reason
