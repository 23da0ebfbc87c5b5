#!/usr/bin/env bash
# What is checked and measured on a machine with GPUs, part by part: check, measure, table.
#
#   bash tools/gpu_session.sh OUT_DIR PART...
#
# Parts of one GPU:
#   actor    the actor's GPU tests                                        3 min on an H200
#   bench    the actor against FSDP peers, in sizes that fit the card     8 min
#   cold     games, demonstrations and the cold start of demo_gpu         2 min; train parts run it where it is missing
#   vllm | sglang                  the engine's GPU tests                 3 min; SGLang's 4 on an H100 with 16 cores
#   train-vllm | train-sglang      demo_gpu with it                       5 min
#   evaluate-vllm | evaluate-sglang  the cold start's held-out games by its servers and by transformers  4 min, as reckoned
#   sync-vllm | sync-sglang        weight sync and sleep, 8B's shape      2 min
#   rollout-vllm | rollout-sglang  128 episodes against lock step         7 min, as reckoned
# Parts of two GPUs, with the engine that is installed (minutes on H200s, four pairs at work):
#   two-layouts   the LM head and every layout of the actor               8 min
#   two-bench     1.7B on one and two GPUs, 4B and 8B on two              7 min
#   two-engine    pushes by NCCL into a real server                       4 min
#   two-sync      NCCL sync of 8B's shape, by size of bucket              4 min
#   two-train-WAY STEPS (8) steps of demo_gpu from the cold start         3 min, the first one 2 more
#                   WAY: plain, one_step_off, continue: its engine on the second GPU; colocated: over both GPUs
#
# Nothing starts that would not end within LIMIT_S seconds (540) of this script's start. Work lies in /tmp/gpu_session;
# into OUT_DIR go FIRST_PART.tar.gz (logs, stacks of what hung, raw figures) and FIRST_PART.txt (the table). The exit
# code is 1 if anything failed or did not start. Packages may come in a folder .gpu, which its unpack.sh unpacks.
#
# Nothing else may use the GPUs: vLLM gives up where its free memory grows while it starts. One engine per Python
# environment: vLLM and SGLang pin different versions of the same packages. vLLM's ipc back end imports ray, whether it
# is used or not: where it is not installed, an empty module of that name will do. NVLink multicast stays as the machine
# has it (NCCL_NVLS_ENABLE=0 on a shared host).
set -uo pipefail
if (($# < 2)); then sed -n '2,/^set/p' "$0"; exit 2; fi
mkdir -p "$1"
out=$(realpath "$1"); shift
work=/tmp/gpu_session
logs=$work/$1
rm -rf "$logs"
mkdir -p "$logs" "$work/stand_in"
cd "$(dirname "$0")/.." || exit
LIMIT_S=${LIMIT_S:-540}

# Parts side by side share what is unpacked and built.
(
  flock 9
  [ ! -d .gpu ] || [ -f /tmp/site/path ] || bash .gpu/unpack.sh .gpu >/dev/null
) 9>"$work/site.lock"
[ ! -f /tmp/site/path ] || PYTHONPATH=$(cat /tmp/site/path):${PYTHONPATH:-}
export PYTHONPATH=$PWD:${PYTHONPATH:-}
if ! python3 -c 'import ray' 2>/dev/null; then
  touch "$work/stand_in/ray.py"
  PYTHONPATH=$PYTHONPATH:$work/stand_in
fi
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore GLOO_SOCKET_IFNAME=lo
# A hang: Python's stacks at the signal that `run` sends, NCCL's flight recorder where a collective times out.
export PYTHONFAULTHANDLER=1 NCCL_DEBUG=WARN TORCH_FR_BUFFER_SIZE=2000 TORCH_NCCL_DUMP_ON_TIMEOUT=1
export TORCH_FR_DUMP_TEMP_FILE=$logs/nccl_trace_rank_ TORCH_NCCL_DEBUG_INFO_TEMP_FILE=$logs/nccl_trace_rank_
ulimit -c 0
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)"
# Large models only: handles of device memory (ipc) do not go with it.
expandable=PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

seconds_left() { # MOST: that, or what is left of the call
  local left=$((LIMIT_S - SECONDS))
  echo $((left < $1 ? left : $1))
}

failed=0 # 1 as soon as something did

run() { # NAME SECONDS COMMAND...: its output in a log, its result in one line
  local name=$1 seconds started=$SECONDS status
  seconds=$(seconds_left "$2"); shift 2
  if ((seconds < 30)); then
    echo "$name: not started, $SECONDS s are spent"
    failed=1
    return 1
  fi
  timeout -s ABRT -k 15 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  echo "$name: exit code $status, $((SECONDS - started)) s; $SECONDS s of the session"
  ((status == 0)) || failed=1
  return "$status"
}

warm() { # Once on a machine: modules into the file cache, the fused LM head built by nvcc
  (
    flock 9
    [ -f "$work/warm" ] || run warm 180 python3 -c '
import torch
import transformer_engine.pytorch
from megatron_opid.actor import actor
from megatron_opid.kernels.linear_logprob import linear_logprob

hidden, weight = (torch.randn(rows, 64, dtype=torch.bfloat16, device="cuda") for rows in (64, 512))
print(linear_logprob(hidden, weight, torch.arange(64, device="cuda"), backend="cuda")[0].sum())
' && touch "$work/warm"
  ) 9>"$work/warm.lock" || failed=1
}

demo() { # STAGE [ARM OVERRIDE...]: a stage of the GPU demo, as tools.demo runs it
  python3 - "$work/demo" "$@" <<'PY'
import sys
from pathlib import Path

from tools import demo

root, stage, *overrides = sys.argv[1:]
Path(root).mkdir(exist_ok=True)
plan = demo.Demo(Path(root), 0, overrides[0] if overrides else "opid", "alfworld_gpu")
if stage == "cold":
    demo.prepare(plan)
else:
    demo.ARMS[plan.arm] = overrides[1:]
    demo.train(plan)
PY
}
export -f demo
export work

cold() { # Once on a machine
  (
    flock -w "$(seconds_left 300)" 9 || exit
    [ -d "$work/demo/sft_0/hf" ] || run cold 240 bash -c 'demo cold'
  ) 9>"$work/cold.lock"
}

train() { # ARM SECONDS OVERRIDE...: demo_gpu from the cold start, with the files that tell how it went
  local arm=$1 seconds=$2 status; shift 2
  cold || return 1
  run "train_$arm" "$seconds" bash -c 'demo train "$@"' demo "$arm" run.hang_report_s=90 "$@"
  status=$?
  mkdir -p "$logs/$arm"
  find "$work/demo/${arm}_0" \( -name '*.jsonl' -o -name '*.log' -o -name '*.txt' -o -name config.yaml \) -size -4M \
    -not -path '*/trajectories/*' -exec cp {} "$logs/$arm" \;
  return "$status"
}

bench_model() { # Qwen3-0.6B's layers, random weights, the games' small vocabulary
  rm -rf "$work/model" "$work/world"
  python3 - "$work/model" "$work/world" <<'PY'
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import bench_rollout
from tools.bench_weight_sync import make_config

out, world = map(Path, sys.argv[1:])
world.mkdir()
torch.manual_seed(0)  # what a random model answers decides how much of a prompt is in the prefix cache
tokenizer = AutoTokenizer.from_pretrained(bench_rollout.make_world(world, None)[1])  # of the games' own text
config = make_config("0.6b")
config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
with torch.device("cuda"):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(out)
tokenizer.save_pretrained(out)
PY
}

bench_actor() { # MODEL BATCH[_SUFFIX] OPTION...
  local model=$1 batch=$2; shift 2
  run "bench_$model-$batch" 200 env $expandable python3 -m tools.bench_actor --model "qwen3-$model" \
    --batch "${batch%%_*}" --repeats 5 --json "$logs/actor_${model}_$batch.json" "$@"
}

bench_actor_x2() { # NAME MODEL BATCH OPTION...; torchrun's own sessions are out of reach of `run`'s signal
  local name=$1 model=$2 batch=$3 seconds; shift 3
  seconds=$(seconds_left 130)
  port=$((port + 1))
  run "bench_x2_$name" 150 env $expandable OMP_NUM_THREADS=8 python3 -m torch.distributed.run --nproc-per-node 2 \
    --master-port $port --no-python timeout -s ABRT -k 5 $((seconds - 10)) python3 -m tools.bench_actor \
    --model "qwen3-$model" --batch "$batch" --repeats 5 --json "$logs/actor_x2_$name.json" "$@"
}
port=$((29600 + $$ % 100 * 20))

visible() { python3 -c 'from megatron_opid.servers import visible_gpus as v; print(*v())'; }
read -ra gpus <<<"$(visible)"
mib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
roomy=$((${mib:-0} > 100000)) # an H200; an H100 has 81,559 MiB
installed_engine() { python3 -c 'import importlib.util as i; print("vllm" if i.find_spec("vllm") else "sglang")'; }

bench() { # States take 18 bytes a parameter: 67 GiB of 4B, 137 GiB of 8B
  bench_actor 0.6b agentic --sequences 48
  bench_actor 1.7b agentic --sequences 24
  if ((roomy)); then
    bench_actor 4b agentic --sequences 24
    bench_actor 4b agentic_fp8 --sequences 24 --no-peers --set actor.fp8=current
    bench_actor 4b long --sequences 8 --no-peers
    # Host memory: the part of the optimizer that is offloaded, and its pinned gradients.
    bench_actor 8b agentic --sequences 48 --no-peers --set optimizer.offload_fraction=0.6 actor.tokens_per_micro_batch=8192
  else
    local small=(actor.recompute=full actor.tokens_per_micro_batch=8192)
    bench_actor 4b agentic_recomputed --sequences 24 --no-peers --set "${small[@]}"
    bench_actor 4b agentic_recomputed_fp8 --sequences 24 --no-peers --set "${small[@]}" actor.fp8=current
    bench_actor 4b long_recomputed --sequences 8 --no-peers --set actor.recompute=full
  fi
}

two_bench() { # GiB are estimates of the fullest card, by one-GPU figures of an H200
  local tp2=(actor.tensor_parallel=2 actor.sequence_parallel=true)
  bench_actor 1.7b agentic_alone --sequences 96 --no-peers                                                     # 54 GiB
  bench_actor_x2 1.7b_dp2 1.7b agentic --sequences 96 --set actor.overlap_communication=true                   # 45 GiB
  bench_actor_x2 1.7b_pp2 1.7b agentic --sequences 96 --no-peers \
    --set actor.pipeline_parallel=2 actor.tokens_per_micro_batch=8192                                          # 35 GiB
  bench_actor_x2 4b_tp2 4b agentic --sequences 48 --no-peers --set "${tp2[@]}"                                 # 58 GiB
  if ((roomy)); then
    bench_actor_x2 4b_cp2_long 4b long --sequences 8 --no-peers --set actor.context_parallel=2                 # 73 GiB
    bench_actor_x2 8b_tp2 8b agentic --sequences 48 --no-peers --set "${tp2[@]}"                              # 106 GiB
  else
    local small=(actor.recompute=full actor.tokens_per_micro_batch=8192)
    bench_actor_x2 4b_cp2_long 4b long --sequences 8 --no-peers \
      --set actor.context_parallel=2 actor.recompute=mlp                                                       # 56 GiB
    local failed_before=$failed
    bench_actor_x2 8b_tp2 8b agentic --sequences 48 --no-peers --set "${tp2[@]}" "${small[@]}" || {            # 72 GiB
      failed=$failed_before # it may not fit
      bench_actor_x2 8b_tp2_offload 8b agentic --sequences 48 --no-peers \
        --set "${tp2[@]}" "${small[@]}" optimizer.offload_fraction=0.25                                        # 60 GiB
    }
  fi
}

two_train() { # WAY ENGINE: the trainer on the first GPU and the server on the second, or both on both
  local apart=(engine.placement=disaggregated engine.sync=nccl run.num_processes=1)
  local off=("${apart[@]}" rollout.one_step_off=true algorithm.correction=truncate) own
  case $1 in
    plain) own=("${apart[@]}") ;;
    one_step_off) own=("${off[@]}") ;;
    continue) own=("${off[@]}" rollout.across_updates=continue) ;;
    colocated) own=(engine.tensor_parallel=2 run.num_processes=2) ;;
    *) echo "two-train-$1 is no part" >&2; return 2 ;;
  esac
  train "$1" 300 engine.name="$2" run.num_steps="${STEPS:-8}" "${own[@]}"
}

