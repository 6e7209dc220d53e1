"""Inside an offline sandbox, as the worker: receive what was cloned in.

``python3 -I -S unpack.py DIRECTORY < stream``. The stream comes from the host and is trusted; what may lie in
the worker's home from a former session is not: git reads no configuration of it, and files for the home are
written without following a symlink. The format is in docs/architecture.md, "In".

Status 0: done. 1: failed, one line on stderr says why, and nothing is left in DIRECTORY. 3: DIRECTORY holds
something already and was not touched.

Its parts (``clsecure.privileged.unpacker``) lie beside it in root's own directory. It looks nowhere else.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
if __name__ == "__main__":
    sys.dont_write_bytecode = True
    # Behind the standard library, for which nothing in there can stand in.
    sys.path.append(HERE)

from clsecure.privileged.unpacker.run import main

if __name__ == "__main__":
    sys.exit(main(portable=os.path.join(HERE, "portable.py")))
