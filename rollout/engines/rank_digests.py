"""The digests of a server's weights, of which each of its ranks has a part, against what was sent."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping

from rollout.weight_sync.digest import compare

logger = logging.getLogger(__name__)

# A routed expert's weight by its Hugging Face name.
EXPERT = re.compile(r"\.experts\.\d+\.")


def compare_ranks(url: str, sent: Mapping[str, int], parts: Iterable[Mapping[str, str]]) -> str:
    """Add up what each rank says of its shards, modulo 2^64, and compare; returns a checksum of all.

    A mixture's routed experts are not compared (`worker_shards.shards` says why), and counted in the log.

    Raises:
        DigestMismatch: a weight's digest is not the one in `sent`.
    """
    held: dict[str, int] = {}
    for part in parts:
        for name, value in part.items():
            held[name] = (held.get(name, 0) + int(value)) % 2**64
    unknown = {name for name in sent if name not in held and EXPERT.search(name)}
    if unknown:
        logger.warning(
            "%s: %d of %d weights are fused experts, of which it keeps no digest: they are not compared",
            *(url, len(unknown), len(sent)),
        )
    compare({name: value for name, value in sent.items() if name not in unknown}, held)
    return f"{sum(held.values()) % 2**64:016x}"
