"""What happened to the engines of a pool: faults by kind, returns, requests that moved, and the busy share."""

from __future__ import annotations

import time
from collections import Counter

FAULT_KINDS = ("dead", "hanging", "slow", "garbage", "refused", "stale", "aborted")


class PoolEvents:
    """Counts since the last `drain`; every key is always there, so that none appears halfway through a run."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._out_since_s: dict[str, float] = {}
        self._seconds_out = 0.0

    def fault(self, kind: str) -> None:
        self._counts[f"num_faults/{kind}"] += 1

    def taken_out(self, url: str) -> None:
        self._out_since_s[url] = time.monotonic()

    def returned(self, url: str) -> None:
        self._counts["num_returns"] += 1
        self._seconds_out += time.monotonic() - self._out_since_s.pop(url)

    def moved(self) -> None:
        self._counts["num_moved_requests"] += 1

    def restarted(self) -> None:
        self._counts["num_restarts"] += 1

    def drain(self) -> dict[str, float]:
        """Events since the last call, and `seconds_out`: how long engines were out, added up over them."""
        now_s = time.monotonic()
        for url, since_s in self._out_since_s.items():
            self._seconds_out += now_s - since_s
            self._out_since_s[url] = now_s
        values = {f"num_faults/{kind}": float(self._counts[f"num_faults/{kind}"]) for kind in FAULT_KINDS}
        values |= {
            "num_moved_requests": float(self._counts["num_moved_requests"]),
            "num_returns": float(self._counts["num_returns"]),
            "num_restarts": float(self._counts["num_restarts"]),
            "seconds_out": self._seconds_out,
        }
        self._counts.clear()
        self._seconds_out = 0.0
        return values
