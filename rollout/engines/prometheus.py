"""Reading one counter of a /metrics page (Prometheus text format 0.0.4)."""

from __future__ import annotations


def counter_total(text: str, name: str) -> float:
    """The sum of a counter over its labels; 0 where it is not on the page."""
    total = 0.0
    for line in text.splitlines():
        if line.startswith(name) and line[len(name) : len(name) + 1] in ("{", " "):
            total += float(line.rpartition("}")[2].split()[0] if "{" in line else line.split()[1])
    return total
