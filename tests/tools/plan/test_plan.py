"""The plan: parameter counts, a case computed by hand, directions in which figures must move, refusals."""

import json
from dataclasses import replace

import pytest

from megatron_opid.config import ActorConfig, Config, OptimizerConfig
from tools.plan.__main__ import main
from tools.plan.check import all_checks
from tools.plan.communication import gradient_traffic, ring, tensor_traffic
from tools.plan.compute import layer_time
from tools.plan.constants import constant, gpu
from tools.plan.layout import Layout
from tools.plan.memory import StageParameters, stage_parameters, trainer_memory
from tools.plan.phases import Trainer
from tools.plan.shape import PUBLISHED_MODELS, Sizes
from tools.plan.workload import Workload

PUBLISHED_COUNTS = {
    "Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-32B": 32_762_123_264,
    "Qwen3-30B-A3B": 30_532_122_624,
}
TINY = {
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "vocab_size": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
}
RUN = ["experiment=alfworld_qwen3_1_7b", "gpus=8"]


def planned(capsys, *words) -> dict:
    main([*words, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameters_are_the_published_count(name):
    assert Sizes.of(PUBLISHED_MODELS[name]).parameters == PUBLISHED_COUNTS[name]


def test_a_case_by_hand():
    """Two layers of H 8, Q 8, K 4, F 16 on two ranks of TP 2: every figure counted on paper."""
    sizes = Sizes.of(TINY)
    # q 8·8, k and v 4·8 each, o 8·8; gate, up, down 3·8·16; norms 2·8 and q/k norms 2·4
    assert (sizes.layer.split, sizes.layer.replicated) == (192 + 384, 24)
    assert sizes.parameters == 2 * 600 + 8 + 2 * 128 * 8
    actor = ActorConfig(tensor_parallel=2, tokens_per_micro_batch=10)
    layout = Layout.of(actor, 2)
    held = 2 * (288 + 24) + 2 * 128 * 8 / 2 + 8
    assert stage_parameters(sizes, layout, "only").total == held
    memory = trainer_memory(sizes, layout, actor, OptimizerConfig(), row_share=0.2, reference=True)
    # saved by a layer: 4 H + (2 Q + 2 K + Q + K + 3 F) / 2 = 32 + (24 + 12 + 48) / 2; two layers and two more in work
    assert memory.parts == {
        "parameters": 2 * held,
        "gradients": 4 * held,
        "optimizer": 12 * held,
        "activations": 10 * 2 * 4 * 74,
        # 2 rows: tiles 2·2·64, d weight 4·64·8, d hidden 2·2·8
        "head": 256 + 2048 + 32,
        "reserved": constant("reserved_bytes"),
    }
    assert memory.host == {"reference": 2 * held, "optimizer": 0}


def test_ring_and_tensor_traffic_by_hand():
    assert ring(100.0, 4, 1.0).bytes == 75
    assert ring(100.0, 1, 1.0).seconds == 0
    layout = Layout.of(ActorConfig(tensor_parallel=2, sequence_parallel=True), 2)
    # [10, 8] in bf16, half of it sent, four times forward and six times backward
    assert tensor_traffic(Sizes.of(TINY), layout, 10, backward=False).bytes == 4 * 80
    assert tensor_traffic(Sizes.of(TINY), layout, 10, backward=True).bytes == 6 * 80


def test_collectives_across_nodes_are_bound_by_network_cards():
    nvlink, nic = constant("nvlink_bytes_per_s"), constant("nic_bytes_per_s")
    layout = Layout.of(ActorConfig(tensor_parallel=8), 64)
    assert layout.bandwidth(8, 1) == nvlink
    assert layout.bandwidth(8, 8) == nic  # one member a node
    assert layout.bandwidth(16, 2) == 4 * nic  # four members a node
    assert layout.bandwidth(64, 1) == min(nvlink, 8 * nic)


def test_operations_do_not_depend_on_the_layout():
    sizes = Sizes.of(PUBLISHED_MODELS["Qwen3-8B"])
    one = layer_time(sizes, Layout.of(ActorConfig(), 1), gpu("h200"), tokens=16384, sequence_tokens=1024)
    split = Layout.of(ActorConfig(tensor_parallel=8, sequence_parallel=True), 8)
    eight = layer_time(sizes, split, gpu("h200"), tokens=16384, sequence_tokens=1024)
    assert one.flops == eight.flops
    assert one.forward_s > eight.forward_s >= constant("layer_floor_s")


def test_optimizer_is_sharded_over_replicas_and_gradients_are_not():
    sizes, actor = Sizes.of(TINY), ActorConfig(tokens_per_micro_batch=10)
    one, eight = (
        trainer_memory(sizes, Layout.of(actor, n), actor, OptimizerConfig(), row_share=0.1, reference=False).parts
        for n in (1, 8)
    )
    assert eight["optimizer"] == one["optimizer"] / 8
    assert eight["gradients"] == one["gradients"]
    whole = replace(actor, distributed_optimizer=False)
    kept = trainer_memory(sizes, Layout.of(whole, 8), whole, OptimizerConfig(), row_share=0.1, reference=False).parts
    assert kept["optimizer"] == one["optimizer"]


def test_gradients_of_one_replica_cost_nothing():
    held = StageParameters(1e9, 0.0)
    assert gradient_traffic(held, Layout.of(ActorConfig(tensor_parallel=8), 8), ActorConfig()).seconds == 0


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("actor.recompute=none", "activations"),
        ("actor.tokens_per_micro_batch=32768", "activations"),
        ("actor.distributed_optimizer=false", "optimizer"),
    ],
)
def test_settings_that_need_more_memory(capsys, change, part):
    before, after = planned(capsys, *RUN), planned(capsys, *RUN, change)
    assert after["trainer_memory"]["parts"][part] > before["trainer_memory"]["parts"][part]
    others = set(before["trainer_memory"]["parts"]) - {part, "head"}
    assert all(after["trainer_memory"]["parts"][o] == before["trainer_memory"]["parts"][o] for o in others)


