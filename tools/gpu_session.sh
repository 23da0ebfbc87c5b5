#!/usr/bin/env bash
# What is measured of rollout engines on GPUs, in one go of a few minutes: check, measure, table.
#
#   bash tools/gpu_session.sh vllm|sglang OUT_DIR          one GPU
#   bash tools/gpu_session.sh vllm|sglang OUT_DIR two      a second GPU is there
#
# One engine per Python environment: vLLM and SGLang pin different versions of the same packages. vLLM's ipc back end
# imports ray, whether it is used or not: where it is not installed, an empty module of that name will do. Each part
# goes on when another fails and leaves OUT_DIR/NAME.log; the last lines are the table.
set -uo pipefail
engine=$1 out=$2 gpus=${3:-one}
mkdir -p "$out"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
if [ "$engine" = vllm ] && ! python -c 'import ray' 2>/dev/null; then
  mkdir -p "$out/stand_in" && touch "$out/stand_in/ray.py"
  export PYTHONPATH=$out/stand_in:${PYTHONPATH:-}
fi

part() { # NAME SECONDS COMMAND...: its output in a log, its result in one line
  local name=$1 seconds=$2; shift 2
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit code $? after ${SECONDS} s of the session"
}

marker=gpu; [ "$gpus" = two ] && marker="gpu or multi_gpu"
part check 300 python -m pytest -q -m "$marker" tests/rollout/engines/test_gpu.py

# Weight sync and sleep at the size of the targets (8B shape).
sync=(python -m tools.bench_weight_sync --dialect "$engine" --shape 8b)
part sync_ipc 240 "${sync[@]}" --transport ipc --json "$out/weight_sync_ipc_$engine.json"
if [ "$gpus" = two ]; then
  part sync_nccl 240 "${sync[@]}" --transport nccl --json "$out/weight_sync_nccl_$engine.json"
fi

# 128 episodes of up to 30 steps, against lock step; the analyzer takes 2 s. Qwen3-0.6B's layers with random weights and
# the small vocabulary of the games; 16 of its ids end a response, which makes lengths geometric (35 tokens in the mean).
python - "$out/model" <<'PY'
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools import bench_rollout
from tools.bench_weight_sync import make_config

out = Path(sys.argv[1])
world = out.with_name("world")
world.mkdir()
tokenizer = AutoTokenizer.from_pretrained(bench_rollout.make_world(world, None)[1])  # of the games' own text
config = make_config("0.6b")
config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(out)
tokenizer.save_pretrained(out)
PY
part rollout 300 python -m tools.bench_rollout --dialect "$engine" --gpus 1 --model "$out/model" --dtype bfloat16 \
  --response-tokens 128 --stop-tokens 16 --batch 128 --json "$out/rollout_$engine.json"

echo "== table"
tail -n 3 "$out/check.log"
python - "$out" <<'PY'
import json
import sys
from pathlib import Path

for path in sorted(Path(sys.argv[1]).glob("*.json")):
    report = json.loads(path.read_text())
    figures = report.get("summary") or {k: v for k, v in report["figures"].items() if k != "asleep"}
    print(path.name, json.dumps(figures))
    for entry in report["figures"].get("asleep", [])[-1:]:
        share = entry["given_back_gib"] / (entry["given_back_gib"] + entry["left_gib"])
        print(f"  asleep: {entry['given_back_gib']:.1f} GiB given back, {share:.1%} of what was held besides the trainer")
PY
