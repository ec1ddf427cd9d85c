"""Run the supervisor by file path: ``python -I -S run_supervisor.py FOLDER ORDER``.

Importing ``projections`` would load drivers and an event store into a process that needs neither
and lives as long as the server. An empty stand-in for each parent package lets the supervisor
import its neighbours without running the parents' own code.
"""

import sys
import types
from pathlib import Path

if __name__ == "__main__":
    _here = Path(__file__).resolve().parent
    for _name, _path in (("projections", _here.parent), ("projections.embedded", _here)):
        _stand_in = types.ModuleType(_name)
        _stand_in.__path__ = [str(_path)]
        sys.modules[_name] = _stand_in

    from projections.embedded.supervisor import main

    main(*sys.argv[1:])
