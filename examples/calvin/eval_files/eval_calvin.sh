#!/usr/bin/env bash
# The benchmark's 1000 chains, in the simulator's environment: sim_python. Needs CALVIN_ROOT (a checkout of mees/calvin),
# DATASET (task_ABC_D or another, for validation/.hydra) and CHAINS (see write_chains.py). Further words go to
# vla-rollout. At the end the success by length of the chain and by task.
set -euo pipefail
if [[ "${1:-}" == --help ]]; then sed -n '2,/^set/s/^# \?//p' "$0"; exit; fi
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
cd "$here/../../.."
sim="${sim_python:-python}" out="${OUT:-runs/calvin/rollout}"
"$sim" -c "import vla_serve" 2>/dev/null || {
  echo "sim_python: $sim has no vla-serve; examples/calvin/README.md says how to install it" >&2; exit 1
}
"$sim" -m vla_serve.rollout_cli --address "127.0.0.1:${PORT:-${port:-10093}}" --env calvin --task calvin \
  --episodes "${EPISODES:-1000}" --seed 0 --workers "${WORKERS:-2}" --execute_steps "${EXECUTE_STEPS:-8}" --out "$out" \
  --env.dataset "${DATASET:?CALVIN data}" --env.repository "${CALVIN_ROOT:?a checkout of mees/calvin}" \
  --env.chains "${CHAINS:?what write_chains.py wrote}" "$@"
"$sim" "$here/chain_lengths.py" "$out/results.json" "$CHAINS"
