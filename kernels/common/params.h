// The parameters of the kernels, shared with Rust: src/kernels/params.rs is generated from this file by bindgen.
// Addresses are device addresses, 0 where the caller gave none. Strides count elements.
#pragma once

#include <stdint.h>

/// Strides of `[batch, seqlen, heads, head_dim]` (packed: batch is 0), the last dimension contiguous.
typedef struct TensorStrides {
    int64_t batch;
    int64_t row;
    int64_t head;
} TensorStrides;

/// One attention problem; see `Attention` for what is computed.
typedef struct AttentionParams {
    uint64_t q;
    uint64_t k;
    uint64_t v;
    uint64_t out;
    /// f32 `[batch, heads_q, seqlen_q]`, packed `[heads_q, total_q]`.
    uint64_t lse;
    /// f32 `[heads_q]` or `[batch, heads_q]`.
    uint64_t slopes;
    /// i32 `[batch + 1]`: packed sequences.
    uint64_t cu_seqlens_q;
    uint64_t cu_seqlens_k;
    /// i32 `[batch]`.
    uint64_t seqused_k;
    uint64_t leftpad_k;
    /// i32 `[batch]`: query row i stands at i + offset. 0: at i + seqlen_k - seqlen_q.
    uint64_t offset;
    /// i32 `[batch, table_columns]`: keys and values in pages. Their strides are then those of
    /// `[pages, page_size, heads_k, head_dim]`.
    uint64_t block_table;
    /// f32 `[splits, batch, heads_k, seqlen_q * group, head_dim]` and without the last: where keys are split.
    uint64_t partial_out;
    uint64_t partial_lse;
    /// f32 `[batch, heads_k, head_dim]`: a centre of the keys of each head. 0: no horizon.
    uint64_t centres;
    /// f32 `[batch, heads_k, 3, tiles]`, the largest distance of a key from the centre: of a tile, of a tile and all before
    /// it, and of a tile and all after it.
    uint64_t radii;
    /// The same of a cache: f32 `[heads_k, head_dim]` and `[pages, heads_k]`. 0: it has none.
    uint64_t cache_centres;
    uint64_t page_radii;
    /// i32 `[batch, heads_q]`: the heads in the order in which they are computed.
    uint64_t order;
    /// u64 `[heads_q, 2]`: the tiles that were computed, and all, are added; 0: not wanted.
    uint64_t report;
    /// i32 `[batch, heads_k, blocks of rows, 1 + tiles]`: how many tiles may change the result, and which. 0: all.
    uint64_t live;
    TensorStrides q_strides;
    TensorStrides k_strides;
    TensorStrides v_strides;
    TensorStrides out_strides;
    int64_t lse_batch_stride;
    int64_t lse_head_stride;
    int64_t slopes_batch_stride;
    int64_t table_stride;
    /// Keys before and after its own position that a query sees; -1: all. 0 after it is causal.
    int64_t window_left;
    int64_t window_right;
    /// Rows of a sequence; of the longest, where sequences are packed.
    int32_t seqlen_q;
    int32_t seqlen_k;
    /// Rows of a batch entry of the tensors: the total, where sequences are packed.
    int32_t rows_q;
    int32_t rows_k;
    int32_t batch;
    int32_t heads_q;
    /// Query heads for each key head.
    int32_t group;
    int32_t head_dim;
    int32_t page_size;
    int32_t pages;
    int32_t table_columns;
    /// Parts of the keys, each with blocks of its own.
    int32_t splits;
    float scale;
    /// 0: none.
    float softcap;
    /// The weight that the horizon may leave out of a row. Negative: only keys whose weights are 0; 0: no horizon.
    float tolerance;
    /// Tiles of keys of the longest sequence.
    int32_t tiles;
} AttentionParams;

/// New keys and values for a paged cache.
typedef struct AppendParams {
    /// `[tokens, heads_k, head_dim]`.
    uint64_t k;
    uint64_t v;
    /// `[pages, page_size, heads_k, head_dim]`.
    uint64_t k_pages;
    uint64_t v_pages;
    /// i64 `[tokens]`: page * page_size + row; a token whose slot is negative, or no slot of the cache, is left out.
    uint64_t slot_mapping;
    /// f32 `[heads_k, head_dim]`: a centre of the keys of each head.
    uint64_t centres;
    /// f32 `[pages, heads_k]`: the largest distance of a key from the centre; 0 where nobody keeps it.
    uint64_t radii;
    TensorStrides k_strides;
    TensorStrides v_strides;
    TensorStrides k_page_strides;
    TensorStrides v_page_strides;
    int64_t pages;
    int32_t page_size;
    int32_t tokens;
    int32_t heads_k;
    int32_t head_dim;
} AppendParams;

/// Pages of a cache to copy.
typedef struct CopyPagesParams {
    /// i64 `[copies, 2]`: from which page to which, in this order; a pair with a page that the cache does not have is left out.
    uint64_t copies;
    /// `[pages, page_size, heads_k, head_dim]`.
    uint64_t k_pages;
    uint64_t v_pages;
    /// f32 `[pages, heads_k]`: copied with the pages; 0 where nobody keeps it.
    uint64_t radii;
    TensorStrides k_page_strides;
    TensorStrides v_page_strides;
    int64_t pages;
    int32_t count;
    int32_t page_size;
    int32_t heads_k;
    int32_t head_dim;
} CopyPagesParams;

/// Attention over other keys, to be merged into what there is.
typedef struct MergeStateParams {
    /// `[batch, seqlen_q, heads_q, head_dim]`, packed `[total_q, heads_q, head_dim]`.
    uint64_t out;
    /// f32 `[batch, heads_q, seqlen_q]`, packed `[heads_q, total_q]`.
    uint64_t lse;
    uint64_t other_out;
    uint64_t other_lse;
    TensorStrides out_strides;
    TensorStrides other_out_strides;
    int32_t batch;
    int32_t rows;
    int32_t heads_q;
    int32_t head_dim;
} MergeStateParams;

#ifdef __cplusplus
static_assert(sizeof(AttentionParams) == 376 && sizeof(AppendParams) == 176 && sizeof(CopyPagesParams) == 104 &&
                  sizeof(MergeStateParams) == 96,
              "the layouts that Rust has");
#endif
