// The online softmax in exponents of 2: rows of a warp, four lanes a row.

#pragma once

#include "alibi.cuh"

__device__ inline float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float sum_of_row(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

template <int M>
struct Softmax {
    // The largest exponent so far, and the lane's part of the sum relative to it.
    float max[M][2], sum[M][2];

    __device__ Softmax() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) max[m][h] = -INFINITY, sum[m][h] = 0;
        }
    }

    // Makes weights of the scores, and shrinks the output where a maximum has grown.
    template <int KEYS, int BLOCKS>
    __device__ void add(Scores<M, KEYS> &scores, float scale, const float (&constant)[M][2], float (&out)[M][BLOCKS][4]) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
            auto &s = scores.s[m];
            float offset[2], shrink[2];
            bool grown = false;
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float largest = -INFINITY;
#pragma unroll
                for (int n = 0; n < KEYS / 8; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
                // The constant differs between the lanes of a row.
                const float next = fmaxf(max[m][h], max_of_row(fmaf(largest, scale, constant[m][h])));
                // A row that has seen nothing has weights 2^-inf.
                const float reference = next == -INFINITY ? 0 : next;
                grown |= next > max[m][h];
                shrink[h] = exp2_approx(max[m][h] - reference);
                offset[h] = constant[m][h] - reference;
                max[m][h] = next;
            }
            // Walking away from the diagonal, it seldom does.
            if (__any_sync(0xffffffff, grown)) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    sum[m][h] *= shrink[h];
#pragma unroll
                    for (int n = 0; n < BLOCKS; ++n) {
                        out[m][n][2 * h] *= shrink[h];
                        out[m][n][2 * h + 1] *= shrink[h];
                    }
                }
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    s[n][e] = exp2_approx(fmaf(s[n][e], scale, offset[e / 2]));
                    sum[m][e / 2] += s[n][e];
                }
            }
        }
    }
};
