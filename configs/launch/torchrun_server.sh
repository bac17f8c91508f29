#!/bin/bash
# VC-PPO on two machines of eight GPUs: one samples, the other trains. Run it on both, in any order:
#
#     ROLE=sample SERVER_HOST=host-a SHARED=/shared/run bash configs/launch/torchrun_server.sh
#     ROLE=train  SERVER_HOST=host-a SHARED=/shared/run bash configs/launch/torchrun_server.sh
#
# SERVER_HOST  address of the machine that samples, as the other one reaches it (not one that its
#              /etc/hosts maps to 127.0.1.1)
# SHARED       directory that only this run uses and both see under the same name: token, weights
# AHEAD        rollouts that are sampled ahead of the updates; 0: sampling and training take turns
# GPUS, PORT   of each machine; of the first server
#
# What follows the script's name goes to `vcppo fit`. The trainer waits up to half an hour for the
# servers; they end when it ends, whatever the reason, or with Ctrl-C if its machine is lost.
#
# `--host` opens a server to everyone who can reach that address. Without the token, which only this
# user can read in SHARED, it answers nothing but /health. Whoever has the token controls the server,
# and requests, the token included, are not encrypted: use it inside a network that you trust.
#
# Not run on GPUs; tests check flags and syntax, and rehearse it with processes of a CPU.
set -euo pipefail

: "${SERVER_HOST:?set SERVER_HOST to the address of the machine that samples}"
: "${SHARED:?set SHARED to a directory that both machines see}"
actor=${ACTOR:-Qwen/Qwen2.5-7B} gpus=${GPUS:-8} port=${PORT:-8000}
token=$SHARED/token running=$SHARED/running # the second is there until the trainer has ended
mkdir -p "$SHARED"

sample() {
  groups=()
  trap 'for group in "${groups[@]}"; do kill -- "-$group" 2>/dev/null || true; done; wait' EXIT
  touch "$running"
  set -m # each server has a process group, so that its own processes end with it
  for ((gpu = 0; gpu < gpus; gpu++)); do
    # A server that dies is started again; the run gives it the weights and continues.
    until CUDA_VISIBLE_DEVICES=$gpu vcppo serve \
      --model.actor "$actor" \
      --host "$SERVER_HOST" \
      --port $((port + gpu)) \
      --token_file "$token" \
      --model.engine.max_num_seqs 128; do sleep 5; done &
    groups+=($!)
  done
  set +m
  while [[ -e $running ]]; do sleep 1; done
}

train() {
  trap 'rm -f "$running"' EXIT
  urls=""
  for ((gpu = 0; gpu < gpus; gpu++)); do
    url=http://$SERVER_HOST:$((port + gpu))
    until curl --fail --silent --output /dev/null --max-time 5 "$url/health"; do
      if ((SECONDS > 1800)); then
        echo "$url/health has not answered for half an hour" >&2
        exit 1
      fi
      sleep 1
    done
    urls+=${urls:+, }$url
  done
  torchrun \
    --standalone \
    --nproc-per-node "$gpus" \
    -m lightning_vcppo fit \
    --config configs/vapo.yaml \
    --model.actor "$actor" \
    --model.activation_checkpointing true \
    --model.engine.name vllm_server \
    --model.engine.urls "[$urls]" \
    --model.engine.max_num_seqs 128 \
    --model.engine.token_file "$token" \
    --model.engine.weights_dir "$SHARED/weights" \
    --model.engine.rollouts_ahead "${AHEAD:-1}" \
    --data configs/data/aime24.yaml \
    --trainer configs/trainer/fsdp2.yaml \
    --trainer.devices "$gpus" \
    --trainer.default_root_dir runs/vcppo \
    "$@"
}

case ${ROLE:-} in
  sample) sample ;;
  train) train "$@" ;;
  *) echo "set ROLE to sample or train" >&2 && exit 2 ;;
esac
