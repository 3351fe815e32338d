# shellcheck shell=bash
# The one file to edit for your cluster; every job reads it, and so does `soaes slurm submit`.
# Keep a copy beside your recipe and name it: soaes slurm submit RECIPE --environment FILE

# --- Where the jobs go. sbatch reads these itself; they win over what the scripts say.
# export SBATCH_PARTITION=gpu
# export SBATCH_ACCOUNT=my-project
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=12:00:00    # of every job; a longer stage goes back into the queue
# export SBATCH_SIGNAL=B:USR1@900     # the lead of every job; twice the time of the longest save
# export SBATCH_EXCLUSIVE=user        # nobody else on the nodes
# Only training and capture take whole nodes. The others get what the cluster gives by default,
# which may be too little to convert or to measure a large model:
# export SBATCH_CPUS_PER_GPU=12
# export SBATCH_MEM_PER_GPU=200G      # or SBATCH_MEM_PER_NODE=0: all that the nodes have

# --- Where Python is. One of these:
# 1. A virtual environment that every node sees (the default: the one that `make` made).
SOAES_ENV=${SOAES_ENV:-$(dirname "$SOAES_SLURM_DIR")/.venv}
# 2. A module:                 module load megatron-soaes/1.0; SOAES_ENV=...
# 3. A container (pyxis/enroot). The job's script stays outside of it and needs `soaes`, too; the
#    ranks run inside, with the container's own Python:
# export SOAES_SRUN_OPTIONS="--container-image=/images/soaes.sqsh --container-mounts=/data,/runs"
# export SOAES_PYTHON=/opt/venv/bin/python
export SOAES=${SOAES:-$SOAES_ENV/bin/soaes}
export SOAES_PYTHON=${SOAES_PYTHON:-$SOAES_ENV/bin/python}

# --- Communication. What is not set here is NCCL's own choice, which is mostly right.
# export NCCL_DEBUG=WARN              # INFO shows which network is used: look once
# export NCCL_SOCKET_IFNAME=ib0       # the interface for the rendezvous, when the first is wrong
# export NCCL_IB_HCA=mlx5             # the adapters to use, when storage has some of its own
# export NCCL_IB_TIMEOUT=22           # 4 us * 2^22 = 17 s before a flapping link is an error
# export NCCL_NVLS_ENABLE=0           # off: frees GPU memory, costs speed within a node
# export UCX_NET_DEVICES=mlx5_0:1     # only where MPI or UCX is used beside NCCL
# export GLOO_SOCKET_IFNAME=eth0      # the same for gloo, which plans checkpoints
# Kernels of one rank wait in as many queues; Megatron-Core overlaps correctly only with one.
export CUDA_DEVICE_MAX_CONNECTIONS=1

# --- A node is sound, in the check before training, when all of this holds.
export SOAES_ALLREDUCE_FLOOR_GBS=${SOAES_ALLREDUCE_FLOOR_GBS:-0}  # bus bandwidth, GB/s; 0: any
export SOAES_DISK_FLOOR_GB=${SOAES_DISK_FLOOR_GB:-50}             # free where the run is written
export SOAES_CLOCK_SKEW_S=${SOAES_CLOCK_SKEW_S:-5}                # between any two nodes

# --- How often a job may go back into the queue.
export SOAES_MAX_RESTARTS=${SOAES_MAX_RESTARTS:-20}
