// Fused attention for many queries of a sequence, on the tensor cores of sm_80 and later. A block has ROWS query rows of one
// head; tiles of KEYS keys pass through shared memory, from the diagonal outwards:
//
//     S = Q K^T;  weights = softmax(scale S - slope distance);  O += weights V
//
// Each warp has whole rows, so that nothing but keys and values is shared. V arrives while S is computed, the next K while O is.

#include "products.cuh"
#include "row.cuh"
#include "softmax.cuh"

#include <new>

namespace {

constexpr int WARPS = 4, THREADS = 32 * WARPS;

// D: the head dimension, rounded up to one that there is.
template <typename T, int D>
struct Prefill {
    // What registers hold: 32 rows a warp and 64 keys, or more keys for small heads, or fewer rows for large ones.
    static constexpr int ROWS = D <= 128 ? 128 : 64;
    static constexpr int KEYS = D <= 64 ? 128 : 64;
    // Blocks of 16 rows of a warp.
    static constexpr int M = ROWS / 16 / WARPS;

    using Tile = SharedTile<D>;
    using Copy = ::Copy<T, D, THREADS>;
    using Output = float[M][D / 8][4];

    // What all threads of a block know. It lies in shared memory: registers are for the products.
    struct Block {
        Sequence s;
        int batch, head, first_row, last_row;
        Span span;
        // Tiles of keys: how many any row sees, the first of them, and that of the last row's own position.
        int tiles, first_tile, nearest_tile;
        Alibi alibi;
        GlobalRows q, out;
        PagedRows k, v;

        __device__ Block(const AttentionParams &p) {
            // The last rows come first: under a causal mask they have the most keys.
            const int blocks = (p.seqlen_q + ROWS - 1) / ROWS;
            first_row = (blocks - 1 - blockIdx.x % blocks) * ROWS;
            head = blockIdx.x / blocks % p.heads_q;
            batch = blockIdx.x / blocks / p.heads_q;
            s = sequence(p, batch);
            alibi = Alibi(p, batch, head);
            last_row = min(first_row + ROWS, s.seqlen_q) - 1;
            span = Span(p, s, first_row, last_row);
            q = rows(p.q, p.q_strides, s.first_q, head);
            k = keys(p, p.k, p.k_strides);
            v = keys(p, p.v, p.v_strides);
            out = rows(p.out, p.out_strides, s.first_q, head);
            const int begin = span.begin(), end = span.end();
            first_tile = begin / KEYS;
            tiles = begin < end ? (end - 1) / KEYS - first_tile + 1 : 0;
            nearest_tile = clamp(span.last_position, begin, end - 1) / KEYS;
        }

        __device__ GlobalRows rows(uint64_t tensor, const TensorStrides &strides, int64_t first, int head) const {
            return {(uint64_t)row<T>(tensor, strides, batch, first, head), strides.row};
        }

        __device__ PagedRows keys(const AttentionParams &p, uint64_t tensor, const TensorStrides &strides) const {
            // In pages, a row is found by its page; in one piece, from the first row of the sequence.
            const int entry = p.block_table ? 0 : batch;
            const int64_t first = p.block_table ? 0 : s.first_k;
            return {(uint64_t)row<T>(tensor, strides, entry, first, head / p.group), strides.batch, strides.row};
        }

        // The first key of the tile that comes in this step: from the nearest back to the first, then on to the last.
        __device__ int first_key(int step) const {
            const int back = nearest_tile - first_tile;
            return (step <= back ? nearest_tile - step : first_tile + step) * KEYS;
        }
    };

    // The rows of a lane.
    struct LaneRows {
        const AttentionParams &p;
        const Block &block;
        int first_position;

        __device__ int position(int m, int h) const { return first_position + m * 16 + h * 8; }
        __device__ int nearest(int m, int h) const { return max(position(m, h), block.s.leftpad_k); }
        __device__ Visible visible(int m, int h) const { return ::visible(p, block.s, position(m, h)); }
        __device__ float slope(int, int) const { return block.alibi.slope; }
        __device__ float slope_log2(int, int) const { return block.alibi.slope_log2; }
    };

    // Begins to copy the rows of a tile of keys or values.
    __device__ static void copy_keys(const AttentionParams &p, const Block &block, Tile to, const PagedRows &rows, int key) {
        if (p.block_table) {
            const int last_eight = max(block.s.seqlen_k - 1, 0) / 8 * 8;
            const Place group = place(p, block.s, block.batch, clamp(key + threadIdx.x % (KEYS / 8) * 8, 0, last_eight));
            Copy::template paged_rows<KEYS>(to, rows, rows.offset(group), p.head_dim, key, block.span.begin(), block.span.end());
        } else {
            Copy::template rows<KEYS>(to, {rows.first, rows.row_stride}, p.head_dim, key, block.span.begin(), block.span.end());
        }
    }

