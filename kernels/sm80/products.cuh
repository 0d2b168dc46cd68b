// What a warp does with its part of a tile: the two products of attention, and what raw scores lack between them.

#pragma once

#include "common/softmax.cuh"
#include "tile.cuh"

// S = Q K^T + B. `bias` says what the sums of the n-th 8 keys begin with, which is the same for each of the M blocks of rows.
template <typename T, int D, int M, int KEYS, typename Bias>
__device__ void multiply_qk(Scores<M, KEYS> &scores, Fragment<D> q, Fragment<D> k, Bias bias) {
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m) ldmatrix(a[m], q.block(m, c));
#pragma unroll
        for (int n = 0; n < KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix(b, k.block(n / 2, c));
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float4 begin = bias(n + j);
#pragma unroll
                for (int m = 0; m < M; ++m) {
                    float(&s)[4] = scores.s[m][n + j];
                    if (c == 0) {
                        mma(s, a[m], b[2 * j], b[2 * j + 1], begin, T());
                    } else {
                        mma(s, a[m], b[2 * j], b[2 * j + 1], T());
                    }
                }
            }
        }
    }
}

// Cap, bias and mask of raw scores, for rows of a span and keys from `first_key` on. What all scores of a row and tile have in
// common is left in `constant`, which begins as 0.
template <int M, int KEYS, typename Rows>
__device__ void finish_scores(Scores<M, KEYS> &scores, const Alibi &alibi, const Span &span, const Rows &rows, int first_key,
                              float (&constant)[M][2]) {
    if (alibi.cap_scale != 0) scores.cap(alibi);
    const bool rows_follow = span.all_rows_follow(first_key, KEYS);
    if (span.all_rows_see(first_key, KEYS) && (rows_follow || span.all_rows_precede(first_key))) {
        scores.bias(rows, first_key, rows_follow ? 1 : -1, constant);
    } else {
        scores.bias_and_mask(rows, first_key);
    }
}

// O += weights V, of the n-th 16 keys.
template <typename T, int D, int M>
__device__ void add_product(float (&out)[M][D / 8][4], const uint32_t (&weights)[M][4], Fragment<D> v, int n) {
#pragma unroll
    for (int c = 0; c < D / 16; ++c) {
        uint32_t b[4];
        ldmatrix_transposed(b, v.block(n, c));
#pragma unroll
        for (int m = 0; m < M; ++m) {
            mma(out[m][2 * c], weights[m], b[0], b[1], T());
            mma(out[m][2 * c + 1], weights[m], b[2], b[3], T());
        }
    }
}

// O += weights V: the exponentials of some keys beside the product of those before.
template <typename T, int D, int M, int KEYS>
__device__ void multiply_pv(float (&out)[M][D / 8][4], Softmax<M> &softmax, const Scores<M, KEYS> &scores,
                            const Exponents<M> &exponents, Fragment<D> v) {
#pragma unroll
    for (int n = 0; n < KEYS / 16; ++n) {
        uint32_t weights[M][4];
        softmax.weigh(scores, n, exponents, weights, T());
        add_product<T>(out, weights, v, n);
    }
}

// Multiplies ROWS rows by 0 or -1, in place.
template <typename T, int ROWS, int D, int THREADS>
__device__ void multiply_rows(SharedTile<D> tile, float factor) {
    for (int i = threadIdx.x; i < ROWS * SharedTile<D>::CHUNKS; i += THREADS) {
        const uint32_t place = tile.base + i * 16;
        uint4 chunk = ld_shared(place);
        T *x = (T *)&chunk;
#pragma unroll
        for (int e = 0; e < 8; ++e) x[e] = (float)x[e] * factor;
        st_shared(place, chunk);
    }
}
