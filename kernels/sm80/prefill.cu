// Fused attention for many queries of a sequence, on the tensor cores of sm_80 and later. A block has ROWS query rows of one
// head; tiles of KEYS keys pass through shared memory, from the diagonal outwards:
//
//     S = Q K^T;  weights = softmax(scale S - slope distance);  O += weights V
//
// Each warp has whole rows, so that nothing but keys and values is shared. V arrives while S is computed, the next K while O is.

#include "common/horizon.cuh"
#include "common/row.cuh"
#include "common/softmax.cuh"
#include "products.cuh"

#include <new>

namespace {

// D: the head dimension, rounded up to one that there is.
template <typename T, int D, int ROWS, int KEYS, int THREADS>
struct Prefill {
    static constexpr int WARPS = THREADS / 32;
    // Blocks of 16 rows of a warp.
    static constexpr int M = ROWS / 16 / WARPS;
    static_assert(M * 16 * WARPS == ROWS && ROWS <= THREADS, "warps have whole blocks of rows, and threads a row to judge");

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
        // Whether the horizon may leave out tiles, and what it compares with.
        bool horizon;
        Budget budget;
        const float *centre, *radii;

        __device__ Block(const AttentionParams &p) {
            // The last rows come first: under a causal mask they have the most keys.
            const int blocks = (p.seqlen_q + ROWS - 1) / ROWS;
            first_row = (blocks - 1 - blockIdx.x % blocks) * ROWS;
            const int index = blockIdx.x / blocks;
            if (p.centres) {
                batch = index % p.batch;
                head = ((const int32_t *)p.order)[(int64_t)batch * p.heads_q + index / p.batch];
            } else {
                batch = index / p.heads_q;
                head = index % p.heads_q;
            }
            s = sequence(p, batch);
            alibi = Alibi(p, batch, head);
            last_row = min(first_row + ROWS, s.seqlen_q) - 1;
            span = Span(s, first_row, last_row);
            q = rows(p.q, p.q_strides, s.first_q, head);
            k = keys(p, p.k, p.k_strides);
            v = keys(p, p.v, p.v_strides);
            out = rows(p.out, p.out_strides, s.first_q, head);
            const int begin = span.begin(), end = span.end();
            first_tile = begin / KEYS;
            tiles = begin < end ? (end - 1) / KEYS - first_tile + 1 : 0;
            nearest_tile = clamp(span.last_position, begin, end - 1) / KEYS;
            horizon = p.centres && has_horizon(p, alibi) && Seen(p, s).enough();
            if (horizon) {
                const int64_t of_keys = (int64_t)batch * (p.heads_q / p.group) + head / p.group;
                budget = Budget(p, alibi, p.window_right == 0 ? 1 : 2, KEYS);
                centre = (const float *)p.centres + of_keys * p.head_dim;
                radii = (const float *)p.radii + of_keys * 3 * p.tiles;
            }
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

        // The steps from the nearest tile back to the first; the others go on to the last.
        __device__ int back() const { return nearest_tile - first_tile; }
        __device__ int tile(int step) const { return step <= back() ? nearest_tile - step : first_tile + step; }
        __device__ int first_key(int step) const { return tile(step) * KEYS; }
    };

    // The rows of a lane.
    struct LaneRows {
        const Block &block;
        int first;

        __device__ int position(int m, int h) const { return block.span.first_position + first + m * 16 + h * 8; }
        __device__ int nearest(int m, int h) const { return max(position(m, h), block.s.leftpad_k); }
        __device__ Visible visible(int m, int h) const { return block.span.visible(block.s, position(m, h)); }
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

    // The horizon's tests: a thread a row.
    struct Horizon {
        const AttentionParams &p;
        const Block &block;
        // Of each row: what bounds its scores, and the largest exponent so far.
        RowBound *bounds;
        float *maxima;

