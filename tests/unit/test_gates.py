"""The project's own rules, as tests: what fails here fails for everybody."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from clsecure.installation import PIECES
from tests.support.person import CHECKOUT
from tests.support.pieces import installed

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


_INSTALLED = sorted({piece.source for piece in PIECES if piece.source.endswith(".py")})
_TARGETS = {piece.target for piece in PIECES}
_PRIVILEGED = "clsecure.privileged"
_PACKAGES = {"helper.py": "root", "export.py": "exporter", "unpack.py": "unpacker"}
"""The programs that are of several modules, and the package that these are in."""


def _allowed(name):
    """Return what the names begin with that an installed file may import besides the standard library's."""
    for program, package in _PACKAGES.items():
        if name == f"privileged/{program}" or name.startswith(f"privileged/{package}/"):
            own = f"{_PRIVILEGED}.{package}."
            return own if package == "root" else (own, f"{_PRIVILEGED}.portable")
    return ()


@pytest.mark.parametrize("name", _INSTALLED)
def test_privileged_files_import_the_standard_library_only(name):
    """What is in several modules may import these, too."""
    tree = ast.parse((CHECKOUT / "clsecure" / name).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    others = {module for module in imported if module.partition(".")[0] not in sys.stdlib_module_names}
    assert {module for module in others if not module.startswith(_allowed(name))} == set()


@pytest.mark.parametrize("package", _PACKAGES.values())
def test_every_module_of_a_program_is_installed_beside_it(package):
    files = {path.name for path in (CHECKOUT / "clsecure/privileged" / package).iterdir() if path.is_file()}
    assert {f"clsecure/privileged/{package}/{name}" for name in files} <= _TARGETS


@pytest.mark.parametrize("program", _PACKAGES)
def test_a_program_finds_its_modules_beside_itself_and_nowhere_else(program, tmp_path):
    """Whatever lies in the working directory, on PYTHONPATH or in the home; and it leaves nothing there."""
    package = f"{_PRIVILEGED}.{_PACKAGES[program]}"
    for place in ("clsecure", "json", ".local/lib/python3/site-packages/clsecure"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "__init__.py").write_text("raise SystemExit('astray')")
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-S", "-vv", installed() / program.replace("helper.py", "helper")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    loaded = set(re.findall(r"^import '(clsecure[^']*)'", done.stderr, re.MULTILINE))
    above = {"clsecure", _PRIVILEGED, package}
    assert above < loaded
    assert {name for name in loaded - above if not name.startswith(f"{package}.")} == set()
    tried = re.findall(r"^# trying (.*)$", done.stderr, re.MULTILINE)
    assert all(f"{installed()}/{name.replace('.', '/')}.py" in tried for name in loaded - above)
    assert [place for place in tried if not place.startswith(("/usr/", f"{installed()}/"))] == []
    assert list(installed().rglob("__pycache__")) == []


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
