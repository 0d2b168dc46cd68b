// The certified horizon: the tests of src/horizon.rs, which has the theorem and its proof, in exponents of 2.

#pragma once

#include "alibi.cuh"

// What the tests of one head compare with.
struct Budget {
    // For a tile and all that is farther (A); for one tile (B), without its share.
    float tail, tile;
    // Whether the tiles share a tolerance: whether `share` counts.
    bool shared;
    // By how many tiles an exponent comes one nearer to it.
    float tiles_a_unit;
    // Logarithms are rounded up.
    static constexpr float UP = 1e-3f;

    Budget() = default;
    // For keys on one or two `sides`, and tiles of so many keys.
    __device__ Budget(const AttentionParams &p, const Alibi &alibi, int sides, int keys) {
        tiles_a_unit = reciprocal_approx(alibi.slope_log2 * keys);
        if (p.tolerance < 0) {
            // 2^x is 0 below 2^-126.
            tail = tile = 127;
            shared = false;
        } else {
            const float geometric = -log2f(-expm1f(-alibi.slope_log2 * LN_2));
            const float weights = log2f((float)(2 * sides)) - log2f(p.tolerance) + UP;
            tail = geometric + weights;
            tile = fminf(geometric, log2f((float)keys)) + weights;
            shared = true;
        }
    }

    // log2(t (t + 1)), for the t-th tile after the nearest.
    template <typename Log2>
    __device__ float share(int t, Log2 log2) const {
        return shared ? log2((float)t * (t + 1)) + UP : 0;
    }
};

// The keys that any query of a sequence sees, from `begin` up to `end`: the horizon is of those.
struct Seen {
    int begin, end;

    __device__ Seen(const AttentionParams &p, const Sequence &s) {
        const Span span(s, 0, s.seqlen_q - 1);
        begin = span.begin();
        end = s.seqlen_q > 0 ? max(span.end(), begin) : begin;
    }

    __device__ bool enough() const { return end - begin >= MIN_HORIZON_KEYS; }
};

// Whether the horizon leaves out anything of a head with this slope.
__device__ inline bool has_horizon(const AttentionParams &p, const Alibi &alibi) {
    return p.tolerance != 0 && alibi.slope_log2 > 0;
}

// What bounds the scores of one row.
struct RowBound {
    // Of a score: at the centre, for each unit of a radius, and what rounding may add to the exponent.
    float centre, reach, slack;

    RowBound() = default;
    // `dot` is q c; `norm` is |q| and `key_norm` the largest |k|, both rounded up; `bias` is the largest that sums of products
    // begin with.
    __device__ RowBound(const AttentionParams &p, float dot, float norm, float key_norm, float bias) {
        centre = p.scale * dot;
        reach = fabsf(p.scale) * norm;
        slack = (2 * (p.head_dim + 4) * 0x1p-22f * (reach * key_norm + bias) + p.softcap * 0x1p-20f) * LOG2_E;
    }

    // At least the exponent of every key within `radius` of the centre, at `distance` or farther.
    __device__ float above(const AttentionParams &p, float slope_log2, float radius, float distance) const {
        float score = fmaf(reach, radius, centre);
        if (p.softcap > 0) score = p.softcap * tanh_accurate(score * reciprocal_approx(p.softcap));
        return fmaf(score, LOG2_E, slack) - slope_log2 * distance * (1 - 0x1p-21f);
    }
};

// The larger of two that are not negative; NaN is the largest.
__device__ inline float max_or_nan(float x, float y) { return __uint_as_float(max(__float_as_uint(x), __float_as_uint(y))); }

// The largest radius of the pages of a cache that hold the keys from `first` up to `end`.
__device__ inline float radius_of_pages(const AttentionParams &p, const Sequence &s, int batch, int head_k, int first, int end) {
    float largest = 0;
    for (int key = first; key < end;) {
        const Place at = place(p, s, batch, key);
        const int64_t page = at.entry;
        largest = max_or_nan(largest, ((const float *)p.page_radii)[page * (p.heads_q / p.group) + head_k]);
        key += p.page_size - at.row;
    }
    return largest;
}

// At least the norm whose square was summed up in f32.
__device__ inline float norm_above(float sum_of_squares) {
    // The sign of a NaN does not matter, and squares below the smallest number count too.
    return fmaf(sqrt_approx(fabsf(sum_of_squares)), 1 + 0x1p-12f, 0x1p-58f);
}
