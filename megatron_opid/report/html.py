"""From records to one HTML file that needs nothing else: no network, no other file."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from megatron_opid.metrics import RUNNING_MEAN_STEPS, write_atomically
from megatron_opid.report.episodes import browser_data, pack
from megatron_opid.report.panels import Section, every_series, sections
from megatron_opid.report.records import RunRecord, read_run
from megatron_opid.report.summary import run_facts, success_sentence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT_FILE = "report.html"


def write_report(run_dir: str | Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write `<run_dir>/report.html`, atomically, and return its path.

    With the run's tokenizer, prompts are shown as the model saw them; without, as the recorded observations.

    Raises:
        ValueError: not a run directory, or a file in it is damaged.
    """
    run = read_run(run_dir)
    path = Path(run_dir) / REPORT_FILE
    write_atomically(path, render_run(run, tokenizer))
    return path


def render_run(run: RunRecord, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
    """The HTML of one run's report."""
    browser = browser_data(run.saved_steps, tokenizer.decode if tokenizer is not None else None)
    return render_page(
        title=run.name,
        headline=success_sentence(run.metrics),
        facts=run_facts(run),
        config_text=run.config_text,
        chart_sections=sections(run.metrics),
        data={
            "metrics": every_series(run.metrics),
            "episodes": browser.index,
            "packed": browser.packed,
            "scale_nats": browser.scale_nats,
        },
        num_episodes=len(browser.index),
        num_recorded=browser.num_recorded,
    )


def render_page(
    *,
    title: str,
    headline: str,
    facts: Sequence[tuple[str, str]],
    chart_sections: Sequence[Section],
    data: dict[str, Any],
    config_text: str = "",
    num_episodes: int = 0,
    num_recorded: int = 0,
    table: Sequence[Sequence[str]] = (),
) -> str:
    """The page. Text is escaped by jinja2; data travels as base64, so nothing in it can end a script or start one.

    The page's own policy (CSP) allows only scripts that carry a random nonce, and no connection to anywhere.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("template.html").render(
        title=title,
        headline=headline,
        facts=facts,
        sections=chart_sections,
        table=table,
        config_text=config_text,
        num_episodes=num_episodes,
        num_recorded=num_recorded,
        running_mean_steps=RUNNING_MEAN_STEPS,
        nonce=secrets.token_urlsafe(16),
        packed_data=pack({**data, "sections": [asdict(section) for section in chart_sections]}),
        packed_plotly=_packed_plotly(),
    )


@cache
def _packed_plotly() -> str:
    return pack(get_plotlyjs())
