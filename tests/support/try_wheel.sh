#!/usr/bin/env bash
# Use an installed wheel as somebody does who has nothing else: from an empty directory, configs by name.
# try_wheel.sh VENV
set -euo pipefail
bin=$1/bin
cd "$(mktemp -d)"
export WANDB_MODE=offline
set -x
"$bin/vcppo" demo --quick
"$bin/vcppo" fit --config vcppo --config demo/rl --trainer.limit_train_batches=2 \
  --trainer.val_check_interval=2 --trainer.limit_val_batches=0 --data.prompts_per_rollout=16 \
  --value_pretraining.max_rollouts=1 --value_pretraining.min_rollouts=1 \
  --trainer.default_root_dir=runs/by_name
ls runs/demo runs/by_name
