#!/usr/bin/env bash
# What there is to check and measure on one GPU, most important first, in at most nine minutes.
#
#   benchmarks/on_gpu.sh            on a machine with JAX, Flax, Optax, Orbax, PyTorch and transformers for its GPU
#   WHEELS=FOLDER benchmarks/on_gpu.sh   installs the other packages from the wheels in a folder, without a network
#   TOY=1 benchmarks/on_gpu.sh      tiny models, on a CPU: checks the script
#
# Prints as it goes, so that a run that is cut off leaves its first results. $OUT, if set, gets a copy.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-$(mktemp -d)}
if [[ -n ${WHEELS:-} ]]; then
  packages=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --target "$packages" "$WHEELS"/*.whl || exit
  export PYTHONPATH=$packages
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 JAX_PLATFORMS=${TOY:+cpu}
: "${JAX_PLATFORMS:=cuda,cpu}"
began=$SECONDS status=0

step() {  # step SECONDS NAME COMMAND...: runs a command for that long at most.
  local limit=$1 name=$2
  shift 2
  echo "== $name ($((SECONDS - began)) s)"
  timeout "$limit" "$@" 2>&1 | tee "$out/$name.txt" || { status=1; echo "== $name: exit status ${PIPESTATUS[0]}"; }
}

nvidia-smi -L 2>/dev/null
step 30 versions python3 -c 'import jax, torch, transformers
print("jax", jax.__version__, jax.devices(), "torch", torch.__version__, "transformers", transformers.__version__)'
step 300 first_rows python3 benchmarks/mfu.py ${TOY:+--toy} --minutes 4 gpt2 llama
step 90 tests python3 -m pytest -q --durations=3 -p no:cacheprovider tests/accelerator
step 300 other_rows python3 benchmarks/mfu.py ${TOY:+--toy} --minutes "$(((540 - SECONDS + began) / 60))" bert-large vit t5 bert-base whisper video segformer detr
exit $status
