// The online softmax of common/softmax.cuh while the output is still being added to: it is shrunk afterwards.

#pragma once

#include <float.h>

#include "common/softmax.cuh"

// The two rows of a lane, of the 64 of a warpgroup.
struct PendingSoftmax {
    // The largest exponent so far, and the lane's part of the sum relative to it. The maximum begins below all exponents, yet
    // finite: so weights of a row that sees nothing are 2^-inf, and nothing infinite is subtracted from itself.
    float max[2] = {-FLT_MAX, -FLT_MAX}, sum[2] = {0, 0};
    // What the output is still to be multiplied with, and the lanes for which it is not 1.
    float shrink[2];
    uint32_t grown;

    // Makes weights of scores, in place.
    template <int KEYS>
    __device__ void weigh(Scores<1, KEYS> &scores, float scale, const float (&constant)[1][2]) {
        auto &s = scores.s[0];
        float offset[2];
        bool grows = false;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float largest = fmaxf(s[0][2 * h], s[0][2 * h + 1]);
#pragma unroll
            for (int n = 1; n < KEYS / 8; ++n) largest = fmaxf(largest, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            // The constant differs between the lanes of a row.
            const float next = fmaxf(max[h], max_of_row(fmaf(largest, scale, constant[0][h])));
            grows |= next > max[h];
            shrink[h] = exp2_approx(max[h] - next);
            sum[h] *= shrink[h];
            offset[h] = constant[0][h] - next;
            max[h] = next;
        }
        // Walking away from the diagonal, it seldom does.
        grown = __ballot_sync(0xffffffff, grows);
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                s[n][e] = exp2_approx(fmaf(s[n][e], scale, offset[e / 2]));
                sum[e / 2] += s[n][e];
            }
        }
    }

    template <int BLOCKS>
    __device__ void apply(float (&out)[BLOCKS][4]) const {
        if (grown == 0) return;
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
            for (int e = 0; e < 4; ++e) out[n][e] *= shrink[e / 2];
        }
    }
};

// Weights as the product with values takes them: 16 keys at a time.
template <typename T, int KEYS>
__device__ void pack_weights(const Scores<1, KEYS> &scores, uint32_t (&weights)[KEYS / 16][4], T) {
#pragma unroll
    for (int n = 0; n < KEYS / 16; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const float *two = &scores.s[0][2 * n + i / 2][i % 2 * 2];
            weights[n][i] = pack(two[0], two[1], T());
        }
    }
}