part() { # PART
  local last=${1##*-}
  case $1 in
    actor) warm; run actor 400 python3 -m pytest -q -m gpu --basetemp "$logs/pytest" tests/actor/test_gpu.py ;;
    bench) warm; bench ;;
    cold) cold ;;
    vllm | sglang)
      run "$1" 400 python3 -m pytest -v -m gpu --basetemp "$logs/pytest" tests/rollout/engines/test_gpu.py
      ;;
    train-*) train "$last" 400 engine.name="$last" ;;
    evaluate-*)
      cold || return 1
      for engine in local "$last"; do
        run "evaluate_$engine" 240 python3 -m megatron_opid.evaluate experiment=demo_gpu engine.name="$engine" \
          actor.model="$work/demo/sft_0/hf" env.data="$work/demo/games" --games 128 --json "$logs/rates_$engine.txt"
      done
      ;;
    sync-*)
      run "$1" 240 python3 -m tools.bench_weight_sync --dialect "$last" --shape 8b --transport ipc \
        --json "$logs/weight_sync_ipc_$last.json"
      ;;
    rollout-*)
      [ -f "$work/model/tokenizer.json" ] || bench_model >"$logs/model.log" 2>&1
      # 5 of some 600 ids and the eos end a response: lengths are geometric, 100 tokens in the mean; the analyzer takes 2 s.
      run "$1" 560 python3 -m tools.bench_rollout --dialect "$last" --gpus 1 --model "$work/model" --dtype bfloat16 \
        --response-tokens 512 --stop-tokens 5 --batch 128 --json "$logs/rollout_$last.json"
      ;;
    two-layouts)
      warm
      run kernels 120 python3 -m pytest -q -m multi_gpu tests/kernels/test_gpu.py
      # Three workers to a pair of GPUs: starting up is most of a launch. Verbose: what is cut off has told its tests.
      run layouts 480 python3 -m pytest -v -m multi_gpu -n $((${#gpus[@]} * 3 / 2)) --dist loadgroup \
        --basetemp "$logs/pytest" tests/actor/test_gpu.py
      ;;
    two-bench) warm; two_bench ;;
    two-engine)
      run engine 300 python3 -m pytest -q -m multi_gpu --basetemp "$logs/pytest" tests/rollout/engines/test_gpu.py
      ;;
    two-sync)
      engine=$(installed_engine)
      for bucket in 1024 4096; do # MiB; the first is engine.bucket_mib's default
        run "sync_nccl_$bucket" 200 python3 -m tools.bench_weight_sync --dialect "$engine" --shape 8b --transport nccl \
          --bucket-mib $bucket --json "$logs/weight_sync_nccl_${engine}_$bucket.json"
      done
      ;;
    two-train-*) two_train "$last" "$(installed_engine)" ;;
    *) echo "$1 is no part; the head of this file has them" >&2; return 2 ;;
  esac
}

