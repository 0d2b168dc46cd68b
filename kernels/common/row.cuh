// Attention of one query row as it is defined, by one warp, in f32: slow, and plain enough to be believed.

#pragma once

#include "bias.cuh"
#include "elements.cuh"

constexpr int WARP = 32;
constexpr int MAX_HEAD_DIM = 256;

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__half x) { return __half2float(x); }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline void narrow(float x, float *to) { *to = x; }
__device__ inline void narrow(float x, __half *to) { *to = __float2half_rn(x); }
__device__ inline void narrow(float x, __nv_bfloat16 *to) { *to = __float2bfloat16_rn(x); }

__device__ inline float sum_over_warp(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffff, x, step);
    return x;
}

// What one row gives; lane l owns the elements l, l + 32, ... The distances in lse count from the key nearest to the row.
struct RowResult {
    static constexpr int OWNED = MAX_HEAD_DIM / WARP;
    float out[OWNED], lse;
};

// Row i of a sequence, over some of the keys it sees: `key_of` says which is the n-th of so many, or -1 for none.
template <typename T, typename KeyOf>
__device__ RowResult attend_row(const AttentionParams &p, const Sequence &s, int batch, int head, int i, int count,
                                KeyOf key_of) {
    const int lane = threadIdx.x % WARP, head_k = head / p.group, nearest = nearest_key(s, i);
    const float slope = slope_of(p, batch, head);
    RowResult result;
    float q[RowResult::OWNED];
    const T *q_row = row<const T>(p.q, p.q_strides, batch, s.first_q + i, head);
#pragma unroll
    for (int e = 0; e < RowResult::OWNED; ++e) {
        const int c = lane + e * WARP;
        q[e] = c < p.head_dim ? widen(q_row[c]) : 0.0f;
        result.out[e] = 0.0f;
    }

    // The online softmax: the largest score so far, and sums relative to it.
    float largest = -INFINITY, sum = 0.0f;
    for (int n = 0; n < count; ++n) {
        const int j = key_of(n);
        if (j < 0) continue;
        const Place key = place(p, s, batch, j);
        const T *k_row = row<const T>(p.k, p.k_strides, key.entry, key.row, head_k);
        const T *v_row = row<const T>(p.v, p.v_strides, key.entry, key.row, head_k);
        float dot = 0.0f;
#pragma unroll
        for (int e = 0; e < RowResult::OWNED; ++e) {
            const int c = lane + e * WARP;
            if (c < p.head_dim) dot += q[e] * widen(k_row[c]);
        }
        float score = p.scale * sum_over_warp(dot);
        if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
        score -= slope * (float)abs(nearest - j);

        const float next = fmaxf(largest, score);
        const float reference = next == -INFINITY ? 0.0f : next;
        const float shrink = expf(largest - reference), weight = expf(score - reference);
        largest = next;
        sum = sum * shrink + weight;
#pragma unroll
        for (int e = 0; e < RowResult::OWNED; ++e) {
            const int c = lane + e * WARP;
            if (c < p.head_dim) result.out[e] = result.out[e] * shrink + weight * widen(v_row[c]);
        }
    }
    const bool seen = sum != 0.0f;
#pragma unroll
    for (int e = 0; e < RowResult::OWNED; ++e) result.out[e] = seen ? result.out[e] / sum : 0.0f;
    result.lse = seen ? largest + logf(sum) : -INFINITY;
    return result;
}

// The same, over keys that follow one another.
template <typename T>
__device__ RowResult attend_row(const AttentionParams &p, const Sequence &s, int batch, int head, int i, Visible keys) {
    return attend_row<T>(p, s, batch, head, i, keys.last - keys.first + 1, [&](int n) { return keys.first + n; });
}

// Writes a row's result to out and lse.
template <typename T>
__device__ void write_row(const AttentionParams &p, const Sequence &s, int batch, int head, int i, const RowResult &result) {
    const int lane = threadIdx.x % WARP;
    T *out = row<T>(p.out, p.out_strides, batch, s.first_q + i, head);
#pragma unroll
    for (int e = 0; e < RowResult::OWNED; ++e) {
        const int c = lane + e * WARP;
        if (c < p.head_dim) narrow(result.out[e], out + c);
    }
    if (p.lse && lane == 0) {
        ((float *)p.lse)[batch * p.lse_batch_stride + head * p.lse_head_stride + s.first_q + i] =
            farther(result.lse, slope_of(p, batch, head), distance(s, i, nearest_key(s, i)));
    }
}
