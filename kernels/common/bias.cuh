// The bias: a slope of the head times the distance of the key. Another form of it is added where this one is computed: below,
// and in `Scores` (alibi.cuh), `attend_row` (row.cuh), and what bounds scores (horizon.cuh, live.cu).

#pragma once

#include "sequence.cuh"

__device__ inline float slope_of(const AttentionParams &p, int batch, int head) {
    return ((const float *)p.slopes)[batch * p.slopes_batch_stride + head];
}

// The lse of a row that stands so much farther from all of its keys. The distance has more bits than a float.
__device__ inline float farther(float lse, float slope, int64_t distance) {
    const float high = (float)distance, low = (float)(distance - (int64_t)high);
    return fmaf(-slope, high, fmaf(-slope, low, lse));
}
