// What a warp does with its rows of the output once all keys have been seen.

#pragma once

#include "row.cuh"
#include "softmax.cuh"

// Rows of a warp in M blocks of 16, from row `first` of the sequence on and up to `last`; of each lane rows lane / 4 and 8 further of
// each block.
//
// `out` has the sums of weighted values, `sum` the lane's part of those of the weights, and `max` the exponent that they are relative
// to. `tile` is room in shared memory for these rows, and of no other warp; `nearest` says of a row where its distances count from.
template <typename T, int M, int BLOCKS, typename Tile, typename Nearest>
__device__ void write_rows(const AttentionParams &p, const Sequence &s, int batch, int head, int first, int last, Tile tile,
                           const float (&out)[M][BLOCKS][4], const float (&max)[M][2], const float (&sums)[M][2],
                           Nearest nearest) {
    const int lane = threadIdx.x % 32;
    uint32_t not_finite = 0;
#pragma unroll
    for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int r = m * 16 + h * 8 + lane / 4;
            const float sum = sum_of_row(sums[m][h]);
            const bool seen = sum != 0;
            const float factor = reciprocal_approx(sum);
            float zero = 0;
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {
                const float *two = &out[m][n][2 * h];
                zero = fmaf(two[0], 0, fmaf(two[1], 0, zero));
                // 0 is +0, whether or not zeros of keys that weigh nothing were added to it.
                const float x = fmaf(two[0], factor, 0), y = fmaf(two[1], factor, 0);
                st_shared(tile.at(r, n) + lane % 4 * 4, seen ? pack(x, y, T()) : 0);
            }
            if (seen && zero != 0) not_finite |= 1u << r;
            if (p.lse && lane % 4 == 0 && first + r <= last) {
                const int64_t left_out = distance(s, first + r, nearest(m, h));
                const float lse = farther((max[m][h] + log2_approx(sum)) * LN_2, slope_of(p, batch, head), left_out);
                float *to = (float *)p.lse + batch * p.lse_batch_stride + head * p.lse_head_stride;
                to[s.first_q + first + r] = seen ? lse : -INFINITY;
            }
        }
    }
    __syncwarp();
    // In whole chunks.
    T *rows = row<T>(p.out, p.out_strides, batch, s.first_q + first, head);
    const bool aligned = ((uint64_t)rows | p.out_strides.row * sizeof(T)) % 16 == 0;
    for (int i = lane; i < 16 * M * BLOCKS; i += 32) {
        const int r = i / BLOCKS, chunk = i % BLOCKS;
        if (first + r > last || chunk * 8 >= p.head_dim) continue;
        const uint4 x = ld_shared(tile.at(r, chunk));
        T *to = rows + r * p.out_strides.row + chunk * 8;
        if (aligned) {
            *(uint4 *)to = x;
        } else {
#pragma unroll
            for (int e = 0; e < 8; ++e) to[e] = ((const T *)&x)[e];
        }
    }

    // A value that is not finite times a weight of 0 is NaN, in rows that do not see the key too. Such rows are computed again, from
    // the keys they see alone.
    not_finite = __reduce_or_sync(0xffffffff, not_finite);
    __syncwarp();
#pragma unroll 1
    for (; not_finite != 0; not_finite &= not_finite - 1) {
        const int i = first + __ffs(not_finite) - 1;
        if (i > last) continue;
        write_row<T>(p, s, batch, head, i, attend_row<T>(p, s, batch, head, i, visible(s, i)));
    }
}
