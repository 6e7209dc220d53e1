"""The project's own rules, as tests: what fails here fails for everybody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from clsecure.installation import PIECES
from tests.support.person import CHECKOUT

_BIN = Path(sys.executable).parent
_GATES = {
    "ruff": [sys.executable, "-P", "-m", "ruff", "check", "--output-format=concise", "."],
    "format": [sys.executable, "-P", "-m", "ruff", "format", "--check", "."],
    "mypy": [sys.executable, "-P", "-m", "mypy"],
    "imports": [str(_BIN / "lint-imports"), "--no-cache"],
}


@pytest.mark.parametrize("gate", _GATES)
def test_gate_passes(gate):
    done = subprocess.run(
        _GATES[gate], cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"


_INSTALLED = [piece.source for piece in PIECES if piece.source.endswith(".py")]
_ROOTS = "clsecure.privileged.root"


@pytest.mark.parametrize("name", _INSTALLED)
def test_privileged_files_import_the_standard_library_only(name):
    """What root executes is in several modules, which may import each other."""
    tree = ast.parse((CHECKOUT / "clsecure" / name).read_text())
    is_roots = name == "privileged/helper.py" or name.startswith("privileged/root/")
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            imported.add(node.module or "")
    others = {module for module in imported if module.partition(".")[0] not in sys.stdlib_module_names}
    assert {module for module in others if not (is_roots and module.startswith(f"{_ROOTS}."))} == set()


def test_everything_of_roots_is_installed():
    files = {f"privileged/root/{path.name}" for path in (CHECKOUT / "clsecure/privileged/root").glob("*.py")}
    assert files <= set(_INSTALLED)


def test_roots_modules_bring_nothing_else_of_the_package_along():
    program = (
        f"import sys; sys.path.append({str(CHECKOUT)!r}); import {_ROOTS}.sandbox; "
        "print(*(name for name in sys.modules if name.startswith('clsecure')))"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-B", "-c", program], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert {"clsecure", "clsecure.privileged", _ROOTS, f"{_ROOTS}.sandbox"} <= set(done.stdout.split())
    assert all(n in (_ROOTS, *_parents(_ROOTS)) or n.startswith(f"{_ROOTS}.") for n in done.stdout.split())


def _parents(module):
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


@pytest.mark.parametrize("script", ["dev", ".ci/run"])
def test_shell_scripts_parse(script):
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(CHECKOUT / script)], check=True, timeout=30)


def test_lock_files_name_no_index_and_hash_everything():
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (CHECKOUT / name).read_text()
        assert "://" not in text
        requirements = [line for line in text.splitlines() if not line.startswith(" ")]
        assert requirements
        assert all(line.endswith("\\") for line in requirements)
