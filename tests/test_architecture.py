"""The shape of the program: arrows point down, the front is free of torch, and nothing grows too long."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

import simpletuner

PACKAGE = Path(simpletuner.__file__).parent
HERE = Path(__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# docs/architecture.md, from the ground up. On the floor of the parts, neighbours do not know each other.
FLOORS = (
    (
        "words",
        {
            "newfile",
            "wrapping",
            "schema",
            "reading",
            "surfaces",
            "errors",
            "registry",
            "events",
            "examples",
            "retired",
            "option",
            "values",
            "machine",
            "software",
            "envfile",
            "tomlfile",
            "editing",
        },
    ),
    ("nouns", {"types", "protocols", "modules", "diffusion", "kernels"}),
    ("parts", {"data", "models", "adapters", "memory", "optim", "quantization", "training", "validation", "tracking"}),
    ("config", {"config", "rules", "check", "groups", "overrides", "naming", "finding", "layers"}),
    (
        "joins",
        {
            "wizard",
            "recipe",
            "assembly",
            "engine",
            "residence",
            "keeping",
            "plan",
            "launch",
            "process",
            "ending",
            "generate",
            "publishing",
            "inspection",
            "encoding",
            "caches",
            "doctor",
        },
    ),
    ("doors", {"cli"}),
)
FLOOR = {name: floor for floor, (_, names) in enumerate(FLOORS) for name in names}
PARTS = dict(FLOORS)["parts"]
NOT_CODE = {"nano", "__pycache__"}  # the packaged example: weights and pictures
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "PIL", "numpy"}

LONGEST_FILE, LONGEST_FUNCTION, COPIED = 500, 60, 6  # lines
QUICK_SECONDS, QUICK_SCHEMA_SECONDS, QUICK_CHECK_SECONDS = 0.3, 0.4, 1.0
# What starts at once stands on the first alone; what reads the schema, or a configuration, on both.
PROGRAM, SCHEMA = {"click"}, {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
BUSY = 2  # other programs share the cores of a test machine; the best of five runs may still take twice as long


def place(path: Path) -> str:
    """The name that stands on a floor: a folder's, or a file's of the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    """Every module of this package that is imported anywhere in the file, as dotted names below the package."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        found += [name.removeprefix("simpletuner.") for name in names if name.startswith("simpletuner.")]
    return [name for name in found if name != "__version__"]


def trespasses(here: str, tree: ast.AST) -> list[str]:
    """Imports that point up, or from one part to another."""
    wrong = []
    for name in imports(tree):
        there = name.split(".")[0]
        assert there in FLOOR, f"{here} imports {name}, which stands on no floor"
        up = FLOOR[there] > FLOOR[here]
        neighbour = here in PARTS and there in PARTS and there != here
        if up or neighbour:
            wrong.append(f"{here} imports {name}")
    return wrong


def test_everything_stands_on_a_floor():
    there = {
        path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir() if path.suffix in ("", ".py")
    }
    assert there - NOT_CODE - {"__init__"} == set(FLOOR)


def test_imports_point_down_and_parts_do_not_know_each_other():
    wrong = []
    for path in FILES:
        if path != PACKAGE / "__init__.py":
            wrong += trespasses(place(path), ast.parse(path.read_text("utf-8")))
    assert wrong == []


@pytest.mark.parametrize(
    ("here", "line"),
    [
        ("data", "from simpletuner.models import families"),
        ("data", "def f():\n    from simpletuner import training"),
        ("errors", "import simpletuner.types"),
        ("rules", "from simpletuner import recipe"),
        ("types", "import importlib; importlib.import_module('simpletuner.data.scan')"),
        ("launch", "from simpletuner.cli import main"),
    ],
)
def test_a_trespass_is_seen(here, line):
    assert trespasses(here, ast.parse(line))


def test_the_package_itself_imports_nothing():
    assert imports(ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))) == []


def test_every_target_in_a_table_of_strings_is_in_the_part_that_names_it():
    """A registry's "module:Class" is an import as well."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("simpletuner."):
                module, _, attribute = node.value.partition(":")
                if attribute.isidentifier():
                    assert module.split(".")[1] == place(path), f"{path}: {node.value}"


def test_no_file_and_no_function_is_too_long():
    long = []
    for path in FILES:
        text = path.read_text("utf-8")
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            long.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert long == []


def told(path: Path) -> list[tuple[int, str]]:
    """The lines that do something, with their numbers: no imports, no tables, no docstrings, no blank lines."""
    text = path.read_text("utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        quiet = isinstance(node, (ast.Import, ast.ImportFrom, ast.Constant))
        table = isinstance(node, (ast.Assign, ast.AnnAssign)) and node.col_offset == 0
        if quiet and isinstance(node, ast.Constant):
            quiet = isinstance(node.value, str) and node.end_lineno != node.lineno
        if quiet or table:
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip() and number not in skipped]


