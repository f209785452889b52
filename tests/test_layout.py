"""The direction of imports: each layer may look only at those above it in this list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["geometry", "probe", "records", "guard", "diagnosis"]
SHELLS = ["callbacks", "views", "cli"]  # over all layers; cli may also show views
MAY_SEE = {layer: set(LAYERS[:i]) for i, layer in enumerate(LAYERS)}
MAY_SEE |= {shell: set(LAYERS) for shell in SHELLS}
MAY_SEE["diagnosis"] = {"records"}  # it reads what any run has left, also where nothing else is installed
MAY_SEE["cli"] |= {"views"}
HEAVY = {"lightning", "pytorch_lightning", "tensorboard", "rich", "matplotlib", "sklearn", "transformers", "accelerate"}
HEAVY_IN = {"views": {"rich", "matplotlib"}, "views/tensorboard": {"tensorboard"}, "cli": {"sklearn", "rich"}}
HEAVY_IN |= {"callbacks/lightning": {"lightning"}, "callbacks/transformers": {"transformers"}}

FILES = sorted(p for layer in LAYERS + ["views", "cli"] for p in (ROOT / "stepguard" / layer).rglob("*.py"))
FILES += sorted((ROOT / "callbacks").rglob("*.py"))
NAMES = {path: path.relative_to(ROOT).as_posix().removeprefix("stepguard/") for path in FILES}


def layer_of(path):
    return NAMES[path].split("/")[0]


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_imports_look_one_way(path):
    layer = layer_of(path)
    for name in imports(ast.parse(path.read_text())):
        parts = name.split(".")
        if parts[0] == "stepguard" and len(parts) > 1 and parts[1] in MAY_SEE:
            assert parts[1] == layer or parts[1] in MAY_SEE[layer], f"{path} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_callbacks_of_one_trainer_know_no_other(path):
    for name in imports(ast.parse(path.read_text())):
        if name.startswith("stepguard.callbacks.") and layer_of(path) == "callbacks":
            assert NAMES[path] == "callbacks/__init__.py" or name.split(".")[2] == NAMES[path].split("/")[1]


@pytest.mark.parametrize("path", FILES, ids=NAMES.get)
def test_heavy_packages_stay_in_their_rooms(path):
    tree = ast.parse(path.read_text())
    top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    found = {name.split(".")[0] for name in imports(top)} & HEAVY
    folder = NAMES[path].rpartition("/")[0]
    room = folder if folder in HEAVY_IN else layer_of(path)
    assert found <= HEAVY_IN.get(room, set()), f"{path} imports {found} at its top"


@pytest.mark.parametrize("package", ["stepguard", "stepguard.callbacks"])
def test_import_loads_nothing_heavy(package):
    code = f"import {package}, sys; print(sorted({HEAVY | {'torch'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_guard_itself_needs_no_trainer_and_no_view():
    code = f"import sys; from stepguard import attach; print(sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_public_by_accident():
    import stepguard

    assert sorted([*stepguard.__all__, "__version__"]) == dir(stepguard)
    assert all(getattr(stepguard, name) is not None for name in stepguard.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tpyo'"):
        _ = stepguard.tpyo


def test_version_is_said_once_and_the_same():
    import stepguard

    assert f'version = "{stepguard.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_every_package_is_shipped():
    project = (ROOT / "pyproject.toml").read_text()
    packages = {"stepguard." + NAMES[path].rpartition("/")[0].replace("/", ".") for path in FILES}
    assert {name for name in packages if f'"{name}"' not in project} == set()
