// Fused attention for many queries of a sequence, on the tensor cores of sm_80 and later. A block has ROWS query rows of one
// head; tiles of KEYS keys pass through shared memory, from the diagonal outwards:
//
//     S = Q K^T;  weights = softmax(scale S - slope distance);  O += weights V
//
// Each warp has whole rows, so that nothing but keys and values is shared. V arrives while S is computed, the next K while O is.

#include "common/epilogue.cuh"
#include "common/verdicts.cuh"
#include "products.cuh"

#include <new>

namespace {

// DENSE: k and v are in one piece; their rows begin at multiples of 16 bytes, and are less than 2^31 bytes apart. HORIZON: tiles
// may be left out. src/plan/prefill.rs chooses.
// D: the head dimension, rounded up to one that there is.
template <typename T, int D, int ROWS, int KEYS, int THREADS, bool DENSE, bool HORIZON>
struct Prefill {
    static constexpr int WARPS = THREADS / 32;
    // Blocks of 16 rows of a warp.
    static constexpr int M = ROWS / 16 / WARPS;
    static_assert(M * 16 * WARPS == ROWS && ROWS <= THREADS, "warps have whole blocks of rows, and threads a row to judge");

    using Tile = SharedTile<D>;
    using Copy = ::Copy<T, D, THREADS>;
    using Output = float[M][D / 8][4];

    // Tiles on one side of the rows.
    struct Side {
        // The first key of the tile of step 0.
        int start;
        // All rows see the tiles whose first keys are from `first` to `last`, and stand on the one side of them: where `sign` is
        // 1 behind, where it is -1 before.
        int first, last;
        float sign;
    };

    // A tile of keys.
    struct KeyTile {
        int first;
        // Whether all of its keys are there.
        bool whole;
        // As of the side, or 0: some row does not see all of it, or stands in it, or scores are capped.
        float sign;
    };

    // What all threads of a block know. It lies in shared memory: registers are for the products.
    struct Block {
        Sequence s;
        int batch, head, first_row, last_row;
        Span span;
        // Tiles of keys: how many any row sees, the first of them, and that of the last row's own position.
        int tiles, first_tile, nearest_tile;
        // The first keys of the tiles of which all keys are there.
        int first_whole, last_whole;
        Side before, after;
        // From where distances count: the first row's, to the middle of a tile. The other rows' are `apart` further each.
        int origin;
        float apart;
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
            divide_keys();
            horizon = HORIZON && p.centres && has_horizon(p, alibi) && Seen(p, s).enough();
            if (horizon) {
                const int64_t of_keys = (int64_t)batch * (p.heads_q / p.group) + head / p.group;
                budget = Budget(p, alibi, p.window_right == 0 ? 1 : 2, KEYS);
                centre = (const float *)p.centres + of_keys * p.head_dim;
                radii = (const float *)p.radii + of_keys * 3 * p.tiles;
            }
        }

        __device__ void divide_keys() {
            const int begin = span.begin(), end = span.end();
            first_tile = begin / KEYS;
            tiles = begin < end ? (end - 1) / KEYS - first_tile + 1 : 0;
            nearest_tile = clamp(span.last_position, begin, end - 1) / KEYS;
            first_whole = begin;
            last_whole = end - KEYS;
            // Rows before the first key all count from it.
            const bool all_before = span.last_position < s.leftpad_k, none_before = span.first_position >= s.leftpad_k;
            origin = (all_before ? s.leftpad_k : span.first_position) - KEYS / 2;
            apart = all_before ? 0 : 1;
            const int first_seen = span.of_last.first, last_seen = span.of_first.last - KEYS + 1;
            before = {nearest_tile * KEYS, first_seen, min(last_seen, span.first_position - KEYS + 1), 1};
            after = {first_tile * KEYS, max(first_seen, span.last_position), last_seen, -1};
            if (alibi.cap_scale != 0 || !(all_before || none_before)) before.last = after.last = -1;
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

        // How far from their centre the keys of a tile are, those of a tile and of all that are farther, and those of all.
        __device__ float radius(const AttentionParams &, int tile) const { return radii[tile]; }
        __device__ float farther_radius(const AttentionParams &p, int tile, bool before) const {
            return radii[(before ? 1 : 2) * p.tiles + tile];
        }
        __device__ float largest_radius(const AttentionParams &p) const { return radii[2 * p.tiles - 1]; }

        __device__ KeyTile key_tile(int step) const {
            const bool behind = step <= back();
            const Side side = behind ? before : after;
            const int key = side.start + step * (behind ? -KEYS : KEYS);
            return {key, key >= first_whole && key <= last_whole, key >= side.first && key <= side.last ? side.sign : 0};
        }
    };

