"""What every rank of the layout tests runs: many cases in one process group. Rank 0 writes results for pytest to compare.

Usage: python -m tests.actor.rank_main <directory of models> <results.json>, with torchrun's environment.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_opid.actor.actor import Actor
from megatron_opid.actor.checkpoint import CheckpointError, latest_checkpoint
from megatron_opid.actor.samples import PolicySample, ScoreRequest
from megatron_opid.algorithm.losses import LossCoefficients
from megatron_opid.config import ActorConfig, OptimizerConfig
from megatron_opid.weights.hf import HfWeights
from megatron_opid.weights.hf_config import parse_hf_config, read_hf_config
from tests.actor.layouts import LAYOUTS, TEMPERATURE
from tests.actor.tiny_models import MODELS, VOCAB_SIZE, make_sequences

COEFFICIENTS = LossCoefficients(kl=0.01, entropy=0.01, distillation=0.1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, schedule="cosine", warmup_steps=2)
NUM_UPDATES = 4


@contextmanager
def actor_of(models: Path, model: str, **options: Any) -> Iterator[Actor]:
    options = {"device": "cpu", "precision": "fp32", "tokens_per_micro_batch": 80} | options
    config = ActorConfig(model=str(models / model), **options)
    actor = Actor(
        config, OPTIMIZER, num_training_steps=10, temperature=TEMPERATURE, with_reference=True, timeout_s=120
    )
    try:
        yield actor
    finally:
        actor.close()


def make_samples(actor: Actor, count: int = 11) -> list[PolicySample]:
    """Samples with every term; old log-probs as `score` gives them."""
    sequences = make_sequences(count)
    scores = actor.score([ScoreRequest(sequence) for sequence in sequences])
    generator = np.random.default_rng(1)
    total = sum(map(len, scores))
    return [
        PolicySample(
            sequence=sequence,
            old_logprobs=old,
            advantages=generator.normal(size=len(old)),
            reference_logprobs=old + generator.normal(size=len(old)) * 0.1,
            correction=generator.uniform(0.5, 1.5, len(old)),
            teacher_delta=generator.normal(size=len(old)),
            distillation_weights=np.full(len(old), 1 / total),
        )
        for sequence, old in zip(sequences, scores, strict=True)
    ]


def train(actor: Actor, samples: list[PolicySample], num_updates: int) -> list[dict[str, float]]:
    return [actor.update(samples, COEFFICIENTS, aggregation="seq-mean-token-mean") for _ in range(num_updates)]


def layout_case(models: Path, model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Scores, export, four updates, one SFT update."""
    with actor_of(models, model, **options) as actor:
        sequences = make_sequences(11)
        scores = actor.score([ScoreRequest(sequence) for sequence in sequences])
        exported = export_equals_source(actor, models / model)
        updates = train(actor, make_samples(actor), NUM_UPDATES)
        reference = actor.score([ScoreRequest(sequence, "reference") for sequence in sequences])
        return {
            "scores": [score.tolist() for score in scores],
            "export_is_bitwise": exported,
            "updates": updates,
            "reference_is_bitwise": all(map(np.array_equal, scores, reference)),
            "moved": float(np.abs(np.concatenate(scores) - np.concatenate(score_all(actor))).max()),
            "sft": actor.update_sft(sequences),
        }


def score_all(actor: Actor) -> list[np.ndarray]:
    return actor.score([ScoreRequest(sequence) for sequence in make_sequences(11)])


def export_equals_source(actor: Actor, directory: Path) -> bool:
    shape = parse_hf_config(read_hf_config(directory))
    source = HfWeights(directory, shape)
    equal = {name: torch.equal(tensor, source.get(name)) for name, tensor in actor.export()}
    return all(equal.values()) and len(equal) == len(MODEL_TENSORS[directory.name])


