"""Measures how many expressions of services and shared are of type Any, from mypy's report.

    mypy services shared --any-exprs-report DIR && python tools/any_share.py DIR

mypy doesn't check what is Any: a missing column, a None, a wrong message pass unseen.
"""

import sys
from pathlib import Path

LIMIT_PERCENT = 2.0


def share(report: str) -> float:
    """Returns the percentage. The report's columns: module, Any expressions, expressions,
    coverage."""
    lines = [line.split() for line in report.splitlines() if line.strip()]
    counted = [line for line in lines if line[0].split(".")[0] in ("services", "shared")]
    anys, expressions = (sum(int(line[column]) for line in counted) for column in (1, 2))
    return 100 * anys / expressions


def main() -> None:
    percent = share((Path(sys.argv[1]) / "any-exprs.txt").read_text())
    print(f"Any: {percent:.2f} % of the expressions of services and shared")
    if percent > LIMIT_PERCENT:
        sys.exit(f"more than {LIMIT_PERCENT} %: name the types, or see tools/any_share.py")


if __name__ == "__main__":
    main()
