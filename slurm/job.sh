# shellcheck shell=bash
# What the batch scripts share: the site's settings, what is derived from SLURM_* variables, and the life of a job.
# They run in the folder from which sbatch was called: the repository's root.
set -uo pipefail
# shellcheck source=slurm/site.sh
source "${MEGATRON_OPID_SITE:-slurm/site.sh}"

# ---- derived from SLURM_* ----
trainer_nodes=${SLURM_JOB_NODELIST_HET_GROUP_0:-$SLURM_JOB_NODELIST}
MASTER_ADDR=$(scontrol show hostnames "$trainer_nodes" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 5000)) # below the ports that the kernel gives out
ENGINE_HOSTS=${SLURM_JOB_NODELIST_HET_GROUP_1:+$(scontrol show hostnames "$SLURM_JOB_NODELIST_HET_GROUP_1" | xargs)}
ENGINE_PORT=$((25000 + SLURM_JOB_ID % 5000)) # of a node's first engine, the others' follow
ATTEMPT_LOGS=$LOGS/$SLURM_JOB_NAME-$SLURM_JOB_ID/attempt_${SLURM_RESTART_COUNT:-0}
CACHES=$LOCAL_SCRATCH/megatron_opid_$(id -u) # on the node's own disk: thousands of small files, locks
export MASTER_ADDR MASTER_PORT ENGINE_HOSTS ENGINE_PORT ATTEMPT_LOGS LOCAL_SCRATCH STAGE_MODELS GPUS_PER_NODE
export TRITON_CACHE_DIR=$CACHES/triton TORCHINDUCTOR_CACHE_DIR=$CACHES/inductor
export TORCH_EXTENSIONS_DIR=$CACHES/torch_extensions CUDA_CACHE_PATH=$CACHES/cuda VLLM_CACHE_ROOT=$CACHES/vllm
if [ -n "${NCCL_SOCKET_IFNAME:-}" ]; then
    export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-$NCCL_SOCKET_IFNAME}
fi
export PYTHONUNBUFFERED=1
mkdir -p "$ATTEMPT_LOGS"

# Slurm's %a in an argument, run.dir=runs/seed_%a, is the number of a job array's task.
# shellcheck disable=SC2034
arguments=("${@//%a/${SLURM_ARRAY_TASK_ID:-0}}")

# ---- software ----
# A task that ends badly ends its step; what srun itself starts is one process a node.
SRUN=(srun --kill-on-bad-exit=1 --ntasks-per-node=1 "--cpus-per-task=${SLURM_CPUS_ON_NODE:-1}")
if [ -n "$CONTAINER_IMAGE" ]; then
    SRUN+=("--container-image=$CONTAINER_IMAGE" "--container-workdir=$PWD")
    SRUN+=("--container-mounts=$PWD:$PWD,$LOGS:$LOGS,$LOCAL_SCRATCH:$LOCAL_SCRATCH${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
else
    # shellcheck disable=SC2086
    [ -z "$MODULES" ] || module load $MODULES
    # shellcheck disable=SC1091
    source "$VIRTUAL_ENVIRONMENT/bin/activate" || exit 2
fi

# ---- life ----
asked=""       # the first signal this script got
interrupted=0  # whether a signal came during the last `wait`
trainer=""     # the process that has something to save when it is asked to stop

on_signal() {
    interrupted=1
    asked=${asked:-$1}
    [ -z "$trainer" ] || kill -USR1 "$trainer" 2>/dev/null
}
trap 'on_signal USR1' USR1 # soon the time is up, or another job takes the nodes: save and requeue
trap 'on_signal TERM' TERM # scancel, or the time is up: save

# Wait for a process to end, in spite of signals; returns its exit code.
wait_for() {
    local code=0
    interrupted=1
    while [ "$interrupted" = 1 ]; do
        interrupted=0
        wait "$1"
        code=$?
    done
    return "$code"
}

# Run `python -m "$@"` as one process, in the software of the site.
run_one() {
    "${SRUN[@]}" --overlap --nodes=1 --ntasks=1 python -m "$@" &
    wait_for $!
}

requeue() {
    echo "$1; job $SLURM_JOB_ID is requeued and goes on from its last checkpoint" >&2
    scontrol requeue "$SLURM_JOB_ID" && sleep 300 # Slurm ends this script meanwhile
    exit 1
}

# End a job whose training ended with exit code $1: well, by requeuing it, or with the error of the rank that failed.
finish() {
    local code=$1 verdict
    [ "$code" != 0 ] || exit 0
    # Every srun unpacks the image anew: some ten gigabytes.
    timeout 300 "${SRUN[@]}" --overlap --nodes=1 --ntasks=1 "--nodelist=$SLURMD_NODENAME" \
        python -m slurm.errors "$ATTEMPT_LOGS" >&2
    verdict=$?
    [ "$asked" != TERM ] || exit "$code"
    case $verdict:$code in
        0:138 | 0:143) requeue "stopped by ${asked:-Slurm}" ;; # 128 + USR1, 128 + TERM
        75:*) # no rank failed by itself: a node is gone
            touch "$(dirname "$ATTEMPT_LOGS")/lost_a_node_in_$(basename "$ATTEMPT_LOGS")"
            set -- "$(dirname "$ATTEMPT_LOGS")"/lost_a_node_in_*
            [ "$#" -gt "$MAX_NODE_LOSSES" ] || requeue "a node was lost"
            ;;
    esac
    exit "$code"
}

# Wait until one of two processes has ended.
wait_for_first() {
    while kill -0 "$1" 2>/dev/null && kill -0 "$2" 2>/dev/null; do
        wait -n
    done
}

# Send signal $2 to a step, by way of its srun $1, and wait for its end.
end_step() {
    kill "-$2" "$1" 2>/dev/null
    wait_for "$1"
}