    __device__ static void run(const AttentionParams &p) {
        __shared__ __align__(alignof(Block)) unsigned char block_bytes[sizeof(Block)];
        const Block &block = *(const Block *)block_bytes;
        if (threadIdx.x == 0) new (block_bytes) Block(p);
        __syncthreads();
        if (block.first_row > block.last_row) return;

        extern __shared__ __align__(128) unsigned char shared[];
        const Tile q_tile = {shared_address(shared)};
        const Tile k_tile = {q_tile.base + ROWS * Tile::ROW_BYTES}, v_tile = {k_tile.base + KEYS * Tile::ROW_BYTES};
        if (block.tiles > 0) {
            Copy::template rows<ROWS>(q_tile, block.q, p.head_dim, block.first_row, block.first_row, block.last_row + 1);
            copy_keys(p, block, k_tile, block.k, block.first_key(0));
            cp_async_commit();
            if (block.alibi.sign != 1) {
                cp_async_wait_all();
                __syncthreads();
                multiply_rows<T, ROWS, D, THREADS>(q_tile, block.alibi.sign);
            }
        }

        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const LaneRows rows = {p, block, block.span.first_position + warp * 16 * M + lane / 4};

        const Fragment<D> q = Fragment<D>::rows_first({q_tile.base + warp * 16 * M * Tile::ROW_BYTES});
        const Fragment<D> k = Fragment<D>::chunks_first(k_tile), v = Fragment<D>::rows_first(v_tile);
        Softmax<M> softmax;
        Output out = {};
        for (int step = 0; step < block.tiles; ++step) {
            const int key = block.first_key(step);
            cp_async_wait_all();
            __syncthreads();
            copy_keys(p, block, v_tile, block.v, key);
            cp_async_commit();

            Scores<M, KEYS> scores;
            multiply_qk<T>(scores, q, k);
            cp_async_wait_all();
            __syncthreads();
            if (step + 1 < block.tiles) {
                copy_keys(p, block, k_tile, block.k, block.first_key(step + 1));
            }
            cp_async_commit();

            float constant[M][2] = {};
            finish_scores(scores, block.alibi, block.span, rows, key, constant);
            softmax.add(scores, block.alibi.scale, constant, out);
            multiply_pv<T>(out, scores, v);
        }

        // Through the tile of Q, of which a warp reads only its own rows, so that the output is written in whole chunks.
        const Tile out_tile = {q_tile.base + warp * 16 * M * Tile::ROW_BYTES};
        const int warp_row = block.first_row + warp * 16 * M;
        uint32_t not_finite = 0;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = m * 16 + h * 8 + lane / 4;
                const float sum = sum_of_row(softmax.sum[m][h]);
                const bool seen = sum != 0;
                const float factor = reciprocal_approx(sum);
                float zero = 0;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    const float *two = &out[m][n][2 * h];
                    zero = fmaf(two[0], 0, fmaf(two[1], 0, zero));
                    st_shared(out_tile.at(r, n) + lane % 4 * 4, seen ? pack(two[0] * factor, two[1] * factor, T()) : 0);
                }
                if (seen && zero != 0) not_finite |= 1u << r;
                if (p.lse && lane % 4 == 0 && warp_row + r <= block.last_row) {
                    const float parted = (float)(rows.nearest(m, h) - rows.position(m, h));
                    const float lse = (softmax.max[m][h] + log2_approx(sum) - block.alibi.slope_log2 * parted) * LN_2;
                    float *to = (float *)p.lse + block.batch * p.lse_batch_stride + block.head * p.lse_head_stride;
                    to[block.s.first_q + warp_row + r] = seen ? lse : -INFINITY;
                }
            }
        }
        __syncwarp();
        const bool aligned = (block.out.first | block.out.stride * sizeof(T)) % 16 == 0;
        for (int i = lane; i < 16 * M * Tile::CHUNKS; i += 32) {
            const int r = i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
            if (warp_row + r > block.last_row || chunk * 8 >= p.head_dim) continue;
            const uint4 x = ld_shared(out_tile.at(r, chunk));
            T *to = (T *)block.out.first + (warp_row + r) * block.out.stride + chunk * 8;
            if (aligned) {
                *(uint4 *)to = x;
            } else {
#pragma unroll
                for (int e = 0; e < 8; ++e) to[e] = ((const T *)&x)[e];
            }
        }

        // A value that is not finite times a weight of 0 is NaN, in rows that do not see the key too. Such rows are computed
        // again, from the keys they see alone.
        not_finite = __reduce_or_sync(0xffffffff, not_finite);
        __syncwarp();
#pragma unroll 1
        for (; not_finite != 0; not_finite &= not_finite - 1) {
            const int i = warp_row + __ffs(not_finite) - 1;
            if (i > block.last_row) continue;
            const Visible keys = visible(p, block.s, position(block.s, i));
            const RowResult result = attend_row<T>(p, block.s, block.batch, block.head, i, keys);
            write_row<T>(p, block.s, block.batch, block.head, i, result);
        }
    }
};

}  // namespace

#define PREFILL(NAME, T, D)                                                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS) prefill_##NAME##_d##D(                                   \
        const __grid_constant__ AttentionParams p) {                                                               \
        Prefill<T, D>::run(p);                                                                                     \
    }
#define PREFILLS(NAME, T) \
    PREFILL(NAME, T, 32)  \
    PREFILL(NAME, T, 64)  \
    PREFILL(NAME, T, 80)  \
    PREFILL(NAME, T, 96)  \
    PREFILL(NAME, T, 112) \
    PREFILL(NAME, T, 128) \
    PREFILL(NAME, T, 192) \
    PREFILL(NAME, T, 256)

PREFILLS(f16, __half)
PREFILLS(bf16, __nv_bfloat16)
