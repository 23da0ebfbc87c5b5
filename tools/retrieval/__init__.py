"""The parts of the retrieval server: back ends, batching, HTTP."""