def few_samples_case(models: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Fewer samples than data-parallel ranks: some micro-batches are empty."""
    with actor_of(models, "qwen3_tied", **options) as actor:
        return {"updates": train(actor, make_samples(actor, 3), 2)}


def mixed_pass_case(models: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Old log-probs of two updates, teachers and reference in one call: the first ratio of each update is exactly 1."""
    with actor_of(models, "qwen3_tied", **options) as actor:
        sequences, teachers = make_sequences(14), make_sequences(9, seed=5)
        requests = [ScoreRequest(sequence, batch=index // 7) for index, sequence in enumerate(sequences)]
        requests += [ScoreRequest(sequence, batch=2) for sequence in teachers]
        requests += [ScoreRequest(sequence, "reference") for sequence in sequences]
        scores = actor.score(requests)
        samples = [
            PolicySample(sequence, old, np.ones(len(old)), reference_logprobs=reference)
            for sequence, old, reference in zip(sequences, scores[:14], scores[23:], strict=True)
        ]
        with_old_weights = [actor_ratio(actor, samples[:7]), None]
        return {"deviation": with_old_weights[0], "num_scores": len(scores)}


def actor_ratio(actor: Actor, samples: list[PolicySample]) -> float:
    return actor.update(samples, COEFFICIENTS)["max_ratio_deviation"]


def resume_case(models: Path, directory: Path, saved: dict[str, Any], resumed: dict[str, Any]) -> dict[str, Any]:
    """Two updates, save, two more; and the last two again from the checkpoint in another actor."""
    with actor_of(models, "qwen3_tied", **saved) as actor:
        samples = make_samples(actor)
        train(actor, samples, 2)
        actor.save(directory, 2, {"cursor": 17, "names": ["a"]})
        uninterrupted = train(actor, samples, 2)
        weights = {name: tensor.clone() for name, tensor in actor.export()}
    with actor_of(models, "qwen3_tied", **resumed) as actor:
        trainer_state = actor.load(latest_checkpoint(directory))
        continued = train(actor, samples, 2)
        differences = [float((weights[name] - tensor).abs().max()) for name, tensor in actor.export()]
    return {
        "trainer_state": trainer_state,
        "uninterrupted": uninterrupted,
        "continued": continued,
        "max_weight_difference": max(differences),
    }


def single_rank_cases(models: Path) -> dict[str, Any]:
    """What needs no second rank."""
    results: dict[str, Any] = {}
    with actor_of(models, "qwen3_untied") as actor:
        context = make_sequences(1)[0].prompt_ids
        everything = [ScoreRequest(type(make_sequences(1)[0])(context, np.array([token]))) for token in range(VOCAB_SIZE)]
        results["whole_vocabulary"] = np.concatenate(actor.score(everything)).tolist()
        before = score_all(actor)
        spoil_padding(actor)
        results["padding_leaks"] = not all(map(np.array_equal, before, score_all(actor)))
        actor.save_hf(models / "exported")
        results["export_files"] = sorted(path.name for path in (models / "exported").iterdir())
        actor.save(models / "checkpoints_single", 1, {})
    with actor_of(models, "qwen3_tied") as actor:
        results["refusal"] = refusal(actor, models / "checkpoints_single")
        checkpoints = models / "checkpoints_killed"
        if checkpoints.exists():
            results["after_kill"] = actor.load(latest_checkpoint(checkpoints))
        for step in range(1, 4):
            actor.save(models / "checkpoints_kept", step, {}, keep=2)
        results["kept"] = sorted(path.name for path in (models / "checkpoints_kept").iterdir())
    return results


def spoil_padding(actor: Actor) -> None:
    """Huge values in the embedding's and the head's padding rows."""
    with torch.no_grad():
        for name, tensor in actor._parameters.tensors.items():
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                tensor[VOCAB_SIZE:] = 100.0


def refusal(actor: Actor, directory: Path) -> str:
    try:
        actor.load(latest_checkpoint(directory))
    except CheckpointError as error:
        return str(error)
    return ""


def agree_on_all_ranks(result: Any) -> Any:
    """Every rank must have got the same result, bit for bit."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, json.dumps(result))
    print(time.process_time(), time.monotonic(), flush=True)
    if len(set(gathered)) > 1:
        raise AssertionError(f"ranks disagree: {gathered}")
    return result


def run(models: Path) -> dict[str, Any]:
    world = int(__import__("os").environ["WORLD_SIZE"])
    results: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        if layout.num_ranks == world:
            for model in layout.models:
                print(name,model)
                results[f"{name}/{model}"] = agree_on_all_ranks(layout_case(models, model, layout.options))
    if world == 1:
        results["single"] = single_rank_cases(models)
    if world == 2:
        tp2, dp2 = LAYOUTS["tp2_sp"].options, LAYOUTS["dp2"].options
        results["resume_same"] = resume_case(models, models / "resume_same", tp2, tp2)
        results["resume_tp2_as_dp2"] = resume_case(models, models / "resume_dp2", tp2, dp2)
        results["resume_dp2_plain"] = resume_case(
            models, models / "resume_plain", LAYOUTS["dp2_plain"].options, LAYOUTS["dp2_plain"].options
        )
        results["mixed_pass"] = mixed_pass_case(models, LAYOUTS["pp2"].options)
    if world == 4:
        results["few_samples"] = few_samples_case(models, {})
    return results


if __name__ == "__main__":
    models_dir, results_path = map(Path, sys.argv[1:])
    MODEL_TENSORS = json.loads((models_dir / "tensors.json").read_text())
    outcome = run(models_dir)
    if dist.get_rank() == 0:
        results_path.write_text(json.dumps(outcome))
    dist.barrier()
    dist.destroy_process_group()
