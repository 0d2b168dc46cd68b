//! Generated from kernels/common/params.h; do not edit. `xtask/tests/params.rs` compares.
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, missing_docs)]


/// Strides of `[batch, seqlen, heads, head_dim]` (packed: batch is 0), the last dimension contiguous.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct TensorStrides {
    pub batch: i64,
    pub row: i64,
    pub head: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorStrides"][::std::mem::size_of::<TensorStrides>() - 24usize];
    ["Alignment of TensorStrides"][::std::mem::align_of::<TensorStrides>() - 8usize];
    [
        "Offset of field: TensorStrides::batch",
    ][::std::mem::offset_of!(TensorStrides, batch) - 0usize];
    [
        "Offset of field: TensorStrides::row",
    ][::std::mem::offset_of!(TensorStrides, row) - 8usize];
    [
        "Offset of field: TensorStrides::head",
    ][::std::mem::offset_of!(TensorStrides, head) - 16usize];
};
/// One attention problem; see `Attention` for what is computed.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct AttentionParams {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub out: u64,
    /// f32 `[batch, heads_q, seqlen_q]`, packed `[heads_q, total_q]`.
    pub lse: u64,
    /// f32 `[heads_q]` or `[batch, heads_q]`.
    pub slopes: u64,
    /// i32 `[batch + 1]`: packed sequences.
    pub cu_seqlens_q: u64,
    pub cu_seqlens_k: u64,
    /// i32 `[batch]`.
    pub seqused_k: u64,
    pub leftpad_k: u64,
    /// i32 `[batch]`: query row i stands at i + offset. 0: at i + seqlen_k - seqlen_q.
    pub offset: u64,
    /** i32 `[batch, table_columns]`: keys and values in pages. Their strides are then those of
 `[pages, page_size, heads_k, head_dim]`.*/
    pub block_table: u64,
    /// f32 `[splits, batch, heads_k, seqlen_q * group, head_dim]` and without the last: where keys are split.
    pub partial_out: u64,
    pub partial_lse: u64,
    /// f32 `[batch, heads_k, head_dim]`: a centre of the keys of each head. 0: no horizon.
    pub centres: u64,
    /** f32 `[batch, heads_k, 3, tiles]`, the largest distance of a key from the centre: of a tile, of a tile and all before
 it, and of a tile and all after it.*/
    pub radii: u64,
    /// The same of a cache: f32 `[heads_k, head_dim]` and `[pages, heads_k]`. 0: it has none.
    pub cache_centres: u64,
    pub page_radii: u64,
    /// i32 `[batch, heads_q]`: the heads in the order in which they are computed.
    pub order: u64,
    /// u64 `[heads_q, 2]`: the tiles that were computed, and all, are added; 0: not wanted.
    pub report: u64,
    /// i32 `[batch, heads_k, blocks of rows, 1 + tiles]`: how many tiles may change the result, and which. 0: all.
    pub live: u64,
    pub q_strides: TensorStrides,
    pub k_strides: TensorStrides,
    pub v_strides: TensorStrides,
    pub out_strides: TensorStrides,
    pub lse_batch_stride: i64,
    pub lse_head_stride: i64,
    pub slopes_batch_stride: i64,
    pub table_stride: i64,
    /// Keys before and after its own position that a query sees; -1: all. 0 after it is causal.
    pub window_left: i64,
    pub window_right: i64,
    /// Rows of a sequence; of the longest, where sequences are packed.
    pub seqlen_q: i32,
    pub seqlen_k: i32,
    /// Rows of a batch entry of the tensors: the total, where sequences are packed.
    pub rows_q: i32,
    pub rows_k: i32,
    pub batch: i32,
    pub heads_q: i32,
    /// Query heads for each key head.
    pub group: i32,
    pub head_dim: i32,
    pub page_size: i32,
    pub pages: i32,
    pub table_columns: i32,
    /// Parts of the keys, each with blocks of its own.
    pub splits: i32,
    pub scale: f32,
    /// 0: none.
    pub softcap: f32,
    /// The weight that the horizon may leave out of a row. Negative: only keys whose weights are 0; 0: no horizon.
    pub tolerance: f32,
    /// Tiles of keys of the longest sequence.
    pub tiles: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AttentionParams"][::std::mem::size_of::<AttentionParams>() - 376usize];
    ["Alignment of AttentionParams"][::std::mem::align_of::<AttentionParams>() - 8usize];
    [
        "Offset of field: AttentionParams::q",
    ][::std::mem::offset_of!(AttentionParams, q) - 0usize];
    [
        "Offset of field: AttentionParams::k",
    ][::std::mem::offset_of!(AttentionParams, k) - 8usize];
    [
        "Offset of field: AttentionParams::v",
    ][::std::mem::offset_of!(AttentionParams, v) - 16usize];
    [
        "Offset of field: AttentionParams::out",
    ][::std::mem::offset_of!(AttentionParams, out) - 24usize];
    [
        "Offset of field: AttentionParams::lse",
    ][::std::mem::offset_of!(AttentionParams, lse) - 32usize];
    [
        "Offset of field: AttentionParams::slopes",
    ][::std::mem::offset_of!(AttentionParams, slopes) - 40usize];
    [
        "Offset of field: AttentionParams::cu_seqlens_q",
    ][::std::mem::offset_of!(AttentionParams, cu_seqlens_q) - 48usize];
    [
        "Offset of field: AttentionParams::cu_seqlens_k",
    ][::std::mem::offset_of!(AttentionParams, cu_seqlens_k) - 56usize];
    [
        "Offset of field: AttentionParams::seqused_k",
    ][::std::mem::offset_of!(AttentionParams, seqused_k) - 64usize];
    [
        "Offset of field: AttentionParams::leftpad_k",
    ][::std::mem::offset_of!(AttentionParams, leftpad_k) - 72usize];
    [
        "Offset of field: AttentionParams::offset",
    ][::std::mem::offset_of!(AttentionParams, offset) - 80usize];
    [
        "Offset of field: AttentionParams::block_table",
    ][::std::mem::offset_of!(AttentionParams, block_table) - 88usize];
    [
        "Offset of field: AttentionParams::partial_out",
    ][::std::mem::offset_of!(AttentionParams, partial_out) - 96usize];
    [
        "Offset of field: AttentionParams::partial_lse",
    ][::std::mem::offset_of!(AttentionParams, partial_lse) - 104usize];
    [
        "Offset of field: AttentionParams::centres",
    ][::std::mem::offset_of!(AttentionParams, centres) - 112usize];
    [
        "Offset of field: AttentionParams::radii",
    ][::std::mem::offset_of!(AttentionParams, radii) - 120usize];
    [
        "Offset of field: AttentionParams::cache_centres",
    ][::std::mem::offset_of!(AttentionParams, cache_centres) - 128usize];
    [
        "Offset of field: AttentionParams::page_radii",
    ][::std::mem::offset_of!(AttentionParams, page_radii) - 136usize];
    [
        "Offset of field: AttentionParams::order",
    ][::std::mem::offset_of!(AttentionParams, order) - 144usize];
    [
        "Offset of field: AttentionParams::report",
    ][::std::mem::offset_of!(AttentionParams, report) - 152usize];
    [
        "Offset of field: AttentionParams::live",
    ][::std::mem::offset_of!(AttentionParams, live) - 160usize];
    [
        "Offset of field: AttentionParams::q_strides",
    ][::std::mem::offset_of!(AttentionParams, q_strides) - 168usize];
    [
        "Offset of field: AttentionParams::k_strides",
    ][::std::mem::offset_of!(AttentionParams, k_strides) - 192usize];
    [
        "Offset of field: AttentionParams::v_strides",
    ][::std::mem::offset_of!(AttentionParams, v_strides) - 216usize];
    [
        "Offset of field: AttentionParams::out_strides",
    ][::std::mem::offset_of!(AttentionParams, out_strides) - 240usize];
    [
        "Offset of field: AttentionParams::lse_batch_stride",
    ][::std::mem::offset_of!(AttentionParams, lse_batch_stride) - 264usize];
    [
        "Offset of field: AttentionParams::lse_head_stride",
    ][::std::mem::offset_of!(AttentionParams, lse_head_stride) - 272usize];
    [
        "Offset of field: AttentionParams::slopes_batch_stride",
    ][::std::mem::offset_of!(AttentionParams, slopes_batch_stride) - 280usize];
    [
        "Offset of field: AttentionParams::table_stride",
    ][::std::mem::offset_of!(AttentionParams, table_stride) - 288usize];
    [
        "Offset of field: AttentionParams::window_left",
    ][::std::mem::offset_of!(AttentionParams, window_left) - 296usize];
    [
        "Offset of field: AttentionParams::window_right",
    ][::std::mem::offset_of!(AttentionParams, window_right) - 304usize];
    [
        "Offset of field: AttentionParams::seqlen_q",
    ][::std::mem::offset_of!(AttentionParams, seqlen_q) - 312usize];
    [
        "Offset of field: AttentionParams::seqlen_k",
    ][::std::mem::offset_of!(AttentionParams, seqlen_k) - 316usize];
    [
        "Offset of field: AttentionParams::rows_q",
    ][::std::mem::offset_of!(AttentionParams, rows_q) - 320usize];
    [
        "Offset of field: AttentionParams::rows_k",
    ][::std::mem::offset_of!(AttentionParams, rows_k) - 324usize];
    [
        "Offset of field: AttentionParams::batch",
    ][::std::mem::offset_of!(AttentionParams, batch) - 328usize];
    [
        "Offset of field: AttentionParams::heads_q",
    ][::std::mem::offset_of!(AttentionParams, heads_q) - 332usize];
    [
        "Offset of field: AttentionParams::group",
    ][::std::mem::offset_of!(AttentionParams, group) - 336usize];
    [
        "Offset of field: AttentionParams::head_dim",
    ][::std::mem::offset_of!(AttentionParams, head_dim) - 340usize];
    [
        "Offset of field: AttentionParams::page_size",
    ][::std::mem::offset_of!(AttentionParams, page_size) - 344usize];
    [
        "Offset of field: AttentionParams::pages",
    ][::std::mem::offset_of!(AttentionParams, pages) - 348usize];
    [
        "Offset of field: AttentionParams::table_columns",
    ][::std::mem::offset_of!(AttentionParams, table_columns) - 352usize];
    [
        "Offset of field: AttentionParams::splits",
    ][::std::mem::offset_of!(AttentionParams, splits) - 356usize];
    [
        "Offset of field: AttentionParams::scale",
    ][::std::mem::offset_of!(AttentionParams, scale) - 360usize];
    [
        "Offset of field: AttentionParams::softcap",
    ][::std::mem::offset_of!(AttentionParams, softcap) - 364usize];
    [
        "Offset of field: AttentionParams::tolerance",
    ][::std::mem::offset_of!(AttentionParams, tolerance) - 368usize];
    [
        "Offset of field: AttentionParams::tiles",
    ][::std::mem::offset_of!(AttentionParams, tiles) - 372usize];
};
/// New keys and values for a paged cache.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct AppendParams {
    /// `[tokens, heads_k, head_dim]`.
    pub k: u64,
    pub v: u64,
    /// `[pages, page_size, heads_k, head_dim]`.
    pub k_pages: u64,
    pub v_pages: u64,
    /// i64 `[tokens]`: page * page_size + row; a token whose slot is negative, or no slot of the cache, is left out.
    pub slot_mapping: u64,
    /// f32 `[heads_k, head_dim]`: a centre of the keys of each head.
    pub centres: u64,
    /// f32 `[pages, heads_k]`: the largest distance of a key from the centre; 0 where nobody keeps it.
    pub radii: u64,
    pub k_strides: TensorStrides,
    pub v_strides: TensorStrides,
    pub k_page_strides: TensorStrides,
    pub v_page_strides: TensorStrides,
    pub pages: i64,
    pub page_size: i32,
    pub tokens: i32,
    pub heads_k: i32,
    pub head_dim: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of AppendParams"][::std::mem::size_of::<AppendParams>() - 176usize];
    ["Alignment of AppendParams"][::std::mem::align_of::<AppendParams>() - 8usize];
    [
        "Offset of field: AppendParams::k",
    ][::std::mem::offset_of!(AppendParams, k) - 0usize];
    [
        "Offset of field: AppendParams::v",
    ][::std::mem::offset_of!(AppendParams, v) - 8usize];
    [
        "Offset of field: AppendParams::k_pages",
    ][::std::mem::offset_of!(AppendParams, k_pages) - 16usize];
    [
        "Offset of field: AppendParams::v_pages",
    ][::std::mem::offset_of!(AppendParams, v_pages) - 24usize];
    [
        "Offset of field: AppendParams::slot_mapping",
    ][::std::mem::offset_of!(AppendParams, slot_mapping) - 32usize];
    [
        "Offset of field: AppendParams::centres",
    ][::std::mem::offset_of!(AppendParams, centres) - 40usize];
    [
        "Offset of field: AppendParams::radii",
    ][::std::mem::offset_of!(AppendParams, radii) - 48usize];
    [
        "Offset of field: AppendParams::k_strides",
    ][::std::mem::offset_of!(AppendParams, k_strides) - 56usize];
    [
        "Offset of field: AppendParams::v_strides",
    ][::std::mem::offset_of!(AppendParams, v_strides) - 80usize];
    [
        "Offset of field: AppendParams::k_page_strides",
    ][::std::mem::offset_of!(AppendParams, k_page_strides) - 104usize];
    [
        "Offset of field: AppendParams::v_page_strides",
    ][::std::mem::offset_of!(AppendParams, v_page_strides) - 128usize];
    [
        "Offset of field: AppendParams::pages",
    ][::std::mem::offset_of!(AppendParams, pages) - 152usize];
    [
        "Offset of field: AppendParams::page_size",
    ][::std::mem::offset_of!(AppendParams, page_size) - 160usize];
    [
        "Offset of field: AppendParams::tokens",
    ][::std::mem::offset_of!(AppendParams, tokens) - 164usize];
    [
        "Offset of field: AppendParams::heads_k",
    ][::std::mem::offset_of!(AppendParams, heads_k) - 168usize];
    [
        "Offset of field: AppendParams::head_dim",
    ][::std::mem::offset_of!(AppendParams, head_dim) - 172usize];
};
/// Pages of a cache to copy.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct CopyPagesParams {
    /// i64 `[copies, 2]`: from which page to which, in this order; a pair with a page that the cache does not have is left out.
    pub copies: u64,
    /// `[pages, page_size, heads_k, head_dim]`.
    pub k_pages: u64,
    pub v_pages: u64,
    /// f32 `[pages, heads_k]`: copied with the pages; 0 where nobody keeps it.
    pub radii: u64,
    pub k_page_strides: TensorStrides,
    pub v_page_strides: TensorStrides,
    pub pages: i64,
    pub count: i32,
    pub page_size: i32,
    pub heads_k: i32,
    pub head_dim: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of CopyPagesParams"][::std::mem::size_of::<CopyPagesParams>() - 104usize];
    ["Alignment of CopyPagesParams"][::std::mem::align_of::<CopyPagesParams>() - 8usize];
    [
        "Offset of field: CopyPagesParams::copies",
    ][::std::mem::offset_of!(CopyPagesParams, copies) - 0usize];
    [
        "Offset of field: CopyPagesParams::k_pages",
    ][::std::mem::offset_of!(CopyPagesParams, k_pages) - 8usize];
    [
        "Offset of field: CopyPagesParams::v_pages",
    ][::std::mem::offset_of!(CopyPagesParams, v_pages) - 16usize];
    [
        "Offset of field: CopyPagesParams::radii",
    ][::std::mem::offset_of!(CopyPagesParams, radii) - 24usize];
    [
        "Offset of field: CopyPagesParams::k_page_strides",
    ][::std::mem::offset_of!(CopyPagesParams, k_page_strides) - 32usize];
    [
        "Offset of field: CopyPagesParams::v_page_strides",
    ][::std::mem::offset_of!(CopyPagesParams, v_page_strides) - 56usize];
    [
        "Offset of field: CopyPagesParams::pages",
    ][::std::mem::offset_of!(CopyPagesParams, pages) - 80usize];
    [
        "Offset of field: CopyPagesParams::count",
    ][::std::mem::offset_of!(CopyPagesParams, count) - 88usize];
    [
        "Offset of field: CopyPagesParams::page_size",
    ][::std::mem::offset_of!(CopyPagesParams, page_size) - 92usize];
    [
        "Offset of field: CopyPagesParams::heads_k",
    ][::std::mem::offset_of!(CopyPagesParams, heads_k) - 96usize];
    [
        "Offset of field: CopyPagesParams::head_dim",
    ][::std::mem::offset_of!(CopyPagesParams, head_dim) - 100usize];
};
/// Attention over other keys, to be merged into what there is.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone, PartialEq)]
pub struct MergeStateParams {
    /// `[batch, seqlen_q, heads_q, head_dim]`, packed `[total_q, heads_q, head_dim]`.
    pub out: u64,
    /// f32 `[batch, heads_q, seqlen_q]`, packed `[heads_q, total_q]`.
    pub lse: u64,
    pub other_out: u64,
    pub other_lse: u64,
    pub out_strides: TensorStrides,
    pub other_out_strides: TensorStrides,
    pub batch: i32,
    pub rows: i32,
    pub heads_q: i32,
    pub head_dim: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MergeStateParams"][::std::mem::size_of::<MergeStateParams>() - 96usize];
    [
        "Alignment of MergeStateParams",
    ][::std::mem::align_of::<MergeStateParams>() - 8usize];
    [
        "Offset of field: MergeStateParams::out",
    ][::std::mem::offset_of!(MergeStateParams, out) - 0usize];
    [
        "Offset of field: MergeStateParams::lse",
    ][::std::mem::offset_of!(MergeStateParams, lse) - 8usize];
    [
        "Offset of field: MergeStateParams::other_out",
    ][::std::mem::offset_of!(MergeStateParams, other_out) - 16usize];
    [
        "Offset of field: MergeStateParams::other_lse",
    ][::std::mem::offset_of!(MergeStateParams, other_lse) - 24usize];
    [
        "Offset of field: MergeStateParams::out_strides",
    ][::std::mem::offset_of!(MergeStateParams, out_strides) - 32usize];
    [
        "Offset of field: MergeStateParams::other_out_strides",
    ][::std::mem::offset_of!(MergeStateParams, other_out_strides) - 56usize];
    [
        "Offset of field: MergeStateParams::batch",
    ][::std::mem::offset_of!(MergeStateParams, batch) - 80usize];
    [
        "Offset of field: MergeStateParams::rows",
    ][::std::mem::offset_of!(MergeStateParams, rows) - 84usize];
    [
        "Offset of field: MergeStateParams::heads_q",
    ][::std::mem::offset_of!(MergeStateParams, heads_q) - 88usize];
    [
        "Offset of field: MergeStateParams::head_dim",
    ][::std::mem::offset_of!(MergeStateParams, head_dim) - 92usize];
};