def test_no_six_lines_are_written_twice():
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for path in sorted(p for root in (PACKAGE, HERE, HERE.parent / "benchmarks") for p in root.rglob("*.py")):
        lines = told(path)
        for start in range(len(lines) - COPIED + 1):
            block = tuple(line for _, line in lines[start : start + COPIED])
            here = f"{path}:{lines[start][0]}"
            first = seen.setdefault(block, here)
            if first != here:
                twice.append(f"{here} is {first}")
    assert twice == []


def test_nothing_reads_a_format_that_can_run_code():
    """No pickle under any name: weights and state are safetensors and JSON."""
    wrong = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = getattr(node, "module", None) or ""
                names = [module, *(alias.name for alias in node.names)]
                if {n.split(".")[0] for n in names} & {
                    "pickle",
                    "cPickle",
                    "dill",
                    "joblib",
                    "marshal",
                    "shelve",
                    "yaml",
                }:
                    wrong.append(f"{path}:{node.lineno}")
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if called in ("torch.load", "torch.save", "yaml.load", "eval", "exec", "np.load", "numpy.load"):
                    wrong.append(f"{path}:{node.lineno} {called}")
    assert wrong == []


def loaded_by(program: str, tmp_path: Path) -> set[str]:
    """Top-level packages in sys.modules after `program` ran in a fresh interpreter."""
    tail = "\nimport sys as _s\nprint('MODULES', *{name.split('.')[0] for name in _s.modules})"
    done = subprocess.run([sys.executable, "-c", program + tail], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return set(next(line for line in done.stdout.splitlines() if line.startswith("MODULES")).split()[1:])


def run_command(*words: str, codes: tuple[int, ...] = (0,)) -> str:
    return (
        f"import sys\nsys.argv = ['simpletuner', *{words!r}]\nfrom simpletuner.cli.main import main\n"
        f"try:\n    main()\nexcept SystemExit as end:\n    assert (end.code or 0) in {codes}, end.code"
    )


AT_ONCE = ["--help", "version", "completion bash", "nonsense", "jobs"]
WITH_SCHEMA = [
    "help lora_rank", "train --help", "generate --help", "report --help", "validate --example nano",
    "env --example nano",
]  # fmt: skip


@pytest.mark.parametrize("command", ["", *WITH_SCHEMA])
def test_the_front_loads_no_torch(command, tmp_path):
    """The empty command is what every check of a configuration imports."""
    fronts = "import simpletuner.config, simpletuner.rules, simpletuner.check"
    assert not loaded_by(run_command(*command.split()) if command else fronts, tmp_path) & HEAVY


@pytest.mark.parametrize(
    ("command", "allowed"),
    [*((command, PROGRAM) for command in AT_ONCE), *((c, PROGRAM | SCHEMA) for c in WITH_SCHEMA[:2])],
    ids=[*AT_ONCE, *WITH_SCHEMA[:2]],
)
def test_what_starts_at_once_loads_next_to_nothing(command, allowed, tmp_path):
    python_itself = loaded_by("", tmp_path) | set(sys.stdlib_module_names)
    loaded = loaded_by(run_command(*command.split(), codes=(0, 2)), tmp_path)
    assert {name for name in loaded - python_itself if not name.startswith("_")} <= allowed | {"simpletuner"}


def test_the_front_of_every_part_loads_no_torch(tmp_path):
    fronts = [f"simpletuner.{name}" for name in sorted(PARTS | {"diffusion"})]
    fronts += [
        f"simpletuner.{name}.options"
        for name in sorted(PARTS | {"diffusion"})
        if (PACKAGE / name / "options.py").exists()
    ]
    assert not loaded_by("import " + ", ".join(fronts), tmp_path) & HEAVY
    for name in fronts:
        importlib.import_module(name)


@pytest.mark.parametrize(
    ("command", "limit"),
    [
        *((command, QUICK_SECONDS) for command in AT_ONCE),
        *((command, QUICK_SCHEMA_SECONDS) for command in WITH_SCHEMA[:2]),
        ("validate --example nano", QUICK_CHECK_SECONDS),
    ],
    ids=[*AT_ONCE, *WITH_SCHEMA[:2], "validate"],
)
def test_the_front_is_quick(command, limit, tmp_path):
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "simpletuner.cli.main", *command.split()], capture_output=True, cwd=tmp_path
        )
        taken.append(time.perf_counter() - begun)
        if taken[-1] < limit:
            return
    assert min(taken) < limit * BUSY
