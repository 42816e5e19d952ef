"""The import contracts of pyproject.toml hold, and fail when broken; imports are light and have no effect."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("flows", "tasks", "demo", "dinov2")
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
for name in {packages!r}:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` with this interpreter in `folder`."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages in `folder`."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)


@pytest.fixture
def tree(tmp_path: Path, repository: Path) -> Path:
    """A copy of the packages that may be broken."""
    for package in PACKAGES:
        shutil.copytree(repository / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(repository / "pyproject.toml", tmp_path)
    return tmp_path


def test_contracts_hold(repository):
    result = lint_imports(repository)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("dinov2/models/vit.py", "import dinov2.losses.dino", "Layers"),
        ("dinov2/store/__init__.py", "import dinov2.shards", "Layers"),
        ("dinov2/eval/knn.py", "from dinov2.train import loop", "Layers"),
        ("tasks/dedup.py", "from tasks.filter import VERSION as OTHER", "Stages never import stages"),
        ("tasks/crawl.py", "def late():\n    import prefect", "prefect only in flows"),
        ("tasks/evaluate.py", "import mlflow", "mlflow only in"),
        ("flows/repro.py", "import submitit", "submitit only in"),
        ("dinov2/curation/dedup/components.py", "import faiss", "faiss only in"),
        ("dinov2/data/params.py", "import torch", "Params modules are torch-free"),
        ("dinov2/losses/koleo.py", "from dinov2.params import Params", "A loss takes tensors"),
        ("dinov2/report/page.py", "import demo.tiles", "The demo's input is apart"),
        ("dinov2/hub.py", "def late():\n    import timm", "timm and transformers are compared with"),
    ],
)
def test_broken_contract_is_found(tree, module, line, contract):
    path = tree / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    result = lint_imports(tree)
    assert result.returncode == 1
    broken = [row for row in result.stdout.splitlines() if " BROKEN" in row]
    assert len(broken) >= 1 and any(row.startswith(contract) for row in broken), result.stdout


def test_submitting_process_imports_neither_torch_nor_mlflow(repository):
    heavy = ["torch", "mlflow", "prefect", "sklearn", "scipy", "matplotlib", "faiss", "onnxruntime"]
    code = IMPORT_EVERYTHING.format(packages=("tasks",)) + f"\nprint([m for m in {heavy} if m in sys.modules])"
    result = run_python(code, repository)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_no_import_has_an_effect(tree):
    before = sorted(tree.rglob("*"))
    code = "import sys; sys.dont_write_bytecode = True\nimport os, random, logging\nenvironment = dict(os.environ)\n"
    code += "state = random.getstate()\n" + IMPORT_EVERYTHING.format(packages=("demo", "tasks", "dinov2"))
    code += "assert random.getstate() == state, 'random'\nassert not logging.getLogger().handlers, 'logging'\n"
    code += "changed = {k for k in os.environ if os.environ[k] != environment.get(k)}\n"
    code += "print(sorted(k for k in changed if k.startswith(('DINOV2', 'OMP', 'CUDA', 'MLFLOW', 'PREFECT'))))"
    result = run_python(code, tree)
    assert result.returncode == 0, result.stderr
    assert (result.stdout.strip(), result.stderr) == ("[]", "")
    assert sorted(tree.rglob("*")) == before