    // What a thread knows of its own part: of its copies, where its first row stands from its first key of a tile at 0, and where
    // its fragments are.
    struct Thread {
        CopyPart k_part, v_part;
        int origin;
        Fragment<D> q, k, v;

        Thread() = default;
        __device__ Thread(const AttentionParams &p, const Block &block, Tile q_tile, Tile k_tile, Tile v_tile)
            : k_part(Copy::part(k_tile, block.k, p.head_dim)), v_part(Copy::part(v_tile, block.v, p.head_dim)) {
            const int warp_row = threadIdx.x / 32 * 16 * M, row = warp_row + threadIdx.x % 32 / 4;
            origin = block.origin + row * (int)block.apart - Scores<M, KEYS>::first_key_of_lane();
            q = Fragment<D>::rows_first({q_tile.base + warp_row * Tile::ROW_BYTES});
            k = Fragment<D>::chunks_first(k_tile);
            v = Fragment<D>::rows_first(v_tile);
        }
    };

    // The same of all threads, in shared memory: each part for itself, so that a warp reads it without bank conflicts.
    struct Threads {
        uint64_t k_from[THREADS], v_from[THREADS];
        uint2 k_to[THREADS], v_to[THREADS];
        int origins[THREADS];
        Fragment<D> q[THREADS], k[THREADS], v[THREADS];

        __device__ void set(const Thread &own) {
            const int t = threadIdx.x;
            k_from[t] = own.k_part.from, v_from[t] = own.v_part.from;
            k_to[t] = own.k_part.to_and_reads, v_to[t] = own.v_part.to_and_reads;
            origins[t] = own.origin, q[t] = own.q, k[t] = own.k, v[t] = own.v;
        }
        __device__ Thread own() const {
            const int t = threadIdx.x;
            Thread thread;
            thread.k_part = {k_from[t], k_to[t]}, thread.v_part = {v_from[t], v_to[t]};
            thread.origin = origins[t], thread.q = q[t], thread.k = k[t], thread.v = v[t];
            return thread;
        }
    };

    // The rows of a lane.
    struct LaneRows {
        const Block &block;
        int first;

        __device__ int position(int m, int h) const { return block.span.first_position + first + m * 16 + h * 8; }
        __device__ int nearest(int m, int h) const { return max(position(m, h), block.s.leftpad_k); }
        __device__ Visible visible(int m, int h) const { return block.span.visible(block.s, position(m, h)); }
        __device__ float slope(int, int) const { return block.alibi.slope; }
    };

    // Begins to copy the rows of a tile of keys or values.
    __device__ static void copy_keys(const AttentionParams &p, const Block &block, Tile to, const CopyPart &part,
                                     const PagedRows &rows, const KeyTile &tile) {
        if (DENSE && tile.whole) {
            Copy::template whole_rows<KEYS>(part, tile.first, rows.row_stride * sizeof(T));
            return;
        }
        const int begin = block.span.begin(), end = block.span.end();
        if (DENSE || !p.block_table) {
            Copy::template rows<KEYS>(to, {rows.first, rows.row_stride}, p.head_dim, tile.first, begin, end);
        } else {
            const int last_eight = max(block.s.seqlen_k - 1, 0) / 8 * 8, of_lane = tile.first + threadIdx.x % (KEYS / 8) * 8;
            const Place group = place(p, block.s, block.batch, clamp(of_lane, 0, last_eight));
            Copy::template paged_rows<KEYS>(to, rows, rows.offset(group), p.head_dim, tile.first, begin, end);
        }
    }

