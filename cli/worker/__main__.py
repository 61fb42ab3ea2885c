"""`python -m cli.worker assets pipeline ...` runs the background work of several services in one
process.

That saves the memory of one interpreter with all libraries per service. On larger machines run
`python -m services.<name> work`.
"""

import importlib
import sys

import uvloop

from shared import main, telemetry
from shared.settings import WrongSetting, load


def run(names: list[str]) -> None:
    telemetry.set_up("worker", load(names[0]).log_level)
    workers = [
        (name, load(name), importlib.import_module(f"services.{name}.__main__").work)
        for name in names
    ]
    try:
        uvloop.run(main.run_workers(workers))
    except WrongSetting as problem:
        sys.exit(f"atelier: {problem}")


if __name__ == "__main__":
    run(sys.argv[1:])