table() {
  for log in "$logs"/*.log; do
    printf '%s: ' "$(basename "$log" .log)"
    grep -v -e '^ *$' -e '^Extension modules' "$log" | tail -n 1 | cut -c1-200
    grep -E '^(FAILED|ERROR) ' "$log" | cut -c1-300
  done
  python3 - "$logs" <<'PY'
import json
import statistics
import sys
from pathlib import Path


def show(path):
    report = json.loads(path.read_text())
    if "actor" in report:
        ways = {name: way for name, way in report.items() if isinstance(way, dict) and "update_s" in way}
        for name, way in ways.items():
            rate = f"{way['update_tokens_per_s']:,.0f} tokens/s/GPU, {way.get('update_mfu', 0):.1%}"
            print(f"{path.name} {name}: {rate}, {way['peak_gib']:.1f} GiB")
        parts = report["actor"]["parts_s"]
        print("  parts", {name: f"{seconds / parts['total']:.1%}" for name, seconds in parts.items()})
        return
    print(path.name, json.dumps(report.get("summary") or {k: v for k, v in report["figures"].items() if k != "asleep"}))
    for entry in report["figures"].get("asleep", [])[-1:]:
        share = entry["given_back_gib"] / (entry["given_back_gib"] + entry["left_gib"])
        print(f"  asleep: {entry['given_back_gib']:.1f} GiB given back, {share:.1%} of what was held besides the trainer")


def show_training(path):
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [step for step in steps if "time/step_s" in step]
    means = {}
    for name in ("rollout/success_rate", "time/rollout_s", "time/score_s", "time/update_s", "time/weight_sync_s",
                 "time/step_s", "mismatch/logprob_abs_mean", "mismatch/max_staleness"):
        values = [step[name] for step in steps[1:] if name in step]
        means[name] = round(statistics.mean(values), 4) if values else None
    print(f"{path.parent.name}: {len(steps)} steps; means after the first: {json.dumps(means)}")


for path in sorted(Path(sys.argv[1]).glob("*.json")):
    show(path)
for path in sorted(Path(sys.argv[1]).glob("*/metrics.jsonl")):
    show_training(path)
PY
}

for name in "$@"; do part "$name" || failed=1; done
echo "== table of $*"
table 2>&1 | tee "$out/$1.txt"
nvidia-smi --query-gpu=index,name,memory.used --format=csv,noheader >"$logs/gpus.txt"
tar czf "$out/$1.tar.gz" -C "$work" --exclude models --exclude '*.safetensors' --exclude '*.pt' "$1" || failed=1
((failed == 0))
