// Where the sequences of a batch lie, and which keys a query sees: the part of the contract that every kernel shares.

#pragma once

#include "params.h"

struct Sequence {
    int64_t first_q, first_k;
    int seqlen_q, seqlen_k, leftpad_k;
};

__device__ inline int clamp(int x, int low, int high) { return min(max(x, low), high); }

// Lengths lie in device memory, where nobody has checked them: they are clamped to the tensors.
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
    return s;
}

// The key position at which query row i stands: rows are aligned at the end.
__device__ inline int position(const Sequence &s, int i) { return i + (s.seqlen_k - s.seqlen_q); }

// The first and the last key that a query at this position sees; it sees none where first > last. Both grow with the
// position.
struct Visible {
    int first, last;
};

__device__ inline Visible visible(const AttentionParams &p, const Sequence &s, int position) {
    Visible v = {s.leftpad_k, s.seqlen_k - 1};
    if (p.window_left >= 0) v.first = max(v.first, position - p.window_left);
    if (p.window_right >= 0) v.last = min(v.last, position + p.window_right);
    return v;
}

// Rows of a sequence that stand one after the other: where the first and the last stand, and the keys those see. The rows
// between see no others, and all see what both see.
struct Span {
    int first_position, last_position;
    Visible of_first, of_last;

    Span() = default;
    __device__ Span(const AttentionParams &p, const Sequence &s, int first_row, int last_row)
        : first_position(position(s, first_row)),
          last_position(position(s, last_row)),
          of_first(visible(p, s, first_position)),
          of_last(visible(p, s, last_position)) {}

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
