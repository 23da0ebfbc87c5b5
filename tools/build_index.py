"""Builds a retrieval index over a corpus in the wiki-18 format (JSON lines, see envs/search/corpus.py).

    python -m tools.build_index --corpus wiki-18.jsonl --out indexes/wiki-18
    python -m tools.build_index --corpus wiki-18.jsonl --out indexes/wiki-18 --dense models/e5-base-v2

The corpus stays where it is; the index names it. A killed build is continued by the same command. `--dense` adds the
vectors of a sentence encoder to the same directory, exact (flat) or in inverted lists.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.extras import imports_of

with imports_of("search", __name__):
    from envs.bm25 import build
    from envs.search.corpus import BM25_DIRECTORY, describe, read_documents


def build_bm25(corpus: Path, out: Path, *, show_progress: bool) -> None:
    """The corpus description and the BM25 index of `corpus` in `out`.

    Raises:
        ValueError: a line of the corpus is not of the format, there is none, or `out` has an index of another corpus.
        FileExistsError: `out` has a BM25 index already.
    """
    if corpus.stat().st_size == 0:
        raise ValueError(f"{corpus} is empty")
    if (out / BM25_DIRECTORY).exists():
        raise FileExistsError(f"{out / BM25_DIRECTORY} exists already; remove it, or use it as it is")
    texts = (document.contents for document in read_documents(corpus))
    described = describe(corpus, out, show_progress=show_progress)
    build(
        texts,
        out / BM25_DIRECTORY,
        show_progress=show_progress,
        source=described.digest,
        num_documents=described.num_documents,
    )


def main(arguments: list[str] | None = None) -> int:
    """Build what is asked for; 0, or 2 if the corpus or the target is not usable."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dense", metavar="MODEL_DIR", help="a Hugging Face sentence encoder; BM25 where not given")
    parser.add_argument("--prefix", default="", help="before each document for the encoder (e5: 'passage: ')")
    parser.add_argument("--query-prefix", default="", help="before each query, kept in the index (e5: 'query: ')")
    parser.add_argument("--ivf-lists", type=int, default=0, help="inverted lists of the vectors; 0: flat, exact")
    parser.add_argument("--batch-size", type=int, default=64, help="documents encoded at once")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    try:
        if options.dense is None:
            build_bm25(options.corpus, options.out, show_progress=True)
        else:
            with imports_of("search", __name__):  # faiss and torch are needed here only
                from tools.retrieval.dense import build_dense
                from tools.retrieval.encoder import Encoder, EncoderOptions

            encoder = Encoder(EncoderOptions(options.dense, options.prefix, options.query_prefix), options.device)
            build_dense(options.corpus, options.out, encoder, options.ivf_lists, options.batch_size)
    except (ValueError, OSError) as error:
        print(f"build_index: {error}", file=sys.stderr)
        return 2
    print(f"{options.out}: index of {options.corpus}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
