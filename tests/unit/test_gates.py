"""The project's own rules, as tests: what fails here fails for everybody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("name", ["helper.py", "launcher.py", "unpack.py", "export.py"])
def test_privileged_files_import_the_standard_library_only(name):
    tree = ast.parse((CHECKOUT / "clsecure" / "privileged" / name).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            imported.add((node.module or "").partition(".")[0])
    assert imported <= sys.stdlib_module_names


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
