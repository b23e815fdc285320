"""The layers, checked on the source: imports point down only, files and functions stay small."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE_ROOT = ROOT / "model_repository/multilora_llm/1"
KERNELS_ROOT = ROOT / "kernels"
CLIENT_ROOT = ROOT / "client"
MAX_FILE_LINES = 250
MAX_FUNCTION_LINES = 40

PURE = {
    "config", "base_config", "rope_config", "json_fields", "errors", "request", "sequence",
    "batch", "scheduler", "block_allocator", "adapter_config", "adapter_gate", "adapter_loader",
    "adapter_claims", "adapter_deadlines", "admission", "fair_queue", "sequence_blocks",
    "adapter_allow", "adapter_catalog", "adapter_files", "adapter_folders", "adapter_hints",
    "adapter_names", "adapter_watch", "adapter_record", "adapter_records", "adapter_slots",
    "adapter_source", "adapter_counts", "admin_command", "early_stops", "grammar_trial",
    "grammar_parameter", "grammar_threads", "merge_recipe", "request_limits", "token_matcher",
    "memory_plan", "metrics", "pending_answers",
}  # fmt: skip
DEVICE = {
    "adapter_checkpoint", "adapter_host", "adapter_merge", "adapter_pages", "adapter_pool",
    "adapter_store", "adapter_tensors", "page_layout", "lora_linear", "sampler",
    "sampling_input", "weights", "checkpoint_files", "rope", "llama", "kv_cache",
    "forward_input", "model_runner", "zeros", "upload", "lora_plan", "captured_pass",
    "decode_graphs", "gpu_check", "memory_profile", "kernel_warm_up",
}  # fmt: skip
TEXT = {"adapter_text", "chat_messages"}
ENGINE = {
    "adapter_admin", "adapter_merger", "merged_adapters", "adapter_parts", "adapter_template",
    "base_description", "grammar_compiler", "grammar_trial_process", "grammars", "merge_cache",
    "engine", "engine_parts", "sources", "reply", "responder", "stream", "sampling_parameters",
    "triton_request", "triton_metrics", "triton_series", "lora_requests_info", "download", "files",
    "hub_cache", "hub_download", "hub_errors", "object_store", "partial_file", "remote_file",
    "store_cache", "store_download", "transfer",
}  # fmt: skip

# What each layer may import beside the standard library: modules of the engine, other packages.
LAYERS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "pure": (PURE, PURE, set()),
    "device": (DEVICE, PURE | DEVICE, {"torch", "numpy", "safetensors", "multilora_kernels"}),
    "text": (TEXT, PURE | TEXT, {"multilora_text"}),
    "engine": (
        ENGINE,
        PURE | DEVICE | TEXT | ENGINE,
        {"torch", "numpy", "safetensors", "multilora_kernels", "multilora_text"}
        | {"huggingface_hub", "fsspec", "llguidance"},
    ),
}
TRITON_MODELS = {"model.py"}  # the only files that know the Triton server
KERNEL_PACKAGES = {"torch", "triton", "numpy", "multilora_kernels"}
CLIENT_PACKAGES = {  # of each package below client/
    "multilora_client": {"grpc", "tritonclient", "numpy"},
    "multilora_text": {"tokenizers", "jinja2"},
    "multilora_gateway": {"grpc", "tritonclient", "multilora_client", "multilora_text", "fastapi",
                          "starlette", "pydantic", "uvicorn", "prometheus_client"},
}  # fmt: skip


def modules_imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import absolutely"
            assert node.module is not None
            if "." in node.module:
                yield node.module
            else:  # `from multilora import scheduler` names a module too
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages_imported(path: Path) -> set[str]:
    """Top-level packages outside the standard library."""
    return {name.partition(".")[0] for name in modules_imported(path)} - sys.stdlib_module_names


def sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)


def engine_sources() -> list[Path]:
    return [p for p in sources(ENGINE_ROOT / "multilora") if p.name != "__init__.py"]


def all_sources() -> list[Path]:
    roots = ("kernels", "client", "model_repository", "scripts", "tests")
    return [path for root in roots for path in sources(ROOT / root)]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", engine_sources(), ids=name_of)
def test_an_engine_module_imports_only_from_its_layer_down(path: Path) -> None:
    layer = next((name for name, (members, *_) in LAYERS.items() if path.stem in members), None)
    assert layer, f"{path.stem} is new: place it in PURE, DEVICE, TEXT or ENGINE of {__file__}"
    _, modules, packages = LAYERS[layer]
    allowed = {f"multilora.{module}" for module in modules}
    engine_imports = {
        ".".join(name.split(".")[:2])
        for name in modules_imported(path)
        if name.partition(".")[0] == "multilora"
    }
    assert engine_imports <= allowed, f"{path.stem} is {layer} and must not import from above"
    assert packages_imported(path) - {"multilora"} <= packages, f"{path.stem} is {layer}"


@pytest.mark.parametrize("path", sources(ROOT / "model_repository"), ids=name_of)
def test_only_the_triton_models_know_the_triton_server(path: Path) -> None:
    if path.name not in TRITON_MODELS or path.parent.name != "1":
        assert "triton_python_backend_utils" not in packages_imported(path)


@pytest.mark.parametrize("path", sources(KERNELS_ROOT), ids=name_of)
def test_a_kernel_knows_tensors_only(path: Path) -> None:
    assert packages_imported(path) <= KERNEL_PACKAGES


@pytest.mark.parametrize("path", sources(CLIENT_ROOT), ids=name_of)
def test_a_client_knows_nothing_of_the_engine(path: Path) -> None:
    package = path.relative_to(CLIENT_ROOT).parts[0]
    assert packages_imported(path) <= CLIENT_PACKAGES[package] | {package}


@pytest.mark.parametrize("root", [KERNELS_ROOT, CLIENT_ROOT], ids=name_of)
def test_a_source_root_is_not_a_package(root: Path) -> None:
    assert not (root / "__init__.py").exists()


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


def test_the_scheduler_does_not_need_torch() -> None:
    code = "import sys, multilora.scheduling.scheduler; sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ENGINE_ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr or "multilora.scheduling.scheduler imported torch"
