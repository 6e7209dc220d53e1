"""Inside a fresh offline sandbox, as the worker: the agent's work, written to stdout as one stream.

Nobody believes this output, and nothing in the workspace is believed here: no configuration, hook, filter,
index flag, exclude list, graft or replacement of the agent's repository counts, because its git directory is
never used as one. Objects are read through alternates of a git directory of our own; references are parsed
here; everything that git will open is looked at with lstat first, since a FIFO would hang it. Nothing else of
the session is alive, so what was looked at stays as it is. The workspace is only read.

Protocol: docs/architecture.md, "Out". Failure is one ``error`` record, a line on stderr and status 1.

Its parts (``clsecure.privileged.exporter``) lie beside it in root's own directory. It looks nowhere else.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__":
    sys.dont_write_bytecode = True
    # Behind the standard library, for which nothing in there can stand in.
    sys.path.append(HERE)

from clsecure.privileged.exporter.run import main

if __name__ == "__main__":
    sys.exit(main())
