"""The cold start: `python -m megatron_opid.sft sft.demonstrations=FILE actor.model=DIR ...`; resumes like training.

Next-token loss on the assistant's last turn of each conversation, on the same actor, head and checkpoints as training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_opid.actor.samples import TokenSequence
from megatron_opid.config import Config, resolve_model
from megatron_opid.launch import entry_point, rank_main
from megatron_opid.preflight import sft_faults
from rollout.prompt import encode_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def fine_tune(config: Config) -> int:
    """One rank's part of the cold start; returns its exit code."""
    # Slow to import: by now the configuration is known to be sound.
    from contextlib import closing

    import torch.distributed as dist
    from transformers import AutoTokenizer

    from megatron_opid.actor.actor import Actor
    from megatron_opid.run import Run

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.actor.model), local_files_only=True)
    sequences = read_sequences(Path(config.sft.demonstrations), tokenizer, config.rollout.max_prompt_tokens)
    actor = Actor(
        config.actor,
        config.optimizer,
        num_training_steps=config.run.num_steps,
        seed=config.run.seed,
        timeout_s=config.run.rank_timeout_s,
    )
    with closing(actor), Run(config, actor, entry_point="sft", rank=dist.get_rank()) as run:
        for step in run.steps():
            shuffled = np.random.default_rng((config.run.seed, step)).permutation(len(sequences))
            chosen = [sequences[index] for index in shuffled[: config.sft.samples_per_step]]
            if step < config.sft.all_token_share * config.run.num_steps:
                chosen = [every_token(sequence) for sequence in chosen]
            with run.timer("update"):
                statistics = actor.update_sft(chosen)
            run.record(step, {"actor": statistics})
        run.finish(tokenizer)
    return run.exit_code


def read_sequences(path: Path, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int) -> list[TokenSequence]:
    """One sequence per conversation: all turns but the last as the prompt, the last, with its end, as the response."""
    sequences = []
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            *context, answer = json.loads(line)["messages"]
            prompt = encode_chat(tokenizer, context, max_prompt_tokens)
            response = [*tokenizer.encode(answer["content"], add_special_tokens=False), tokenizer.eos_token_id]
            sequences.append(TokenSequence(np.array(prompt), np.array(response)))
    return sequences


def every_token(sequence: TokenSequence) -> TokenSequence:
    """The same tokens, all but the first of them to be learned."""
    prompt, response = sequence.prompt_ids, sequence.response_ids
    return TokenSequence(prompt[:1], np.concatenate([prompt[1:], response]))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return entry_point("megatron_opid.sft", fine_tune, arguments or sys.argv[1:], find_faults=sft_faults)


if __name__ == "__main__":
    rank_main(main)
