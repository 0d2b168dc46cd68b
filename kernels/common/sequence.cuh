// Where the sequences of a batch lie, where their queries stand, and which keys a query sees: the part of the contract that
// every kernel shares.

#pragma once

#include "limits.h"
#include "params.h"

struct Sequence {
    int64_t first_q, first_k;
    int seqlen_q, seqlen_k, leftpad_k;
    // Query row i stands at i + offset, which 32 bits need not hold.
    int offset;
    // Row i sees the keys from i + left to i + right, of those that there are. Both are so bounded that an int holds the sums.
    int left, right;
};

__device__ inline int clamp(int x, int low, int high) { return min(max(x, low), high); }

__device__ inline int clamp64(int64_t x, int low, int high) { return (int)min(max(x, (int64_t)low), (int64_t)high); }

// Lengths and offsets lie in device memory, where nobody has checked them: lengths are clamped to the tensors.
__device__ inline Sequence sequence(const AttentionParams &p, int batch) {
    Sequence s = {0, 0, p.seqlen_q, p.seqlen_k, 0};
    if (p.cu_seqlens_q) {
        const int32_t *cu = (const int32_t *)p.cu_seqlens_q + batch;
        const int first = clamp(cu[0], 0, p.rows_q), end = clamp(cu[1], first, p.rows_q);
        s.first_q = first;
        s.seqlen_q = min(end - first, p.seqlen_q);
    }
    if (p.cu_seqlens_k) {
        const int32_t *cu = (const int32_t *)p.cu_seqlens_k + batch;
        const int first = clamp(cu[0], 0, p.rows_k), end = clamp(cu[1], first, p.rows_k);
        s.first_k = first;
        s.seqlen_k = min(end - first, p.seqlen_k);
    }
    if (p.seqused_k) s.seqlen_k = clamp(((const int32_t *)p.seqused_k)[batch], 0, s.seqlen_k);
    if (p.leftpad_k) s.leftpad_k = clamp(((const int32_t *)p.leftpad_k)[batch], 0, s.seqlen_k);
    // Without offsets, rows are aligned at the end.
    s.offset = p.offset ? ((const int32_t *)p.offset)[batch] : s.seqlen_k - s.seqlen_q;
    // What is farther than the longest sequence is outside of it, from every row.
    s.left = p.window_left < 0 ? -MAX_SEQLEN : clamp64(s.offset - p.window_left, -MAX_SEQLEN, MAX_SEQLEN);
    s.right = p.window_right < 0 ? MAX_SEQLEN : clamp64(s.offset + p.window_right, -MAX_SEQLEN, MAX_SEQLEN);
    return s;
}

// The key position at which a row stands: before, among or behind the keys that there are.
__device__ inline int64_t position(const Sequence &s, int i) { return (int64_t)i + s.offset; }

// How far a row stands from a key.
__device__ inline int64_t distance(const Sequence &s, int i, int key) {
    const int64_t d = position(s, i) - key;
    return d < 0 ? -d : d;
}

// The key that is nearest to a row: it sees that if it sees any.
__device__ inline int nearest_key(const Sequence &s, int i) { return clamp64(position(s, i), s.leftpad_k, s.seqlen_k - 1); }

// The first and the last key that a row sees; it sees none where first > last. Both grow with the row.
struct Visible {
    int first, last;
};

__device__ inline Visible visible(const Sequence &s, int i) {
    return {max(s.leftpad_k, i + s.left), min(s.seqlen_k - 1, i + s.right)};
}

// Rows of a sequence that stand one after the other: where the first and the last stand, and the keys those see. The rows
// between see no others, and all see what both see.
//
// Where all of them stand behind the last key, their positions are moved back together, until the first stands on it: so
// numbers stay small, whatever the offset. The lse has what that leaves out of the distances.
struct Span {
    int first_position, last_position;
    Visible of_first, of_last;
    // From such a position to the limits of what the row sees; modulo 2^32, which their sums do not exceed.
    uint32_t left, right;

    Span() = default;
    __device__ Span(const Sequence &s, int first_row, int last_row)
        : first_position(clamp64(position(s, first_row), -MAX_SEQLEN, s.seqlen_k - 1)),
          last_position(first_position + (last_row - first_row)),
          of_first(::visible(s, first_row)),
          of_last(::visible(s, last_row)),
          left((uint32_t)s.left + first_row - first_position),
          right((uint32_t)s.right + first_row - first_position) {}

    // What the row at such a position sees.
    __device__ Visible visible(const Sequence &s, int position) const {
        return {max(s.leftpad_k, (int)(position + left)), min(s.seqlen_k - 1, (int)(position + right))};
    }

    // The keys that any row sees.
    __device__ int begin() const { return of_first.first; }
    __device__ int end() const { return of_last.last + 1; }

    // Of so many keys from the first on.
    __device__ bool all_rows_see(int first, int keys) const {
        return first >= of_last.first && first + keys - 1 <= of_first.last;
    }
    __device__ bool all_rows_follow(int first, int keys) const { return first + keys - 1 <= first_position; }
    __device__ bool all_rows_precede(int first) const { return first >= last_position; }
};

template <typename T>
__device__ inline T *row(uint64_t tensor, const TensorStrides &strides, int64_t batch, int64_t row, int64_t head) {
    return (T *)tensor + batch * strides.batch + row * strides.row + head * strides.head;
}

// Where a key of a sequence lies in k and v: the batch entry or page, and the row within.
struct Place {
    int entry, row;
};

__device__ inline Place place(const AttentionParams &p, const Sequence &s, int batch, int key) {
    if (!p.block_table) return {batch, (int)s.first_k + key};
    const int column = key / p.page_size;
    const int page = ((const int32_t *)p.block_table)[batch * p.table_stride + min(column, p.table_columns - 1)];
    return {clamp(page, 0, p.pages - 1), key - column * p.page_size};
}