        // What bounds the scores of each row of Q; a thread a row.
        __device__ void bound_rows(Tile q_tile) const {
            const int r = threadIdx.x;
            if (r >= ROWS) return;
            float dot = 0, square = 0, centre_square = 0;
            for (int chunk = 0; chunk < p.head_dim / 8; ++chunk) {
                const uint4 eight = ld_shared(q_tile.at(r, chunk));
#pragma unroll
                for (int e = 0; e < 8; ++e) {
                    const float x = widen(((const T *)&eight)[e]), c = block.centre[chunk * 8 + e];
                    dot = fmaf(x, c, dot);
                    square = fmaf(x, x, square);
                    centre_square = fmaf(c, c, centre_square);
                }
            }
            // The largest radius of all tiles.
            const float key_norm = norm_above(centre_square) + block.radii[2 * p.tiles - 1];
            bounds[r] = RowBound(p, dot, norm_above(square), key_norm);
        }

        enum Verdict { KEEP, SKIP, STOP };

        // What becomes of the tile of a step, for the row of this thread.
        __device__ Verdict of_row(int step) const {
            // Read anew each time, so that what follows from it takes no registers in between.
            int r;
            asm volatile("mov.u32 %0, %%tid.x;" : "=r"(r));
            const int position = block.span.first_position + r;
            const int tile = block.tile(step), first = tile * KEYS, last = first + KEYS - 1;
            const bool before = step <= block.back();
            const Visible v = block.span.visible(block.s, position);
            // A row that sees no key here: the keys it sees may be farther.
            if (r >= ROWS || block.first_row + r > block.last_row || v.first > v.last) return STOP;
            if (v.first > last) return before ? STOP : SKIP;
            if (v.last < first) return before ? SKIP : STOP;
            const int nearest = max(position, block.s.leftpad_k), distance = before ? nearest - last : first - nearest;
            // Keys on both sides of the row.
            if (distance < 0) return KEEP;
            const float radius = block.radii[tile], farther = block.radii[(before ? 1 : 2) * p.tiles + tile];
            const RowBound bound = bounds[r];
            auto above = [&](float radius) { return bound.above(p, block.alibi.slope_log2, radius, distance) - maxima[r]; };
            if (above(farther) <= -block.budget.tail) return STOP;
            const float share = block.budget.share(before ? step : step - block.back(), log2_approx);
            return above(radius) <= -(block.budget.tile + share) ? SKIP : KEEP;
        }

        // The next step whose tile some row of the block keeps.
        __device__ int next(int step) const {
            __shared__ uint32_t kept[WARPS];
            ++step;
            while (step < block.tiles) {
                const Verdict verdict = of_row(step);
                if (!__syncthreads_and(verdict != KEEP)) break;
                const int end = step <= block.back() ? block.back() + 1 : block.tiles;
                if (__syncthreads_and(verdict == STOP)) {
                    step = end;
                    continue;
                }
                // The next 32 tiles at once.
                const int first = step + 1, count = min(32, end - first);
                uint32_t mine = 0;
#pragma unroll 1
                for (int i = 0; i < count; ++i) mine |= (uint32_t)(of_row(first + i) == KEEP) << i;
                mine = __reduce_or_sync(0xffffffff, mine);
                if (threadIdx.x % 32 == 0) kept[threadIdx.x / 32] = mine;
                __syncthreads();
                uint32_t any = 0;
#pragma unroll
                for (int warp = 0; warp < WARPS; ++warp) any |= kept[warp];
                step = first + (any ? __ffs(any) - 1 : count);
                if (any) break;
            }
            return step;
        }
    };

