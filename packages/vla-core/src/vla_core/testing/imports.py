"""What an import brings in, seen in fresh processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping

# torch and vla_core take seconds to import and are not what is counted: each fork starts with them.
_PROGRAM = """
import json, os, sys, torch, vla_core.interfaces, vla_core.registry
statements, package = json.load(sys.stdin)
found = {}
for name, statement in statements.items():
    read, write = os.pipe()
    child = os.fork()
    if not child:
        exec(statement)
        modules = [m for m in sys.modules if m == package or m.startswith(package + ".")]
        with os.fdopen(write, "w") as out:
            json.dump(modules, out)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        found[name] = answer.read()
    if os.waitpid(child, 0)[1]:
        sys.exit("failed: " + statement)
print(json.dumps({name: json.loads(modules) for name, modules in found.items()}))
"""


def imported_by(statements: Mapping[str, str], package: str) -> dict[str, set[str]]:
    """Modules of ``package`` that each statement imports, on top of torch and vla_core.

    Args:
        statements: name -> Python source.
        package: root name.

    Raises:
        CalledProcessError: a statement fails; its traceback is on standard error.
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([dict(statements), package]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return {name: set(modules) for name, modules in json.loads(done.stdout).items()}
