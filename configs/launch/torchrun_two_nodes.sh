#!/bin/bash
# VC-PPO on two machines of eight GPUs without a scheduler: run it on both at about the same time.
#
#     HEAD=host-a bash configs/launch/torchrun_two_nodes.sh
#
# HEAD is the name under which both machines reach the first one; torchrun finds out which is which.
# Weights are sharded over all sixteen GPUs. One machine needs no torchrun, because Lightning starts
# the processes:
#
#     vcppo fit ... --trainer configs/trainer/fsdp2.yaml
#
# Not run on GPUs; one test checks flags and syntax, and another runs two "machines" of a CPU.
set -euo pipefail

torchrun \
  --nnodes 2 \
  --nproc-per-node 8 \
  --rdzv-backend c10d \
  --rdzv-endpoint "${HEAD:?set HEAD to the name of the first machine}:29400" \
  --rdzv-id vcppo \
  -m lightning_vcppo fit \
  --config configs/vapo.yaml \
  --model.actor "${ACTOR:-Qwen/Qwen2.5-7B}" \
  --model.activation_checkpointing true \
  --model.engine.max_num_seqs 128 \
  --data configs/data/aime24.yaml \
  --trainer configs/trainer/fsdp2.yaml \
  --trainer.devices 8 \
  --trainer.num_nodes 2 \
  --trainer.default_root_dir runs/vcppo
