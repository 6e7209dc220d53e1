"""The entry point of every way to start: the console script, ``python -m clsecure``, ``./dev clsecure``.

All of them should start python with ``-I``: only then does it ignore PYTHONPATH, the user's site directory
and the current directory from its very first import. Without, this file takes care of what is still to be
decided when it runs: every later import comes from where python and clsecure are installed.
"""

import os
import sys


def _trusted_path(path: list[str]) -> list[str]:
    """Return the import path without the current directory and without what PYTHONPATH named."""
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120  # pathlib is an import
    doubtful = {""}
    if not sys.flags.isolated:
        doubtful.update(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(":"))  # noqa: PTH100
        try:
            doubtful.add(os.getcwd())  # noqa: PTH109
        except OSError:
            doubtful.add("/")
    return [p for p in path if p == own or (os.path.isabs(p) and p not in doubtful)]  # noqa: PTH117


sys.path[:] = _trusted_path(sys.path)


def main() -> int:
    """Run the command line of this process and return its exit status."""
    try:
        from clsecure import interrupts
    except KeyboardInterrupt:
        return 130
    try:
        interrupts.obey()
        from clsecure.cli.main import main as run

        return run(sys.argv[1:])
    except KeyboardInterrupt:  # while importing, or a second one while the first was reported
        return 130
    except interrupts.EndedBySignal as end:
        return end.exit_code


if __name__ == "__main__":
    sys.exit(main())
