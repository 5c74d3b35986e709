"""Frozen contracts: `python -m data_contracts.snapshot` writes those that are new, and refuses changed ones.

A reader of an old artifact relies on what its version meant. So a contract that changes gets a new version,
and the snapshot of the old one stays.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from data_contracts import ALL_CONTRACTS
from data_contracts.contract import Contract

FROZEN = Path(__file__).parent / "frozen"


def snapshot_path(contract: Contract, folder: Path = FROZEN) -> Path:
    """`frozen/documents.v1.json`."""
    return folder / f"{contract.name}.v{contract.version}.json"


def snapshot_text(contract: Contract) -> str:
    """The content of the snapshot."""
    return json.dumps(contract.describe(), indent=1, sort_keys=True) + "\n"


def problems(contracts: Iterable[Contract] = ALL_CONTRACTS, folder: Path = FROZEN) -> list[str]:
    """What is not frozen as it is now, each with what to do about it."""
    found = []
    for contract in contracts:
        path = snapshot_path(contract, folder)
        if not path.exists():
            found.append(f"{contract.identity} is not frozen: run python -m data_contracts.snapshot")
        elif path.read_text(encoding="utf-8") != snapshot_text(contract):
            found.append(
                f"{contract.identity} differs from {path.name}: bump its version to {contract.version + 1}"
            )
    return found


def write_new(contracts: Iterable[Contract] = ALL_CONTRACTS, folder: Path = FROZEN) -> list[Path]:
    """Write snapshots that do not exist yet; never touches one that does."""
    folder.mkdir(exist_ok=True)
    written = []
    for contract in contracts:
        path = snapshot_path(contract, folder)
        if not path.exists():
            path.write_text(snapshot_text(contract), encoding="utf-8")
            written.append(path)
    return written


if __name__ == "__main__":
    for new in write_new():
        print(f"frozen: {new.name}")
    left = problems()
    print("\n".join(left), file=sys.stderr)
    sys.exit(1 if left else 0)
