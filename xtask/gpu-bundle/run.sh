#!/usr/bin/env bash
# Runs on a machine with a GPU what `cargo xtask gpu-bundle` gathered, and writes report.txt beside itself.
#
#     ./run.sh [tests] [sanitizer] [bench] [peers]      all of them, unless some are named
#
# What a step lacks is said in the report; the exit status is 1 if a step failed.
set -u
cd "$(dirname "$0")" || exit 1
steps=" ${*:-tests sanitizer bench peers} "
root=$PWD

# Of every kernel, and of every kind of access: small, since a sanitizer is slow.
small=(head_dims variable_lengths unaligned_tensors scales_and_softcaps random_problems)

wanted() { [[ $steps == *" $1 "* ]]; }

step() {
    echo
    echo "== $*"
    # The tests read files by paths relative to the package.
    (cd package && "$@") || echo "FAILED: $*"
}

{
    echo "commit: $(cat commit.txt)"
    echo "date: $(date -u +%FT%TZ)"
    echo "GPU, driver, memory: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1)"

    if wanted tests; then
        for program in "$root"/tests/*; do
            step "$program"
        done
    fi
    if wanted sanitizer; then
        if command -v compute-sanitizer >/dev/null; then
            for tool in memcheck racecheck synccheck initcheck; do
                step env PROPTEST_CASES=20 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                    "$root/tests/cuda" --test-threads 1 "${small[@]}"
                step env PROPTEST_CASES=5 compute-sanitizer --tool "$tool" --error-exitcode 1 \
                    "$root/tests/cuda_decode" --test-threads 1
            done
        else
            echo "not run: compute-sanitizer is not installed"
        fi
    fi
    if wanted bench; then
        for program in "$root"/benches/*; do
            step env CRITERION_HOME="$root/criterion" "$program" --bench
        done
    fi
    if wanted peers; then
        if python3 -c 'import torch' 2>/dev/null; then
            for suite in prefill:cuda contexts:cuda decode:cuda_decode; do
                name=${suite%:*}
                plot=()
                python3 -c 'import matplotlib' 2>/dev/null && plot=(--plot "$root/$name.svg")
                step env FLASH_ALIBI_COMMIT="$(cat commit.txt)" python3 "$root/peers/peers.py" run "$name" \
                    --ours "$root/benches/${suite#*:}" --json "$root/$name.json" "${plot[@]}"
            done
        else
            echo "not run: the peers need PyTorch, which is not installed"
        fi
    fi
} 2>&1 | tee report.txt

! grep -q '^FAILED' report.txt
