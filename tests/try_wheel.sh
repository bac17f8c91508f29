#!/usr/bin/env bash
# Use an installed wheel as somebody does who has nothing else: from an empty folder, configs by name.
# try_wheel.sh VENV
set -euo pipefail
bin=$1/bin
cd "$(mktemp -d)"
export WANDB_MODE=offline
set -x
"$bin/vcppo" fit --config demo/cold_start --trainer.limit_train_batches=20 --data.val_size=16
"$bin/vcppo" fit --config vcppo --config demo/rl --trainer.limit_train_batches=3 \
  --trainer.val_check_interval=3 --data.val_size=16 --data.prompts_per_rollout=16 \
  --value_pretraining.max_rollouts=1 --value_pretraining.min_rollouts=1
"$bin/python" -m lightning_vcppo.demo --help
ls runs/demo