def test_directions_of_time(capsys):
    base = planned(capsys, *RUN)
    more_episodes = planned(capsys, *RUN, "rollout.tasks_per_step=32")
    more_gpus = planned(capsys, RUN[0], "gpus=16")
    no_recompute = planned(capsys, *RUN, "actor.recompute=none")
    no_reference = planned(capsys, *RUN, "algorithm.kl_coefficient=0")
    rules = planned(capsys, *RUN, "skills.analyzer=rules")
    assert more_episodes["phases"]["update"]["seconds"] > base["phases"]["update"]["seconds"]
    assert more_episodes["rollout"]["seconds"] > base["rollout"]["seconds"]
    assert more_gpus["phases"]["score"]["seconds"] < base["phases"]["score"]["seconds"]
    assert no_recompute["phases"]["update"]["seconds"] < base["phases"]["update"]["seconds"]
    assert "reference" not in no_reference["phases"]
    # Scoring by the reference is one of two things that happen while the analyzer is waited for.
    assert no_reference["step_s"] == pytest.approx(base["step_s"])
    hidden = base["phases"]["reference"]["seconds"] + base["phases"]["score"]["seconds"] / 2
    assert base["step_s"] - rules["step_s"] == pytest.approx(20.0 - hidden, abs=0.1)
    reused = planned(capsys, *RUN, "algorithm.old_logprob=reuse", "actor.updates_per_step=1")
    assert reused["analyzer_s"] == pytest.approx(20.0 - base["phases"]["reference"]["seconds"], abs=0.1)
    apart = ("engine.placement=disaggregated", "engine_gpus=8", "rollout.one_step_off=true")
    ahead = planned(capsys, *RUN, *apart, "algorithm.correction=truncate")
    trained_s = sum(ahead["phases"][name]["seconds"] for name in ("score", "reference", "update"))
    assert ahead["analyzer_s"] == pytest.approx(20.0 - trained_s, abs=0.1) and trained_s < 20.0


@pytest.mark.parametrize(
    ("pipeline", "virtual", "num_samples", "expected"),
    [(2, 1, 24, 8), (2, 2, 24, 8), (4, 1, 24, 9), (4, 2, 24, 8), (4, 2, 8, 4), (2, 1, 240, 24)],
)
def test_micro_batches_are_those_that_the_actor_makes(pipeline, virtual, num_samples, expected):
    """Of samples of 1,600 tokens, 16,384 to a micro-batch: a pipeline has four to a stage where that leaves each 4,096
    tokens, interleaved a multiple of its stages."""
    actor = ActorConfig(pipeline_parallel=pipeline, virtual_pipeline_parallel=virtual)
    workload = Workload(
        num_episodes=num_samples,
        max_steps=1,
        mean_steps=1.0,
        prompt_tokens=1501,
        response_tokens=100,
        policy_contexts=1.0,
        reference_contexts=0.0,
        num_updates=1,
        num_analyses=0,
    )
    sizes = Sizes.of(PUBLISHED_MODELS["Qwen3-8B"])
    trainer = Trainer(Config(actor=actor), sizes, Layout.of(actor, pipeline), gpu("h200"), workload)
    parts = trainer.score(num_samples * 1600, num_samples * 100).parts
    bubble = parts.pop("pipeline bubble") * virtual / (pipeline - 1)  # one micro-batch
    assert sum(parts.values()) / bubble == pytest.approx(expected)


def test_what_does_not_fit_comes_with_a_way_out(capsys):
    words = ["experiment=alfworld_qwen3_32b_4nodes", "gpus=16", "engine_gpus=16", "gpu=h100", "actor.recompute=none"]
    assert main([*words, "actor.tensor_parallel=4"]) == 1
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    report = planned(capsys, *words, "actor.tensor_parallel=4")
    assert not report["fits"]
    first = report["alternatives"][0]["set"].split()
    assert main([*words, "actor.tensor_parallel=4", *first]) == 0


def test_all_faults_of_a_call_come_by_name(capsys):
    assert main(["experiment=alfworld_qwen3_1_7b", "gpus=many", "gpu=a100"]) == 2
    text = capsys.readouterr().err
    assert "gpus='many'" in text
    assert "gpu='a100'" in text
    assert main([*RUN, "actor.model=nobody/knows"]) == 2
    assert "actor.model='nobody/knows'" in capsys.readouterr().err
    assert main(["experiment=demo", "gpus=1"]) == 2
    assert "a demo makes its own" in capsys.readouterr().err
    assert main(["experiment=demo", "gpus=1", "actor.model=Qwen3-0.6B"]) == 0
    assert "actor.device=cpu: this is the plan of the same run on GPUs" in capsys.readouterr().out
    assert main([*RUN, "actor.tensor_parallel=3"]) == 2
    assert "actor.tensor_parallel=3" in capsys.readouterr().err


def test_predictions_stay_as_close_to_the_measurements_as_documented():
    """docs/plan.md: big passes of the head within 10%, small ones 30%, models on one GPU 20%, on two 23%, but for the
    pipeline with small micro-batches."""
    for check in all_checks():
        bound = 0.1 if check.figure.startswith("head") else 0.2
        if check.figure.endswith("TP2, update"):
            bound = 0.25
        if "micro-batches of 4,096" in check.figure and not check.figure.endswith("memory"):
            bound = 0.4
        if "two scores and a loss on 4," in check.figure:
            bound = 0.3
        assert abs(check.error) < bound, check
