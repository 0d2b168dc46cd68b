// The online softmax in exponents of 2: rows of a warp, four lanes a row.

#pragma once

#include <float.h>

#include "alibi.cuh"

__device__ inline float max_of_row(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}

__device__ inline float sum_of_row(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// How the scores of a tile become exponents of 2: times `scale`, plus a constant of the row.
template <int M>
struct Exponents {
    float scale, constant[M][2];
};

// Of the scores that a lane has of row (m, h).
template <int M, int KEYS>
__device__ float max_of_lane(const Scores<M, KEYS> &scores, int m, int h) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < KEYS / 8; ++n) {
        const float two = fmaxf(scores.s[m][n][2 * h], scores.s[m][n][2 * h + 1]);
        largest = n == 0 ? two : fmaxf(largest, two);
    }
    return largest;
}

template <int M>
struct Softmax {
    // The largest exponent so far, and the lane's part of the sum relative to it. The maximum begins below all exponents, yet
    // finite: so weights of a row that sees nothing are 2^-inf, and nothing infinite is subtracted from itself.
    float max[M][2], sum[M][2];

    __device__ Softmax() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) max[m][h] = -FLT_MAX, sum[m][h] = 0;
        }
    }

    // Takes a tile into the maxima, shrinks the output where one has grown, and makes the exponents relative to them. One vote
    // for all rows: after it, nothing keeps the weights of the last keys from the product with the first values.
    template <int KEYS, int BLOCKS>
    __device__ void add(const Scores<M, KEYS> &scores, Exponents<M> &exponents, float (&out)[M][BLOCKS][4]) {
        float next[M][2];
        bool grown = false;
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                // The constant differs between the lanes of a row.
                const float exponent = fmaf(max_of_lane(scores, m, h), exponents.scale, exponents.constant[m][h]);
                next[m][h] = fmaxf(max[m][h], max_of_row(exponent));
                grown |= next[m][h] > max[m][h];
            }
        }
        // Walking away from the diagonal, it seldom does.
        if (__any_sync(0xffffffff, grown)) raise(next, out);
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) exponents.constant[m][h] -= max[m][h];
        }
    }

    template <int BLOCKS>
    __device__ void raise(const float (&next)[M][2], float (&out)[M][BLOCKS][4]) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float shrink = exp2_approx(max[m][h] - next[m][h]);
                max[m][h] = next[m][h];
                sum[m][h] *= shrink;
#pragma unroll
                for (int n = 0; n < BLOCKS; ++n) {
                    out[m][n][2 * h] *= shrink;
                    out[m][n][2 * h + 1] *= shrink;
                }
            }
        }
    }

    // The weights of the n-th 16 keys, as a product takes them: what the one product leaves is where the next finds it.
    template <typename T, int KEYS>
    __device__ void weigh(const Scores<M, KEYS> &scores, int n, const Exponents<M> &exponents, uint32_t (&weights)[M][4], T) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
                const int h = i % 2;
                float two[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float score = scores.s[m][2 * n + i / 2][2 * h + e];
                    two[e] = exp2_approx(fmaf(score, exponents.scale, exponents.constant[m][h]));
                    sum[m][h] += two[e];
                }
                weights[m][i] = pack(two[0], two[1], T());
            }
        }
    }
};
