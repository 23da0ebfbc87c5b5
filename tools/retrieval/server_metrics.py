"""What /metrics reports, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)


class ServerMetrics:
    """Counters of one server."""

    def __init__(self, num_documents: int) -> None:
        self._registry = CollectorRegistry()
        registry = {"registry": self._registry}
        self.requests = Counter(
            "retrieval_requests", "Answered requests to /retrieve by status", ["status"], **registry
        )
        self.queries = Counter("retrieval_queries", "Queries searched for", **registry)
        self.latency = Histogram("retrieval_request_seconds", "From arrival to answer", buckets=_SECONDS, **registry)
        self.batches = Histogram(
            "retrieval_batch_queries",
            "Queries searched for together",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            **registry,
        )
        self.waiting = Gauge("retrieval_waiting_queries", "Queries that wait for a thread", **registry)
        Gauge("retrieval_documents", "Documents in the index", **registry).set(num_documents)

    def text(self) -> bytes:
        """The current values."""
        return generate_latest(self._registry)
