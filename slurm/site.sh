# shellcheck shell=bash disable=SC2034
# What is particular to your cluster, for every batch script and for `python -m slurm.launch`; the only file to edit.
# A file elsewhere is named by MEGATRON_OPID_SITE. Lines are NAME=value in bash.

# Who pays, and where: sbatch reads SBATCH_* by itself once they are exported (`source slurm/site.sh` before a plain
# sbatch; the launcher does it).
#export SBATCH_ACCOUNT=my_project
#export SBATCH_PARTITION=gpu
#export SBATCH_QOS=normal

GPUS_PER_NODE=8

# Software: an enroot image, run by Pyxis (slurm/Dockerfile makes one), or else modules and a virtual environment.
CONTAINER_IMAGE=${CONTAINER_IMAGE:-}         # /shared/images/megatron_opid.sqsh
CONTAINER_MOUNTS=${CONTAINER_MOUNTS:-}       # /shared/models:/shared/models,/shared/data:/shared/data
MODULES=${MODULES:-}                         # "cuda/13.0 python/3.12"
VIRTUAL_ENVIRONMENT=${VIRTUAL_ENVIRONMENT:-${VIRTUAL_ENV:-$PWD/.venv}} # the one that is active where you submit
export ENGINE_PYTHON=${ENGINE_PYTHON:-python} # of the engines, where it is another one

# Files. The repository, models, data and run directories lie on a file system that all nodes share.
#export MODELS_ROOT=/shared/models
LOGS=${LOGS:-$PWD/logs}                      # one directory per job, one file per rank
LOCAL_SCRATCH=${LOCAL_SCRATCH:-/tmp}         # a disk of the node's own: compiled kernels, staged models
STAGE_MODELS=${STAGE_MODELS:-0}              # 1: copy the model to LOCAL_SCRATCH, once a node, before it is read

# The analyzer of skills.analyzer=openai; the nodes must reach it. Keys better come from the shell that submits.
#export OPENAI_BASE_URL=http://analyzer:8000/v1 OPENAI_MODEL=Qwen3-32B

# Network. Only where NCCL and Gloo choose the wrong interface by themselves.
#export NCCL_SOCKET_IFNAME=ib0
#export NCCL_IB_HCA=mlx5

# A job that lost a node is requeued so often; one that was told to stop by Slurm, always.
MAX_NODE_LOSSES=${MAX_NODE_LOSSES:-5}
