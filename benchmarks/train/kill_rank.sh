#!/bin/bash
# Kills one of two ranks while they exchange gradients by NCCL, and shows what the other says and how it ends.
# Each rank is started by hand: a launcher would end the other itself.
#   bash benchmarks/train/kill_rank.sh [steps before the kill, default 30] [further words of vla-train]
cd "$(dirname "$0")/../.." || exit 1
steps=${1:-30}
out=$(mktemp -d)
export MASTER_ADDR=127.0.0.1 MASTER_PORT=29741 WORLD_SIZE=2 LOCAL_WORLD_SIZE=2
PYTHONPATH="$(python -c '
import sys
sys.path.insert(0, "benchmarks/train")
from pathlib import Path
from _packages import environment
print(environment(Path(sys.argv[1]))["PYTHONPATH"])' "$out")"
export PYTHONPATH
python - "$out" <<'PY'
import json, sys
sys.path.insert(0, "benchmarks/train")
from curve import MIDDLE
config = {
    "framework": MIDDLE,
    "datasets": {"train": [{"name": "lerobot", "path": "examples/data/metaworld_faucet", "cache": "ram"}],
                 "val_fraction": 0, "num_workers": 2},
    "trainer": {"max_steps": 100000, "batch_size": 16, "log_every": 1, "val_every": 0, "precision": "bf16"},
    "run_root_dir": sys.argv[1], "run_id": "run", "trackers": ["jsonl"],
}
open(sys.argv[1] + "/config.json", "w").write(json.dumps(config))
PY
for rank in 0 1; do
  RANK=$rank LOCAL_RANK=$rank python -m vla_train --config "$out/config.json" "${@:2}" \
    >"$out/out-$rank" 2>"$out/err-$rank" &
  pids[rank]=$!
done
for _ in $(seq 200); do
  [ "$(cat "$out/run/metrics.jsonl" 2>/dev/null | wc -l)" -ge "$steps" ] && break
  kill -0 "${pids[0]}" 2>/dev/null || break
  sleep 0.5
done
kill -9 "${pids[1]}"
began=$SECONDS
wait "${pids[0]}"
code=$?
echo "rank 1 was killed after $(wc -l <"$out/run/metrics.jsonl") steps"
echo "rank 0 ended $((SECONDS - began)) s later with exit code $code and said:"
cat "$out/err-0" | tail -5
rm -rf "$out"
