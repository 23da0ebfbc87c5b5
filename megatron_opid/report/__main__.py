"""`python -m megatron_opid.report RUN_DIR...` writes report.html in each; `--compare NAME=RUN_DIR,...` draws arms."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_opid.report.compare import parse_arm, write_comparison
from megatron_opid.report.html import write_report


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for input that cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        if options.compare:
            print(write_comparison([parse_arm(text) for text in options.inputs], options.out))
        else:
            for run_dir in options.inputs:
                print(write_report(run_dir, _load_tokenizer(options.tokenizer)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m megatron_opid.report", description=__doc__)
    parser.add_argument("inputs", nargs="+", help="run directories; with --compare, NAME=RUN_DIR[,RUN_DIR...] (seeds)")
    parser.add_argument("--tokenizer", help="Hugging Face directory; prompts are then shown as the model saw them")
    parser.add_argument("--compare", action="store_true", help="draw mean and spread over seeds of each NAME")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help=".html, .svg or .png, with --compare")
    return parser


def _load_tokenizer(path: str | None):
    if path is None:
        return None
    if not Path(path).is_dir():
        raise ValueError(f"--tokenizer {path}: no such directory")
    from transformers import AutoTokenizer  # seconds to import, and only needed here

    return AutoTokenizer.from_pretrained(path, local_files_only=True)


if __name__ == "__main__":
    sys.exit(main())
