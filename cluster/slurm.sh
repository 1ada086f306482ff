#!/bin/bash
#SBATCH --job-name=vrray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
# A Ray cluster on the nodes of a Slurm job, and one of vrray's jobs on it. From the root of the source, on a file system
# that all nodes share, in an environment that has vrray installed:
#   sbatch cluster/slurm.sh jobs/sweep.py --config sweep.yaml --storage /shared/runs
# Two minutes before the time is up, and on `scancel --batch`, the job saves and ends with 143; the same command goes on.
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 4000 * 2))  # nodes may be shared between jobs

step=(srun --overlap --nodes=1 --ntasks=1)

start() {  # NODE OPTION...: a Ray node, for as long as this script runs
    local node=$1
    shift
    "${step[@]}" --nodelist="$node" ray start --block --disable-usage-stats \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "$@" &
    started+=($!)
}

# shellcheck disable=SC2329  # the trap calls it
stop() {  # ends the Ray nodes: srun passes the signal on
    kill "${started[@]}" 2>/dev/null || true
    wait "${started[@]}" 2>/dev/null || true
}

started=()
trap stop EXIT
# Whoever reaches a Ray cluster without a token can run code on it. srun hands both on to every node.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_TOKEN

address=$("${step[@]}" --nodelist="${nodes[0]}" hostname -I | awk '{print $1}'):$port
start "${nodes[0]}" --head --node-ip-address="${address%:*}" --port="$port" --dashboard-port=$((port + 1)) \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID"
until ray health-check --address "$address" 2>/dev/null; do
    kill -0 "${started[0]}" 2>/dev/null || { echo "the head node on ${nodes[0]} could not start" >&2; exit 1; }
    sleep 1
done
for node in "${nodes[@]:1}"; do
    start "$node" --address="$address"
done
export RAY_ADDRESS=$address

# The plan counts the nodes that are there when it is made.
python - "${#nodes[@]}" <<'PYTHON'
import sys, time
import ray

ray.init(log_to_driver=False)
for _ in range(300):
    if len([node for node in ray.nodes() if node["Alive"]]) == int(sys.argv[1]):
        sys.exit()
    time.sleep(1)
sys.exit(f"not all of the {sys.argv[1]} nodes joined within 300 s")
PYTHON

# In the background, so that the signal reaches this script at once. It ends `wait` early, which then asks again.
python "$@" &
job=$!
trap 'signalled=1; kill -TERM "$job" 2>/dev/null || true' TERM INT
signalled=1
while [[ $signalled ]]; do
    signalled='' status=0
    wait "$job" || status=$?
done
exit "$status"
