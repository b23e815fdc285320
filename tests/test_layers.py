"""The law of the house, checked on the source: imports point down only, files and functions stay
small, no two classes share a name."""

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.rooms import ENGINE, GATEWAY, PACKAGES, SCRIPTS, TRITON_MODELS, Room

ROOT = Path(__file__).parents[1]
ENGINE_ROOT = ROOT / "model_repository/multilora_llm/1"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_ENGINE_FILES = 97


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def all_sources() -> list[Path]:
    roots = ("kernels", "client", "model_repository", "scripts", "tests")
    return [path for root in roots for path in sources(ROOT / root)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def modules_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import absolutely"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    """Top-level packages outside the standard library."""
    return {name.partition(".")[0] for name in modules_imported(path)} - sys.stdlib_module_names


def is_in(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def room_of(module: str, law: dict[str, Room]) -> str | None:
    return max((room for room in law if is_in(module, room)), key=len, default=None)


def trespasses(path: Path, package: Path, law: dict[str, Room]) -> list[str]:
    """What a module of `package` imports against the law."""
    own = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
    room = room_of(own, law)
    if room is None:
        return [f"{own} stands in no room; give it one in {Path(__file__).name}"]
    allowed = [room, *law[room].below.split()]
    modules = {".".join(p.relative_to(package).with_suffix("").parts) for p in sources(package)}
    is_package = (package / "__init__.py").exists()  # else a source root: no prefix
    prefix = f"{package.name}." if is_package else ""
    found: list[str] = []
    for name in modules_imported(path):
        inner = name.removeprefix(prefix)
        ours = name.startswith(prefix) and inner in modules
        if ours and not any(is_in(inner, place) for place in allowed):
            found.append(f"{room} must not import {inner}")
    own_names = {package.name} if is_package else {m.partition(".")[0] for m in modules}
    packages = packages_imported(path) - own_names - {*law[room].packages.split()}
    return found + [f"{room} must not import {name}" for name in sorted(packages)]


def packages_with_rooms() -> list[tuple[Path, dict[str, Room]]]:
    return [
        (ENGINE_ROOT / "multilora", ENGINE),
        (ROOT / "client/multilora_gateway", GATEWAY),
        (ROOT / "scripts", SCRIPTS),
    ]


@pytest.mark.parametrize(
    ("path", "package", "law"),
    [
        pytest.param(path, package, law, id=name_of(path))
        for package, law in packages_with_rooms()
        for path in sources(package)
        if path.name != "__init__.py"
    ],
)
def test_a_room_imports_only_what_stands_below(
    path: Path, package: Path, law: dict[str, Room]
) -> None:
    assert not trespasses(path, package, law)


@pytest.mark.parametrize(
    ("module", "line", "trespass"),
    [
        ("scheduling/scheduler.py", "import torch", "scheduling must not import torch"),
        (
            "scheduling/scheduler.py",
            "from multilora.lora.rank_pages import zeros",
            "scheduling must not import lora.rank_pages",
        ),
        (
            "forward/runner.py",
            "from multilora.scheduling import scheduler",
            "forward must not import scheduling.scheduler",
        ),
        (
            "adapters/naming/catalog.py",
            "import multilora.adapters.memory.manager",
            "adapters.naming must not import adapters.memory.manager",
        ),
        ("somewhere.py", "", "somewhere stands in no room; give it one in test_layers.py"),
    ],
)
def test_the_law_sees_a_trespass(module: str, line: str, trespass: str, tmp_path: Path) -> None:
    """On a copy of the engine in which one import is added."""
    package = tmp_path / "multilora"
    for path in sources(ENGINE_ROOT / "multilora"):
        copy = package / path.relative_to(ENGINE_ROOT / "multilora")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    changed = package / module
    before = changed.read_text() if changed.exists() else ""
    changed.write_text(f"{line}\n{before}")
    assert trespass in trespasses(changed, package, ENGINE)


def unused(package: Path, law: dict[str, Room]) -> list[str]:
    """What the law allows and no module of the room does."""
    is_package = (package / "__init__.py").exists()
    prefix = f"{package.name}." if is_package else ""
    imported: dict[str, set[str]] = {room: set() for room in law}
    for path in sources(package):
        own = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        if room := room_of(own, law):
            imported[room] |= {name.removeprefix(prefix) for name in modules_imported(path)}
    return [
        f"{room} does not import {place}"
        for room, (below, packages) in law.items()
        for place in [*below.split(), *packages.split()]
        if not any(is_in(name, place) for name in imported[room])
    ]


@pytest.mark.parametrize(
    ("package", "law"), packages_with_rooms(), ids=["engine", "gateway", "scripts"]
)
def test_the_law_allows_no_more_than_is_used(package: Path, law: dict[str, Room]) -> None:
    assert unused(package, law) == []


@pytest.mark.parametrize("law", [ENGINE, GATEWAY, SCRIPTS], ids=["engine", "gateway", "scripts"])
def test_the_law_has_no_circle(law: dict[str, Room]) -> None:
    """Each room comes after the rooms that it may import."""
    order: list[str] = []
    for room, (below, _) in law.items():
        for place in below.split():
            inside = [other for other in law if is_in(other, place)]
            for other in inside or [room_of(place, law)]:
                assert other in order, f"{room} may import {place}, which comes later"
        order.append(room)


@pytest.mark.parametrize("path", sources(ROOT / "model_repository"), ids=name_of)
def test_only_the_triton_models_know_the_triton_server(path: Path) -> None:
    if path.name == "model.py" and path.parents[1].name in TRITON_MODELS:
        return
    assert "triton_python_backend_utils" not in packages_imported(path)


def test_only_the_triton_models_import_wire() -> None:
    importers = {
        name_of(path)
        for root in ("kernels", "client", "model_repository", "scripts")
        for path in sources(ROOT / root)
        if any(is_in(name, "multilora.wire") for name in modules_imported(path))
    }
    wire = name_of(ENGINE_ROOT / "multilora/wire")
    outside = {name for name in importers if not name.startswith(wire)}
    models = ("multilora_llm", "tokenizer")
    assert outside == {f"model_repository/{model}/1/model.py" for model in models}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        pytest.param(path, packages, id=name_of(path))
        for folder, packages in PACKAGES.items()
        for path in sources(ROOT / folder)
    ],
)
def test_a_package_imports_only_what_it_may(path: Path, allowed: str) -> None:
    own = path.relative_to(ROOT).parts[1]
    assert packages_imported(path) <= {own, *allowed.split()}


@pytest.mark.parametrize(("folder", "allowed"), PACKAGES.items())
def test_a_package_may_import_no_more_than_it_does(folder: str, allowed: str) -> None:
    imported = set[str]().union(*map(packages_imported, sources(ROOT / folder)))
    assert {*allowed.split()} <= imported


@pytest.mark.parametrize("root", ["kernels", "client", "scripts", "tests"])
def test_a_source_root_is_not_a_package(root: str) -> None:
    assert not (ROOT / root / "__init__.py").exists()


@pytest.mark.parametrize("path", all_sources(), ids=name_of)
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    too_long = [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not too_long, f"more than {MAX_FUNCTION_LINES} lines: {', '.join(too_long)}"


def test_who_may_look_at_the_clock() -> None:
    """Clocks are set forward and back: what is measured, waited for or forgotten goes by
    time.monotonic(). The others tell people or programs what time it is, or read times of files."""
    telling = {
        "client/multilora_text/template_process.py",
        "client/multilora_gateway/json_lines.py",
        "client/multilora_gateway/openai/job.py",
        "client/multilora_gateway/routes/openai.py",
        "client/multilora_client/adapters/cli.py",
        *(
            f"model_repository/multilora_llm/1/multilora/{path}.py"
            for path in ("wire/metrics", "adapters/admin/admin", "adapters/files",
                         "adapters/merging/cache")
        ),
        "scripts/benchmarks/common/machine.py",
    }  # fmt: skip
    look = re.compile(
        r"\btime\.time(_ns)?\(|\b(datetime|date)\.(now|utcnow|today)\(|from time import"
    )
    looking = {
        name_of(path)
        for root in ("kernels", "client", "model_repository", "scripts")
        for path in sources(ROOT / root)
        if look.search(path.read_text())
    }
    assert looking == telling


def test_the_engine_has_few_files() -> None:
    assert len(sources(ENGINE_ROOT / "multilora")) <= MAX_ENGINE_FILES


def test_no_two_classes_share_a_name() -> None:
    """In what is shipped; the Python backend names the classes of the Triton models itself."""
    names = Counter(
        node.name
        for root in ("kernels", "client", "model_repository", "scripts")
        for path in sources(ROOT / root)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    shared = {name for name, count in names.items() if count > 1} - {"TritonPythonModel"}
    assert not shared


def test_the_scheduler_does_not_need_torch() -> None:
    code = "import sys, multilora.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ENGINE_ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr or "multilora.scheduling imported torch"
