#!/usr/bin/env bash
# All checks that need a GPU, in order of worth, each within its own time; what is done is kept if the rest is cut off.
#
#   bash benchmarks/gpu/run_all.sh OUT           about ten minutes on one H100
#   bash benchmarks/gpu/run_all.sh OUT --small   each kind of part on a CPU at tiny sizes, in about a minute
#
# Nothing is installed from a network. A bare machine needs, beside torch >= 2.11 with its torchvision, these as wheels
# in a folder named by WHEELS: transformers >= 5.18, tyro, av, math-verify, qwen-vl-utils, cloudpickle, and what they
# ask for (`pip download --python-version 3.12 --only-binary :all: -d wheels NAMES`).
set -u
cd "$(dirname "$0")/../.."
out=${1:?name a folder for the results}
small=${2:-}
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    python -m pip install --no-index --find-links "$WHEELS" --target "$out/site" "$WHEELS"/*.whl --no-deps -q
    export PYTHONPATH="$out/site:${PYTHONPATH:-}"
fi
export PYTHONPATH="src:.:${PYTHONPATH:-}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
failed=0

part() { # NAME SECONDS COMMAND...: its output goes to OUT/NAME.log, its last line to OUT/results.jsonl
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    if timeout --kill-after=10 "$limit" "$@" >"$out/$name.out" 2>"$out/$name.log"; then
        tail -n 1 "$out/$name.out" | tee -a "$out/results.jsonl"
    else
        echo "$name ended with code $?; the end of $out/$name.log:"
        tail -n 15 "$out/$name.log"
        failed=1
    fi
}

python - >"$out/machine.txt" 2>&1 <<'PY'
import platform, torch, transformers
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(gpu, "| python", platform.python_version(), "| torch", torch.__version__, "| transformers", transformers.__version__)
PY
cat "$out/machine.txt"

part kernels 90 python benchmarks/gpu/kernels.py $small
[ -n "$small" ] || part tests 120 python -m pytest -q -n 0 -m gpu tests
part step_3b_1000 120 python benchmarks/gpu/gpu_step.py --shape Qwen2.5-VL-3B --repeated $small
[ -n "$small" ] || part step_7b_1000 120 python benchmarks/gpu/gpu_step.py --shape Qwen2.5-VL-7B --repeated
part step_3b_full 120 python benchmarks/gpu/gpu_step.py --shape Qwen2.5-VL-3B --full $small
part decode_7b 90 python benchmarks/gpu/decode.py --shape Qwen2.5-VL-7B $small
part step_q3_1000 120 python benchmarks/gpu/gpu_step.py --shape Qwen3-VL-4B $small
[ -n "$small" ] || part step_3b_2000 120 python benchmarks/gpu/gpu_step.py --shape Qwen2.5-VL-3B --visual 2000
if [ -n "$small" ]; then
    part learning 180 python benchmarks/gpu/learning.py --steps 2 --prompts 2 --other cpu
else
    part learning 120 python benchmarks/gpu/learning.py
fi
# vLLM wants its own torch, so most environments have none.
if ! python -c 'import importlib.util as u; raise SystemExit(u.find_spec("vllm") is None)'; then
    echo "== vllm_3b: left out, vLLM is not installed"
else
    part vllm_3b 240 python benchmarks/gpu/vllm_engine.py --shape Qwen2.5-VL-3B $small
    if [ -z "$small" ]; then
        part vllm_3b_invariant 240 python benchmarks/gpu/vllm_engine.py --shape Qwen2.5-VL-3B --invariant
        if [ "$(python -c 'import torch; print(torch.cuda.device_count())')" -ge 2 ]; then
            part vllm_3b_spread 300 python benchmarks/gpu/vllm_engine.py --shape Qwen2.5-VL-3B --tensor-parallel 2
        else
            echo "== vllm_3b_spread: left out, it needs two GPUs"
        fi
    fi
fi
exit $failed
