"""The cold start: `python -m megatron_opid.sft sft.demonstrations=FILE actor.model=DIR ...`; resumes like training.

Next-token loss on the assistant's last turn of each conversation, on the same actor, head and checkpoints as training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from megatron_opid.config import Config, resolve_model
from megatron_opid.launch import entry_point, rank_main
from megatron_opid.preflight import sft_faults


def fine_tune(config: Config) -> int:
    """One rank's part of the cold start; returns its exit code."""
    from contextlib import closing

    import numpy as np
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from megatron_opid.actor.actor import Actor
    from megatron_opid.run import Run

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.actor.model), local_files_only=True)
    sequences = _read_sequences(Path(config.sft.demonstrations), tokenizer, config.rollout.max_prompt_tokens)
    actor = Actor(
        config.actor,
        config.optimizer,
        num_training_steps=config.run.num_steps,
        temperature=1.0,
        seed=config.run.seed,
        with_reference=False,
        timeout_s=config.run.rank_timeout_s,
    )
    with closing(actor), Run(config, actor, rank=dist.get_rank()) as run:
        for step in run.steps():
            epoch_order = np.random.default_rng((config.run.seed, step)).permutation(len(sequences))
            chosen = epoch_order[: config.sft.samples_per_step]
            with run.timer("update"):
                statistics = actor.update_sft([sequences[index] for index in chosen])
            run.record(step, {"actor": statistics})
        run.finish(tokenizer)
    return run.exit_code


def _read_sequences(path: Path, tokenizer, max_prompt_tokens: int) -> list:
    from megatron_opid.actor.samples import TokenSequence
    from rollout.prompt import encode_chat

    sequences = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            *context, answer = json.loads(line)["messages"]
            prompt = encode_chat(tokenizer, context, max_prompt_tokens)
            response = tokenizer.encode(answer["content"], add_special_tokens=False) + [tokenizer.eos_token_id]
            sequences.append(TokenSequence(prompt, tuple(response)))
    return sequences


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return entry_point("megatron_opid.sft", fine_tune, arguments or sys.argv[1:], find_faults=sft_faults)


if __name__ == "__main__":
    rank_main(main)