    __device__ static void run(const AttentionParams &p) {
        __shared__ __align__(alignof(Block)) unsigned char block_bytes[sizeof(Block)];
        const Block &block = *(const Block *)block_bytes;
        if (threadIdx.x == 0) new (block_bytes) Block(p);
        __syncthreads();
        if (block.first_row > block.last_row) return;

        extern __shared__ __align__(128) unsigned char shared[];
        const Tile q_tile = {shared_address(shared)};
        const Tile k_tile = {q_tile.base + ROWS * Tile::ROW_BYTES}, v_tile = {k_tile.base + KEYS * Tile::ROW_BYTES};
        __shared__ RowBound bounds[ROWS];
        __shared__ volatile int this_step, next_step;
        __shared__ float maxima[ROWS];
        const Horizon horizon = {p, block, bounds, maxima};
        if (block.tiles > 0) {
            Copy::template rows<ROWS>(q_tile, block.q, p.head_dim, block.first_row, block.first_row, block.last_row + 1);
            copy_keys(p, block, k_tile, block.k, block.first_key(0));
            cp_async_commit();
            if (block.alibi.sign != 1 || block.horizon) {
                cp_async_wait_all();
                __syncthreads();
            }
            if (block.horizon) horizon.bound_rows(q_tile);
            if (block.alibi.sign != 1) {
                __syncthreads();
                multiply_rows<T, ROWS, D, THREADS>(q_tile, block.alibi.sign);
            }
        }

        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const LaneRows rows = {block, warp * 16 * M + lane / 4};

        const Fragment<D> q = Fragment<D>::rows_first({q_tile.base + warp * 16 * M * Tile::ROW_BYTES});
        const Fragment<D> k = Fragment<D>::chunks_first(k_tile), v = Fragment<D>::rows_first(v_tile);
        Softmax<M> softmax;
        Output out = {};
        for (int step = 0; step < block.tiles;) {
            const int key = block.first_key(step);
            cp_async_wait_all();
            __syncthreads();
            copy_keys(p, block, v_tile, block.v, key);
            cp_async_commit();
            // Which tile comes next, while there are no scores in registers: by what earlier tiles have left as maxima.
            const int next = block.horizon && step > 0 ? horizon.next(step) : step + 1;
            // Both wait in shared memory: the products need every register.
            if (threadIdx.x == 0) this_step = step, next_step = next;
            if (p.report && threadIdx.x == 0) atomicAdd((unsigned long long *)p.report + 2 * block.head, 1);

            Scores<M, KEYS> scores;
            multiply_qk<T>(scores, q, k);
            cp_async_wait_all();
            __syncthreads();
            if (next < block.tiles) copy_keys(p, block, k_tile, block.k, block.first_key(next_step));
            cp_async_commit();

            float constant[M][2] = {};
            finish_scores(scores, block.alibi, block.span, rows, block.first_key(this_step), constant);
            softmax.add(scores, block.alibi.scale, constant, out);
            multiply_pv<T>(out, scores, v);
            if (block.horizon) {
#pragma unroll
                for (int i = 0; i < 2 * M; ++i) maxima[warp * 16 * M + i * 8 + lane / 4] = softmax.max[i / 2][i % 2];
            }
            step = next_step;
        }
        if (p.report && threadIdx.x == 0) atomicAdd((unsigned long long *)p.report + 2 * block.head + 1, block.tiles);

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
                    // 0 is +0, whether or not zeros of keys that weigh nothing were added to it.
                    const float x = fmaf(two[0], factor, 0), y = fmaf(two[1], factor, 0);
                    st_shared(out_tile.at(r, n) + lane % 4 * 4, seen ? pack(x, y, T()) : 0);
                }
                if (seen && zero != 0) not_finite |= 1u << r;
                if (p.lse && lane % 4 == 0 && warp_row + r <= block.last_row) {
                    const int64_t left_out = distance(block.s, warp_row + r, rows.nearest(m, h));
                    const float slope = slope_of(p, block.batch, block.head);
                    const float lse = farther((softmax.max[m][h] + log2_approx(sum)) * LN_2, slope, left_out);
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
            const Visible keys = visible(block.s, i);
            const RowResult result = attend_row<T>(p, block.s, block.batch, block.head, i, keys);
            write_row<T>(p, block.s, block.batch, block.head, i, result);
        }
    }
};

}  // namespace

#define PREFILL_OF(NAME, T, D, ROWS, KEYS, THREADS)                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) prefill_##NAME##_d##D(                                   \
        const __grid_constant__ AttentionParams p) {                                                               \
        Prefill<T, D, ROWS, KEYS, THREADS>::run(p);                                                                \
    }
#define PREFILL(...) FOR_EACH_ELEMENT(PREFILL_OF, __VA_ARGS__)
#include "kernels.def"