    // How scores become exponents: of a tile on one side of the rows, whose bias within it they have, a row's constant is that
    // of the tile's middle. Of others it is 0.
    __device__ static Exponents<M> exponents(const Block &block, const KeyTile &tile, int origin) {
        Exponents<M> result;
        result.scale = block.alibi.scale;
        const float slope = -block.alibi.slope_log2 * tile.sign, distance = origin - tile.first;
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) result.constant[i / 2][i % 2] = slope * fmaf(8 * i, block.apart, distance);
        return result;
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
        // Where the products take all registers, a thread reads anew for each use what it knows.
        constexpr bool CROWDED = D <= 128;
        __shared__ __align__(8) unsigned char threads_bytes[CROWDED ? sizeof(Threads) : 8];
        Threads &threads = *(Threads *)threads_bytes;
        const Thread known(p, block, q_tile, k_tile, v_tile);
        if (CROWDED) threads.set(known);
        const auto thread = [&] { return CROWDED ? threads.own() : known; };
        __shared__ RowBound bounds[HORIZON ? ROWS : 1];
        __shared__ float maxima[HORIZON ? ROWS : 1];
        __shared__ int settled, skipped;
        const Verdicts<T, Block, ROWS, KEYS, WARPS> horizon = {p, block, bounds, maxima, settled, skipped};
        if (HORIZON) horizon.begin();
        KeyTile tile = block.key_tile(0);
        if (block.tiles > 0) {
            Copy::template rows<ROWS>(q_tile, block.q, p.head_dim, block.first_row, block.first_row, block.last_row + 1);
            copy_keys(p, block, k_tile, thread().k_part, block.k, tile);
            cp_async_commit();
            if (block.alibi.sign != 1 || block.horizon) {
                cp_async_wait_all();
                __syncthreads();
            }
            if (HORIZON && block.horizon) horizon.bound_rows(q_tile);
            if (block.alibi.sign != 1) {
                __syncthreads();
                multiply_rows<T, ROWS, D, THREADS>(q_tile, block.alibi.sign);
            }
        }

        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const LaneRows rows = {block, warp * 16 * M + lane / 4};
        Softmax<M> softmax;
        Output out = {};
        for (int next = 1; block.tiles > 0;) {
            // K has arrived, and V is no longer read.
            cp_async_wait_all();
            __syncthreads();
            copy_keys(p, block, v_tile, thread().v_part, block.v, tile);
            cp_async_commit();

            Scores<M, KEYS> scores;
            const TileBias<KEYS> bias = {block.alibi.slope * tile.sign, block.alibi.slope_again * tile.sign};
            multiply_qk<T>(scores, thread().q, thread().k, bias);
            // V has arrived, and K is no longer read.
            cp_async_wait_all();
            __syncthreads();
            Exponents<M> exponents = Prefill::exponents(block, tile, thread().origin);
            const KeyTile next_tile = block.key_tile(next);
            if (next < block.tiles) copy_keys(p, block, k_tile, thread().k_part, block.k, next_tile);
            cp_async_commit();

            if (tile.sign == 0) {
                if (block.alibi.cap_scale != 0) scores.cap(block.alibi);
                scores.bias_and_mask(rows, tile.first);
            }
            softmax.add(scores, exponents, out);
            multiply_pv<T>(out, softmax, scores, exponents, thread().v);
            tile = next_tile;
            ++next;
            if (HORIZON && next < settled) continue;
            if (next > block.tiles) break;
            // Which tile comes after the next, while there are no scores in registers.
            if (HORIZON) next = horizon.search(next, softmax.max);
        }
        if (p.report && threadIdx.x == 0) {
            unsigned long long *of_head = (unsigned long long *)p.report + 2 * block.head;
            atomicAdd(of_head, block.tiles - (HORIZON ? skipped : 0));
            atomicAdd(of_head + 1, block.tiles);
        }

        // Of the tile of Q, a warp reads only its own rows: they are room for those of the output.
        const Tile out_tile = {q_tile.base + warp * 16 * M * Tile::ROW_BYTES};
        __syncwarp();
        write_rows<T>(p, block.s, block.batch, block.head, block.first_row + warp * 16 * M, block.last_row, out_tile, out,
                      softmax.max, softmax.sum, [&](int m, int h) { return rows.nearest(m, h); });
    }
};

}  // namespace

// The paths of pages take registers that a third block of small heads would need.
#define PREFILL_OF(ELEMENT, T, NAME, DENSE, HORIZON, D, ROWS, KEYS, BLOCKS, THREADS)                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, DENSE ? BLOCKS : 2) prefill_##NAME##_##ELEMENT##_d##D(     \
        const __grid_constant__ AttentionParams p) {                                                                 \
        Prefill<T, D, ROWS, KEYS, THREADS, DENSE, HORIZON>::run(p);                                                  \
    }
#define PREFILL(...)                                               \
    FOR_EACH_ELEMENT(PREFILL_OF, dense, true, false, __VA_ARGS__)  \
    FOR_EACH_ELEMENT(PREFILL_OF, horizon, true, true, __VA_ARGS__) \
    FOR_EACH_ELEMENT(PREFILL_OF, any, false, true, __VA_ARGS__)
#include "kernels.def"
