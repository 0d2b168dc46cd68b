#!/usr/bin/env bash
# Tests and measures on a machine with a GPU what `cargo xtask gpu-bundle` gathered.
#
#     ./run.sh [STEP]...      all steps, unless some are named
#
# Steps, the most telling first: load, goldens, tests, memcheck, racecheck, synccheck, initcheck, bench-prefill, bench-decode,
# bench-contexts, peers-prefill, peers-contexts, peers-decode. Each takes at most 9 minutes, and leaves report-STEP.txt beside
# this script. What a step lacks is said in its report; the exit status is 1 if a step failed.
#
# DRY_RUN=1: without a GPU, on the emulated driver. What only a GPU can tell is not run.
set -u
cd "$(dirname "$0")" || exit 1
root=$PWD
limit=${STEP_SECONDS:-540}

all=(load goldens tests memcheck racecheck synccheck initcheck bench-prefill bench-decode bench-contexts
    peers-prefill peers-contexts peers-decode)

# Of every kernel, and of every kind of access: small, since a sanitizer is slow.
small=(head_dims variable_lengths unaligned_tensors scales_and_softcaps random_problems batches_follow cache::)

# Runs a command where the tests find their data, and says so. A failure is the step's.
run() {
    echo "== $*"
    (cd package/testing && "$@") || {
        echo "FAILED with $?: $*"
        failed=1
    }
}

only_on_a_gpu() {
    if [[ -n ${DRY_RUN:-} ]]; then
        echo "not run: $1"
        return 1
    fi
}

sanitize() {
    only_on_a_gpu "compute-sanitizer needs a GPU" || return 0
    if ! command -v compute-sanitizer >/dev/null; then
        echo "not run: compute-sanitizer is not installed"
        return 0
    fi
    run env PROPTEST_CASES=5 compute-sanitizer --tool "$1" --error-exitcode 1 "$root/cuda" --test-threads 1 "${small[@]}"
}

bench() {
    only_on_a_gpu "the times of an emulated GPU mean nothing" || return 0
    run env CRITERION_HOME="$root/criterion" "$root/cuda" --bench "$1"
}

peers() {
    only_on_a_gpu "the times of an emulated GPU mean nothing" || return 0
    if ! python3 -c 'import torch' 2>/dev/null; then
        echo "not run: the peers need PyTorch, which is not installed"
        return 0
    fi
    local plot=()
    python3 -c 'import matplotlib' 2>/dev/null && plot=(--plot "$root/$1.svg")
    run env FLASH_ALIBI_COMMIT="$(cat commit.txt)" python3 "$root/peers/peers.py" run "$1" \
        --ours "$root/cuda" --json "$root/$1.json" "${plot[@]}"
}

step() {
    failed=0
    case $1 in
    load) run "$root/cuda" load ;;
    goldens)
        for backend in cuda cuda-decode; do
            for horizon in off certified; do
                run "$root/cuda" golden --backend "$backend" --horizon "$horizon" ../tests/golden
            done
        done
        ;;
    # All but the goldens, which were a step.
    tests) run "$root/cuda" --skip golden_files ;;
    memcheck | racecheck | synccheck | initcheck) sanitize "$1" ;;
    bench-prefill) bench '^prefill/.*/(512|1024|2048|4096|8192|16384)$' ;;
    bench-decode) bench '^decode/' ;;
    bench-contexts) bench '^prefill/bf16/.*causal.*/(32768|65536|131072|262144|524288|1048576)$' ;;
    peers-*) peers "${1#peers-}" ;;
    esac
    return $failed
}

# One step alone, under the clock that the call below sets.
if [[ ${1:-} == --step ]]; then
    step "$2"
    exit
fi

steps=("$@")
[[ $# -gt 0 ]] || steps=("${all[@]}")
for name in "${steps[@]}"; do
    if [[ " ${all[*]} " != *" $name "* ]]; then
        echo "there is no step $name; there are ${all[*]}" >&2
        exit 2
    fi
done

failures=0
for name in "${steps[@]}"; do
    {
        echo "step: $name"
        echo "commit: $(cat commit.txt)"
        echo "date: $(date -u +%FT%TZ)"
        echo "GPU, driver, memory: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1)"
        start=$SECONDS
        timeout --kill-after=15 "$limit" "$root/run.sh" --step "$name" 2>&1
        status=$?
        case $status in
        0) echo "ok: $name, $((SECONDS - start)) s" ;;
        124 | 137) echo "FAILED: $name was not done after $limit s" ;;
        *) echo "FAILED: $name, $((SECONDS - start)) s" ;;
        esac
    } | tee "report-$name.txt"
    grep -q '^ok: ' "report-$name.txt" || failures=$((failures + 1))
done
echo "$((${#steps[@]} - failures)) of ${#steps[@]} steps are well"
[[ $failures -eq 0 ]]
