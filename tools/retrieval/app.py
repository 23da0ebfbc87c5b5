"""The HTTP interface: POST /retrieve, GET /health, GET /metrics.

/retrieve takes {"queries": [...], "topk": 3, "return_scores": true} or {"query": "...", ...}, the two forms that
published trainers send, and answers {"result": [[...], ...]} with one list for each query (one for `query`). An entry
is {"document": {"id", "contents"}, "score"} with return_scores, else the document alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from envs.search.corpus import Corpus
from tools.retrieval.backends import Backend
from tools.retrieval.batching import Batcher, Busy
from tools.retrieval.server_metrics import ServerMetrics

MAX_BODY_BYTES = 4 << 20
_METRICS_TYPE = "text/plain; version=0.0.4"


class RetrieveRequest(BaseModel):
    """The body of /retrieve."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str | None = None
    queries: list[str] | None = Field(None, max_length=4096)
    topk: int | None = Field(None, ge=1, le=1000)
    return_scores: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> RetrieveRequest:
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either query or queries")
        return self


class _Refused(Exception):
    """A request that gets no documents."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Service:
    """Answers requests over one back end and its corpus."""

    def __init__(
        self, backend: Backend, corpus: Corpus, *, topk: int, num_threads: int, max_batch: int, max_waiting: int
    ) -> None:
        self._backend = backend
        self._corpus = corpus
        self._topk = topk
        self.metrics = ServerMetrics(backend.num_documents)
        self.batcher = Batcher(
            self._search,
            num_threads=num_threads,
            max_batch=max_batch,
            max_waiting=max_waiting,
            observe_batch=self.metrics.batches.observe,
        )
        self.metrics.waiting.set_function(lambda: self.batcher.num_waiting)

    def _search(self, queries: list[str], topk: int) -> list[list[dict[str, Any]]]:
        """In a search thread: the documents, read there too, because that may wait for the disk."""
        return [
            [
                {"document": {"id": document.id, "contents": document.contents}, "score": score}
                for document, score in ((self._corpus[number], score) for number, score in ranking)
            ]
            for ranking in self._backend.search(queries, topk)
        ]

    async def retrieve(self, http_request: Request) -> bytes:
        """The body of the answer."""
        try:
            request = RetrieveRequest.model_validate_json(await _body(http_request))
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            raise _Refused(422, "; ".join(faults)) from error
        queries = request.queries if request.queries is not None else [request.query]
        if len(queries) > self.batcher.max_waiting:
            raise _Refused(413, f"{len(queries)} queries are more than the {self.batcher.max_waiting} that may wait")
        try:
            results = await self.batcher.submit(queries, request.topk or self._topk)
        except Busy as error:
            raise _Refused(429, f"{self.batcher.num_waiting} queries are waiting; try again") from error
        self.metrics.queries.inc(len(queries))
        if not request.return_scores:
            results = [[entry["document"] for entry in result] for result in results]
        return orjson.dumps({"result": results})


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    return bytes(body)


def make_app(service: Service, backend_name: str, num_documents: int) -> FastAPI:
    """The application; ends its threads when the server stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.batcher.close()

    app = FastAPI(title="retrieval", lifespan=lifespan)

    @app.post("/retrieve")
    async def retrieve(request: Request) -> Response:
        start_s, status = time.perf_counter(), 500
        try:
            status, body = 200, await service.retrieve(request)
        except _Refused as refused:
            status, body = refused.status, orjson.dumps({"detail": str(refused)})
        finally:  # a fault of the back end goes on to uvicorn, which answers 500 and logs it
            service.metrics.requests.labels(str(status)).inc()
            service.metrics.latency.observe(time.perf_counter() - start_s)
        headers = {"Retry-After": "1"} if status == 429 else None
        return Response(body, status, headers, "application/json")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "backend": backend_name, "num_documents": num_documents}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=_METRICS_TYPE)

    return app
