// What all threads of a block know of its rows and tiles, and what a lane knows of its own rows.

#pragma once

#include "common/alibi.cuh"

__device__ inline int common_divisor(int a, int b) {
    while (b != 0) {
        const int rest = a % b;
        a = b, b = rest;
    }
    return a;
}

// What all threads of a block know.
template <int ROWS_, int KEYS_>
struct Block {
    static constexpr int ROWS = ROWS_, KEYS = KEYS_;

    Sequence s;
    int batch, head, first_row, last_row;
    // Of the tensors: packed sequences have one entry together.
    int entry;
    // Of a tile, the keys that lie in one piece: they are copied at once.
    int box_keys;
    Span span;
    // Tiles of keys: how many any row sees, the first of them, and that of the last row's own position.
    int tiles, first_tile, nearest_tile;
    // Steps up to which tiles are, by turns, any, and such that all rows see and stand on one side of: first behind, then before.
    int ends[5];
    Alibi alibi;

    __device__ Block(const AttentionParams &p) : Block(p, index(p) / p.heads_q, index(p) % p.heads_q) {}

    // Of a sequence and head.
    __device__ Block(const AttentionParams &p, int batch, int head) : batch(batch), head(head) {
        // The last rows come first: under a causal mask they have the most keys.
        first_row = (blocks(p) - 1 - blockIdx.x % blocks(p)) * ROWS;
        entry = p.cu_seqlens_q ? 0 : batch;
        box_keys = p.block_table ? common_divisor(KEYS, p.page_size) : KEYS;
        s = sequence(p, batch);
        alibi = Alibi(p, batch, head);
        last_row = min(first_row + ROWS, s.seqlen_q) - 1;
        span = Span(s, first_row, last_row);
        divide_keys();
    }

    // Blocks of a sequence and head; and which of these it is.
    __device__ static int blocks(const AttentionParams &p) { return (p.seqlen_q + ROWS - 1) / ROWS; }
    __device__ static int index(const AttentionParams &p) { return blockIdx.x / blocks(p); }

    __device__ void divide_keys() {
        const int begin = span.begin(), end = span.end();
        first_tile = begin / KEYS;
        tiles = begin < end ? (end - 1) / KEYS - first_tile + 1 : 0;
        nearest_tile = clamp(span.last_position, begin, end - 1) / KEYS;
        const int first_seen = span.of_last.first, last_seen = span.of_first.last - KEYS + 1;
        // First keys of tiles.
        const int behind = min(last_seen, span.first_position - KEYS + 1), before = max(first_seen, span.last_position);
        const int nearest_behind = min(nearest_tile, behind < 0 ? -1 : behind / KEYS);
        const int farthest_behind = (first_seen + KEYS - 1) / KEYS;
        ends[0] = nearest_tile - nearest_behind;
        ends[1] = nearest_tile - farthest_behind + 1;
        if (ends[0] >= ends[1]) ends[0] = ends[1] = 0;
        const int first_before = max(nearest_tile + 1, (before + KEYS - 1) / KEYS);
        const int last_before = last_seen < 0 ? -1 : last_seen / KEYS;
        ends[2] = first_before - first_tile;
        ends[3] = last_before - first_tile + 1;
        ends[4] = tiles;
        if (ends[2] >= ends[3]) ends[2] = ends[3] = tiles;
        // A capped score is no sum that the bias is a part of: it has code of its own.
        if (alibi.cap_scale != 0) ends[0] = ends[1] = 0, ends[2] = ends[3] = tiles;
    }

    // The steps from the nearest tile back to the first; the others go on to the last.
    __device__ int back() const { return nearest_tile - first_tile; }
    __device__ int tile(int step) const { return step <= back() ? nearest_tile - step : first_tile + step; }
    __device__ int first_key(int step) const { return tile(step) * KEYS; }

    // What lies before is padding, or in pages that a window has left behind.
    __device__ int first_kept(const AttentionParams &p) const { return p.block_table ? span.begin() : s.leftpad_k; }

    // Whether a tile has rows of the tensors that are no keys of the sequence: such, or another sequence, or what a page held.
    __device__ bool has_others(const AttentionParams &p, int first_key) const {
        const bool ends = first_key + KEYS > s.seqlen_k;
        return first_key < first_kept(p) || (ends && (p.block_table || s.first_k + s.seqlen_k < p.rows_k));
    }
};

// The rows of a lane.
template <typename Block>
struct LaneRows {
    const Block &block;
    int first;

    __device__ int position(int, int h) const { return block.span.first_position + first + h * 8; }
    __device__ int nearest(int m, int h) const { return max(position(m, h), block.s.leftpad_k); }
    __device__ Visible visible(int m, int h) const { return block.span.visible(block.s, position(m, h)); }
    __device__ float slope(int, int) const { return block.alibi.slope; }
    __device__ float slope_log2(int, int) const { return block.alibi.slope_log2; }
};

// The same where they all stand on one side of a tile: `side` is 1 behind, -1 before. In registers.
struct SideRows {
    int nearest_of[2];
    float slope_of, slope_log2_of;

    template <typename Rows>
    __device__ SideRows(const Rows &rows, float side)
        : nearest_of{rows.nearest(0, 0), rows.nearest(0, 1)},
          slope_of(rows.slope(0, 0) * side),
          slope_log2_of(rows.slope_log2(0, 0) * side) {}
    __device__ int nearest(int, int h) const { return nearest_of[h]; }
    __device__ float slope(int, int) const { return slope_of; }
    __device__ float slope_log2(int, int) const { return slope_log2_of; }
};
