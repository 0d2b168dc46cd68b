// The scores: scale, softcap, bias and mask, in units in which the softmax needs one multiplication and one 2^x.

#pragma once

#include "bias.cuh"
#include "ptx.cuh"

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// tanh to a few units in the last place; the instruction has 11 bits, and a cap multiplies the error.
__device__ inline float tanh_accurate(float x) {
    const float y = x * x;
    const float near = fmaf(x * y, fmaf(y, fmaf(y, -17.0f / 315, 2.0f / 15), -1.0f / 3), x);
    const float far = fmaf(-2.0f, reciprocal_approx(exp2_approx(x * (2 * LOG2_E)) + 1), 1.0f);
    return fabsf(x) < 0.2f ? near : far;
}

// How raw scores s = q k become exponents of 2: `scale` (s - `slope` distance) + the constant of a row and tile.
struct Alibi {
    float scale;
    // Of a raw score, and of an exponent.
    float slope, slope_log2;
    // `slope` once more, for `TileBias`.
    float slope_again;
    // With a softcap the raw score becomes tanh(s `cap_scale`); 0: none.
    float cap_scale;
    // What q must be multiplied by for `scale` to be positive.
    float sign;

    Alibi() = default;
    __device__ Alibi(const AttentionParams &p, int batch, int head) {
        const float bias = slope_of(p, batch, head);
        // A cap so far above the scores that this is 0 does nothing.
        cap_scale = p.softcap > 0 ? p.scale / p.softcap : 0;
        sign = 1;
        scale = p.scale;
        if (fabsf(p.scale) < 1e-30f) {
            // No score counts, and slope / scale could overflow.
            cap_scale = 0;
            sign = 0;
            scale = 1;
        } else if (cap_scale != 0) {
            scale = p.softcap;
        } else if (p.scale < 0) {
            sign = -1;
            scale = -p.scale;
        }
        slope = slope_again = bias / scale;
        slope_log2 = bias * LOG2_E;
        scale *= LOG2_E;
    }
};

// What the sums of scores begin with where there is no bias, or where it comes later.
struct NoBias {
    __device__ float4 operator()(int) const { return make_float4(0, 0, 0, 0); }
};

// The bias within a tile that lies wholly on one side of all rows: a slope times the key, relative to the tile's middle. The
// sums of scores begin with it, so it costs half a multiplication a score, before there are any scores to wait for.
template <int KEYS>
struct TileBias {
    // The same number twice: one product takes both at once, from registers of their own, and would copy a single one.
    float2 slopes;

    // Of the n-th 8 keys: two keys of the upper 8 rows, and of the lower.
    __device__ float4 operator()(int n) const {
        const float first = 8 * n - KEYS / 2, second = first + 1;
        return make_float4(slopes.x * first, slopes.x * second, slopes.y * first, slopes.y * second);
    }
};

// The scores of a warp: M times 16 rows and KEYS keys, as mma leaves them. Element 2 h + e of block n is row
// lane / 4 + 8 h and key 8 n + 2 (lane % 4) + e.
//
// A lane's rows are described by a class with, for row (m, h): its `position` in the block's span; where its bias counts from
// (`nearest`): that position, or the first key where it stands before that, so that numbers stay small where a row is parted
// from its keys; the keys it sees (`visible`); and its slope in units of a raw score (`slope`) and of an exponent
// (`slope_log2`).
template <int M, int KEYS>
struct Scores {
    static constexpr int BLOCKS = KEYS / 8;

    float s[M][BLOCKS][4];

    __device__ static int first_key_of_lane() { return threadIdx.x % 4 * 2; }

    __device__ void clear() {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
                for (int e = 0; e < 4; ++e) s[m][n][e] = 0;
            }
        }
    }

    __device__ void cap(const Alibi &alibi) {
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int n = 0; n < BLOCKS; ++n) {
                // A branch a block: taken all at once, they would need more registers than there are.
                const float scale = *(const volatile float *)&alibi.cap_scale;
                if (scale == 0) continue;
#pragma unroll
                for (int e = 0; e < 4; ++e) s[m][n][e] = tanh_accurate(s[m][n][e] * scale);
            }
        }
    }

    // Tiles that all rows see, wholly before (`side` 1) or after (-1) all of them. The distance grows by one with each key,
    // so the bias is one fused multiply-add with a constant, relative to the tile's middle; the rest is a constant of the row.
    template <typename Rows>
    __device__ void bias(const Rows &rows, int first_key, float side, float (&constant)[M][2]) {
        const int middle = first_key + KEYS / 2 + first_key_of_lane();
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float slope = rows.slope(m, h) * side;
                constant[m][h] = -rows.slope_log2(m, h) * side * (float)(rows.nearest(m, h) - middle);
#pragma unroll
                for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float &x = s[m][n][2 * h + e];
                        x = fmaf(slope, (float)(8 * n + e - KEYS / 2), x);
                    }
                }
            }
        }
    }

    // Any tile: each score has its distance, and is -inf unless its row sees the key.
    template <typename Rows>
    __device__ void bias_and_mask(const Rows &rows, int first_key) {
        const int first = first_key + first_key_of_lane();
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float distance = (float)(rows.nearest(m, h) - first), slope = rows.slope(m, h);
                const Visible v = rows.visible(m, h);
                // Unsigned, so that one comparison has both ends; a row that sees nothing sees no key of the tile.
                const bool any = v.first <= v.last;
                const uint32_t begin = any ? v.first - first : 0x40000000, length = any ? v.last - v.first : 0;
#pragma unroll
                for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
                    for (int e = 0; e < 2; ++e) {
                        float &x = s[m][n][2 * h + e];
                        const int key = 8 * n + e;
                        const float biased = fmaf(-slope, fabsf(distance - (float)key), x);
                        x = key - begin <= length ? biased : -INFINITY;
                    }
                }
            }
        }
    }
};
