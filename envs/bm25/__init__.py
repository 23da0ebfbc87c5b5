"""BM25 with Lucene's results: the same terms, the same scores, the same order.

`build` writes an index, `Index` searches it; WebShop's shop and the search environment's retriever stand on it.
"""

from envs.bm25.analyzer import analyze
from envs.bm25.builder import build
from envs.bm25.files import IndexFault
from envs.bm25.index import Index

__all__ = ["Index", "IndexFault", "analyze", "build"]
