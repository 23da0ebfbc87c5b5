"""Why a job's ranks ended: `python -m slurm.errors LOGS` prints the error of the rank that failed first.

Ranks that only lost a peer come after those that failed by themselves, whatever the time; otherwise the time counts
that each wrote down. Exit code: 0 no rank failed, 1 a rank failed by itself, 75 all that failed had lost a peer: then
the machine of that peer is gone.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from megatron_opid.ranks import PEER_IS_GONE, error_file

EXIT_FAILED = 1
EXIT_LOST_A_NODE = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True, order=True)
class RankError:
    """What one rank left behind; the least is what ended the job."""

    lost_a_peer: bool
    time: datetime
    rank: int
    machine: str
    text: str


def read_errors(logs: Path) -> list[RankError]:
    """The errors of all ranks whose files lie in `logs`, the first cause first."""
    return sorted(_parse(path) for path in logs.glob(error_file(Path(), "*").name))


def summary(errors: list[RankError], logs: Path) -> str:
    """For people: the first error in full, the others in a line."""
    if not errors:
        return f"no rank left an error in {logs}"
    first, *others = errors
    lines = [f"rank {first.rank} on {first.machine} failed first, {first.time.isoformat()}:", first.text.rstrip()]
    if first.lost_a_peer:
        lines.append("no rank failed by itself: a machine or its network is gone")
    for error in others:
        after_s = (error.time - first.time).total_seconds()
        lines.append(f"{after_s:+.1f} s: rank {error.rank} on {error.machine}: {error.text.rstrip().splitlines()[-1]}")
    lines.append(f"output of every rank: {logs}/rank_*.log")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(f"usage: python -m slurm.errors LOGS, a directory; got {arguments}", file=sys.stderr)
        return 2
    logs = Path(arguments[0])
    errors = read_errors(logs)
    print(summary(errors, logs))
    if not errors:
        return 0
    return EXIT_LOST_A_NODE if errors[0].lost_a_peer else EXIT_FAILED


def _parse(path: Path) -> RankError:
    stamp, _, text = path.read_text(encoding="utf-8").partition("\n")
    time, _, machine = stamp.partition(" on ")
    rank = int(re.search(r"\d+", path.name).group())
    return RankError(any(words in text for words in PEER_IS_GONE), datetime.fromisoformat(time), rank, machine, text)


if __name__ == "__main__":
    sys.exit(main())
