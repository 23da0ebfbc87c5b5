"""One measurement of tools.bench_rollout_worker: a process that plays episodes and prints what they cost, as JSON.

Run as a script, so that `rollout` and `envs` come from PYTHONPATH: the present ones, or those of another commit.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import envs.alfworld
from envs.alfworld.games import list_games
from envs.base import Task
from rollout.agent_loop import EpisodeSettings
from rollout.engines.base import Generation, Sampling
from rollout.worker import RolloutWorker

try:
    from rollout.compact import from_compact as from_fields
    from rollout.compact import to_compact as to_fields
except ImportError:  # a commit before it
    from rollout.trajectory import from_json as from_fields
    from rollout.trajectory import to_json as to_fields

START, END = "<|im_start|>", "<|im_end|>"
# What Qwen3's template makes of one user turn with thinking off.
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '"
    + START
    + "' + message.role + '\n' + message.content + '"
    + END
    + "' + '\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '" + START + "assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
# Pieces as Qwen's tokenizers cut them: contractions, words, single digits, punctuation, line ends, blanks.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THOUGHT = (
    "The task asks for an object in another place, so I have to find it. The places where such things usually are "
    "come first; what is closed must be opened before anything in it can be seen. So far the counter and the shelves "
    "showed nothing of use. I should not go back to a place that I have already looked at, and I must not forget to "
    "treat the object before I put it down. The nearest place that is left is number {number}; from there I see the "
    "table as well. If it is not there, the drawers are next, one after the other."
)
PLACES = ("countertop", "cabinet", "drawer", "shelf", "diningtable", "fridge", "garbagecan", "desk", "bed", "sinkbasin")


class InstantEngine:
    """Answers every request at once with one of a few responses, chosen by the request's seed."""

    busy_s = 0.0

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop_id: int, seed: int = 0):
        rng = Random(seed)
        texts = [
            f"<think>\n{THOUGHT.format(number=number)}\n</think>\n<action>{action}</action>"
            for number in range(1, 9)
            for action in (f"go to {rng.choice(PLACES)} {rng.randint(1, 3)}", "inventory", "look")
        ]
        self._answers = [(*tokenizer(text, add_special_tokens=False)["input_ids"], stop_id) for text in texts]
        self._logprobs = [tuple(-rng.random() for _ in answer) for answer in self._answers]

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling, *, session: str) -> Generation:
        choice = sampling.seed % len(self._answers)
        return Generation(self._answers[choice], self._logprobs[choice], "stop", 0)

    async def counters(self) -> dict[str, float]:
        return {}


def load_tokenizer(path: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """The tokenizer at `path`, or a small one trained on `texts`; one without a chat template gets Qwen3's turns."""
    if not path:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=_train(texts), eos_token=END)
    elif Path(path).is_dir():
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
    if tokenizer.chat_template is None:
        tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Play as many episodes as run at once; CPU and wall seconds, and those of handing the record to other ranks."""
    # The text of the game files stands in for real prompts: the same words.
    texts = [path.read_text() for path in list_games(request["games"], "train")[:20]]
    tokenizer = load_tokenizer(request["tokenizer"], texts)
    stop_id = tokenizer.convert_tokens_to_ids(END)
    settings = EpisodeSettings(
        max_steps=request["turns"],
        history_length=5,
        prompt_style="full",
        max_prompt_tokens=2048,
        max_response_tokens=512,
        temperature=1.0,
        stop_token_ids=(stop_id,),
        vocab_size=len(tokenizer),
    )
    tasks = [Task("alfworld", index, 0, "train") for index in range(max(2, request["concurrency"] // 16))]
    with RolloutWorker(
        envs.alfworld,
        {"data": request["games"]},
        InstantEngine(tokenizer, stop_id),
        tokenizer,
        run_seed=0,
        num_processes=request["num_processes"],
        max_concurrent_episodes=request["concurrency"],
        progress=False,
    ) as worker:
        worker.collect_sync(tasks[:2], 2, settings, training_step=0)  # caches, processes
        profile = cProfile.Profile()
        if request.get("profile"):
            profile.enable()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        played = worker.collect_sync(tasks, 16, settings, training_step=1)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        profile.disable()
    if request.get("profile"):
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    started_s = time.process_time()
    sent = json.dumps([to_fields(trajectory) for trajectory in played])
    encoded_s = time.process_time()
    received = [from_fields(fields) for fields in json.loads(sent)]
    decoded_s = time.process_time()
    if received != played:
        raise RuntimeError("the trajectories are not what was sent")
    steps = [step for trajectory in played for step in trajectory.steps]
    failures = {trajectory.failure for trajectory in played} - {None}
    if failures:
        raise RuntimeError(f"episodes failed: {sorted(failures)[:3]}")
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "record_encode_s": encoded_s - started_s,
        "record_decode_s": decoded_s - encoded_s,
        "record_bytes": len(sent),
        "num_episodes": len(played),
        "num_steps": len(steps),
        "prompt_tokens": sum(len(step.prompt_ids) for step in steps),
        "response_tokens": sum(len(step.response_ids) for step in steps),
    }


def _train(texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    result = measure(json.loads(sys.argv[1]))
    if not json.loads(sys.argv[1]).get("profile"):
        print(json.dumps(result))
