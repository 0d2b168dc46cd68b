// Fused attention for few queries of a sequence: bound by memory, so keys and values are read once for all heads that share
// them, by as many blocks as fill the device, with as much on its way as shared memory holds.
//
// The rows of a block are (token, head) pairs of one key head. Its keys are a part of those that the rows see. With few rows
// the warps divide the keys of a tile, and their results are merged at the end; with many they divide the rows. Where keys
// are split over blocks, each writes its output and lse in f32, and `combine` merges them.

#include "common/row.cuh"
#include "common/softmax.cuh"
#include "live.cuh"
#include "products.cuh"

#include <new>

namespace {

// Where a row of a key head's rows is: row r is head r % group of token r / group.
__device__ int64_t partial_row(const AttentionParams &p, int split, int batch, int head_k, int r) {
    const int heads_k = p.heads_q / p.group;
    const int64_t of_split = ((int64_t)split * p.batch + batch) * heads_k + head_k;
    return of_split * p.seqlen_q * p.group + r;
}

__device__ float *lse_at(const AttentionParams &p, const Sequence &s, int batch, int head, int i) {
    return (float *)p.lse + batch * p.lse_batch_stride + head * p.lse_head_stride + s.first_q + i;
}

// Writes a row of N columns: lane l has 2 l, 2 l + 1, 2 l + 64, ...
template <typename T, int N>
__device__ void write_columns(const AttentionParams &p, T *to, const float2 (&values)[N]) {
    const bool aligned = (uint64_t)to % 4 == 0;
#pragma unroll
    for (int part = 0; part < N; ++part) {
        const int c = part * 64 + threadIdx.x % 32 * 2;
        if (c >= p.head_dim) continue;
        const uint32_t two = pack(values[part].x, values[part].y, T());
        if (aligned) {
            *(uint32_t *)(to + c) = two;
        } else {
            to[c] = ((const T *)&two)[0];
            to[c + 1] = ((const T *)&two)[1];
        }
    }
}

// D: the head dimension, rounded up. STAGES: a ring of tiles, of K and V in turn. M: blocks of 16 rows of a warp.
template <typename T, int D, int ROWS, int KEYS, int STAGES, int THREADS>
struct Decode {
    static constexpr int WARPS = THREADS / 32;
    static constexpr int ROW_WARPS = ROWS < 64 ? 1 : WARPS, KEY_WARPS = WARPS / ROW_WARPS;
    static constexpr int M = ROWS / 16 / ROW_WARPS;
    static constexpr int WARP_KEYS = KEYS / KEY_WARPS;
    static_assert(M * 16 * ROW_WARPS == ROWS && WARP_KEYS % 16 == 0, "warps have whole blocks of rows and of keys");
    static_assert(STAGES % 2 == 0, "K and V in turn");
    static_assert(KEY_WARPS * ROWS * D * sizeof(float) <= STAGES * KEYS * D * sizeof(T), "results are merged in the ring");

    using Tile = SharedTile<D>;
    using Copy = ::Copy<T, D, THREADS>;

    // What all threads of a block know.
    struct Block {
        Sequence s;
        int split, batch, head_k, first_r, last_r;
        Span span;
        // The tiles of this block, from `end_tile` - 1 down to `first_tile`; where there is a list, of its entries.
        int first_tile, end_tile;
        const int32_t *live;
        Alibi scale;
        PagedRows k, v;

        __device__ Block(const AttentionParams &p) {
            const int heads_k = p.heads_q / p.group;
            const int blocks = (p.seqlen_q * p.group + ROWS - 1) / ROWS;
            int index = blockIdx.x;
            split = index % p.splits;
            index /= p.splits;
            first_r = index % blocks * ROWS;
            index /= blocks;
            head_k = index % heads_k;
            batch = index / heads_k;
            s = sequence(p, batch);
            last_r = min(first_r + ROWS, s.seqlen_q * p.group) - 1;
            scale = Alibi(p, batch, head_k * p.group);
            span = Span(s, first_r / p.group, last_r / p.group);
            const int begin = span.begin(), end = span.end();
            int first = begin / KEYS, tiles = begin < end ? (end - 1) / KEYS - first + 1 : 0;
            live = nullptr;
            if (p.live) {
                live = live_tiles<ROWS>(p, batch, head_k, first_r);
                first = 0;
                tiles = *live++;
            }
            first_tile = first + (int)((int64_t)tiles * split / p.splits);
            end_tile = first + (int)((int64_t)tiles * (split + 1) / p.splits);
            k = {(uint64_t)row<T>(p.k, p.k_strides, 0, 0, head_k), p.k_strides.batch, p.k_strides.row};
            v = {(uint64_t)row<T>(p.v, p.v_strides, 0, 0, head_k), p.v_strides.batch, p.v_strides.row};
        }

        // Where a row of the key head stands, in the block's span.
        __device__ int position(const AttentionParams &p, int r) const {
            return span.first_position + (r / p.group - first_r / p.group);
        }
        // Where its bias counts from.
        __device__ int nearest(const AttentionParams &p, int r) const { return max(position(p, r), s.leftpad_k); }

        // Of the `step`-th tile: first those nearest to the rows.
        __device__ int first_key(int step) const {
            const int tile = end_tile - 1 - step;
            return (live ? live[tile] : tile) * KEYS;
        }
    };

    // The rows of a lane; past the last they repeat it.
    struct LaneRows {
        const Block &block;
        int positions[M][2];
        float slopes[M][2], slopes_log2[M][2];

        __device__ LaneRows(const AttentionParams &p, const Block &block, int first) : block(block) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    const int r = min(block.first_r + first + m * 16 + h * 8, block.last_r);
                    const Alibi alibi(p, block.batch, block.head_k * p.group + r % p.group);
                    positions[m][h] = block.position(p, r);
                    slopes[m][h] = alibi.slope;
                    slopes_log2[m][h] = alibi.slope_log2;
                }
            }
        }

        __device__ int position(int m, int h) const { return positions[m][h]; }
        __device__ int nearest(int m, int h) const { return max(positions[m][h], block.s.leftpad_k); }
        __device__ Visible visible(int m, int h) const { return block.span.visible(block.s, positions[m][h]); }
        __device__ float slope(int m, int h) const { return slopes[m][h]; }
        __device__ float slope_log2(int m, int h) const { return slopes_log2[m][h]; }
    };

    // The buffers of tiles, one after the other and then the first again.
    struct Ring {
        uint32_t first, at;

        __device__ explicit Ring(uint32_t first) : first(first), at(first) {}

        __device__ Tile next() {
            const Tile tile = {at};
            at += KEYS * Tile::ROW_BYTES;
            if (at == first + STAGES * KEYS * Tile::ROW_BYTES) at = first;
            return tile;
        }
    };

    // Copies the block's rows of Q.
    __device__ static void copy_q(const AttentionParams &p, const Block &block, Tile to) {
        const bool aligned = (p.q | (p.q_strides.batch | p.q_strides.row | p.q_strides.head) * sizeof(T)) % 16 == 0;
        for (int i = threadIdx.x; i < ROWS * Tile::CHUNKS; i += THREADS) {
            const int r = block.first_r + i / Tile::CHUNKS, chunk = i % Tile::CHUNKS;
            const int head = block.head_k * p.group + r % p.group;
            const T *from = row<const T>(p.q, p.q_strides, block.batch, block.s.first_q + r / p.group, head) + chunk * 8;
            const bool read = r <= block.last_r && chunk * 8 < p.head_dim;
            const uint32_t place = to.at(i / Tile::CHUNKS, chunk);
            if (aligned) {
                cp_async(place, from, read);
            } else {
                st_shared(place, read ? Copy::gather(from) : make_uint4(0, 0, 0, 0));
            }
        }
    }

    __device__ static void run(const AttentionParams &p) {
        __shared__ __align__(alignof(Block)) unsigned char block_bytes[sizeof(Block)];
        // The largest exponent and the sum of each row, by the warps that have a part of its keys.
        __shared__ float maxima[KEY_WARPS][ROWS], sums[KEY_WARPS][ROWS];
        const Block &block = *(const Block *)block_bytes;
        if (threadIdx.x == 0) new (block_bytes) Block(p);
        __syncthreads();
        if (block.first_r > block.last_r) return;

        extern __shared__ __align__(128) unsigned char shared[];
        const Tile q_tile = {shared_address(shared)};
        // Tiles are filled and read in turn.
        Ring filling(q_tile.base + ROWS * Tile::ROW_BYTES), reading = filling;

        // K and then V of each tile. Where their rows lie is looked up a tile ahead; lane l knows it for the rows from 8 l on.
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int steps = block.end_tile - block.first_tile, last_group = max(block.s.seqlen_k - 1, 0) / 8 * 8;
        auto look_up = [&](int step) {
            const int key = step < steps ? block.first_key(step) + lane % (KEYS / 8) * 8 : 0;
            return place(p, block.s, block.batch, clamp(key, 0, last_group));
        };
        Place group = look_up(0);
        auto fill = [&](const PagedRows &rows, int step) {
            const Tile to = filling.next();
            if (step < steps) {
                Copy::template paged_rows<KEYS>(to, rows, rows.offset(group), p.head_dim, block.first_key(step),
                                                block.span.begin(), block.span.end());
            }
            cp_async_commit();
        };
        auto fill_k = [&](int step) { fill(block.k, step); };
        auto fill_v = [&](int step) {
            fill(block.v, step);
            group = look_up(step + 1);
        };
        copy_q(p, block, q_tile);
        for (int step = 0; step < STAGES / 2 - 1; ++step) {
            fill_k(step);
            fill_v(step);
        }
        fill_k(STAGES / 2 - 1);
        if (block.scale.sign != 1) {
            cp_async_wait_all();
            __syncthreads();
            multiply_rows<T, ROWS, D, THREADS>(q_tile, block.scale.sign);
        }

        const int row_warp = warp % ROW_WARPS, key_warp = warp / ROW_WARPS;
        const int first_row = row_warp * 16 * M;
        const bool has_rows = block.first_r + first_row <= block.last_r;
        const LaneRows rows(p, block, first_row + lane / 4);
        const Fragment<D> q = Fragment<D>::rows_first({q_tile.base + first_row * Tile::ROW_BYTES});
        const uint32_t first_of_warp = key_warp * WARP_KEYS * Tile::ROW_BYTES;
        const Fragment<D> k = Fragment<D>::chunks_first({first_of_warp}), v = Fragment<D>::rows_first({first_of_warp});
        Softmax<M> softmax;
        float out[M][D / 8][4] = {};
        for (int step = 0; step < steps; ++step) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            fill_v(step + STAGES / 2 - 1);
            const Tile k_tile = reading.next();
            // Packed before the wait for V: half of the registers that the scores take.
            uint32_t weights[WARP_KEYS / 16][M][4];
            if (has_rows) {
                Scores<M, WARP_KEYS> scores;
                Exponents<M> exponents = {block.scale.scale};
                multiply_qk<T>(scores, q, k.further(k_tile.base), NoBias());
                const int key = block.first_key(step) + key_warp * WARP_KEYS;
                finish_scores(scores, block.scale, block.span, rows, key, exponents.constant);
                softmax.add(scores, exponents, out);
#pragma unroll
                for (int n = 0; n < WARP_KEYS / 16; ++n) softmax.weigh(scores, n, exponents, weights[n], T());
            }

            cp_async_wait<STAGES - 2>();
            __syncthreads();
            fill_k(step + STAGES / 2);
            const Tile v_tile = reading.next();
            if (has_rows) {
#pragma unroll
                for (int n = 0; n < WARP_KEYS / 16; ++n) add_product<T>(out, weights[n], v.further(v_tile.base), n);
            }
        }

        // Everything goes through shared memory, in f32. Columns are turned by 8 a row, which spreads them over the banks.
        cp_async_wait_all();
        __syncthreads();
        const uint32_t merged = q_tile.base + ROWS * Tile::ROW_BYTES;
        auto at = [&](int w, int r, int c) { return merged + ((w * ROWS + r) * D + (c + 8 * r) % D) * (int)sizeof(float); };
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int r = first_row + m * 16 + h * 8 + lane / 4;
                const float sum = sum_of_row(softmax.sum[m][h]);
                if (lane % 4 == 0) {
                    maxima[key_warp][r] = softmax.max[m][h];
                    sums[key_warp][r] = sum;
                }
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    st_shared(at(key_warp, r, 8 * n + lane % 4 * 2), out[m][n][2 * h], out[m][n][2 * h + 1]);
                }
            }
        }
        __syncthreads();
        for (int r = warp; r < ROWS && block.first_r + r <= block.last_r; r += WARPS) {
            write(p, block, r, [&](int w) { return maxima[w][r]; }, [&](int w) { return sums[w][r]; },
                  [&](int w, int c) { return ld_shared_float2(at(w, r, c)); });
        }
    }

    // Merges what the warps have of a row, and writes it: lane l has the columns 2 l, 2 l + 1, 2 l + 64, ...
    template <typename Max, typename Sum, typename Columns>
    __device__ static void write(const AttentionParams &p, const Block &block, int r, Max max_of, Sum sum_of, Columns columns) {
        float largest = -INFINITY, sum = 0, weights[KEY_WARPS];
#pragma unroll
        for (int w = 0; w < KEY_WARPS; ++w) largest = fmaxf(largest, max_of(w));
#pragma unroll
        for (int w = 0; w < KEY_WARPS; ++w) {
            weights[w] = max_of(w) == -INFINITY ? 0 : exp2_approx(max_of(w) - largest);
            sum += weights[w] * sum_of(w);
        }
        const bool seen = sum != 0;
        const int lane = threadIdx.x % 32, of_head = block.first_r + r;
        const int i = of_head / p.group, head = block.head_k * p.group + of_head % p.group;
        // Parts are merged before the whole distance is added: it would leave nothing of their differences.
        const int64_t counted = p.splits > 1 ? distance(block.s, i, nearest_key(block.s, i)) : 0;
        const int64_t left_out = distance(block.s, i, block.nearest(p, of_head)) - counted;
        const float factor = 1 / sum;
        float lse = -INFINITY;
        if (seen) lse = farther((largest + log2_approx(sum)) * LN_2, slope_of(p, block.batch, head), left_out);
        float2 values[(D + 63) / 64];
        bool finite = true;
#pragma unroll
        for (int part = 0; part < (D + 63) / 64; ++part) {
            const int c = part * 64 + lane * 2;
            float2 x = make_float2(0, 0);
            if (c < D) {
#pragma unroll
                for (int w = 0; w < KEY_WARPS; ++w) {
                    const float2 y = columns(w, c);
                    x.x += weights[w] * y.x;
                    x.y += weights[w] * y.y;
                }
            }
            values[part] = seen ? make_float2(x.x * factor, x.y * factor) : make_float2(0, 0);
            finite &= isfinite(values[part].x) && isfinite(values[part].y);
        }
        RowResult again;
        const bool exact = !__all_sync(0xffffffff, finite);
        if (exact) {
            // A value that is not finite, of a key that another row sees: again from this row's keys alone.
            const Visible seen = visible(block.s, i);
            const int count = (block.end_tile - block.first_tile) * KEYS;
            again = attend_row<T>(p, block.s, block.batch, head, i, count, [&](int n) {
                const int key = block.first_key((count - 1 - n) / KEYS) + n % KEYS;
                return key >= seen.first && key <= seen.last ? key : -1;
            });
            lse = again.lse;
        }
        const int64_t partial = partial_row(p, block.split, block.batch, block.head_k, of_head);
        if (p.splits > 1) {
            if (lane == 0) ((float *)p.partial_lse)[partial] = lse;
            float *to = (float *)p.partial_out + partial * p.head_dim;
            if (exact) {
#pragma unroll
                for (int e = 0; e < RowResult::OWNED; ++e) {
                    if (lane + e * 32 < p.head_dim) to[lane + e * 32] = again.out[e];
                }
            } else {
#pragma unroll
                for (int part = 0; part < (D + 63) / 64; ++part) {
                    const int c = part * 64 + lane * 2;
                    if (c < p.head_dim) *(float2 *)(to + c) = values[part];
                }
            }
        } else if (exact) {
            write_row<T>(p, block.s, block.batch, head, i, again);
        } else {
            T *to = row<T>(p.out, p.out_strides, block.batch, block.s.first_q + i, head);
            write_columns<T>(p, to, values);
            if (p.lse && lane == 0) *lse_at(p, block.s, block.batch, head, i) = lse;
        }
    }
};

// Merges the parts of each row: a warp a row.
template <typename T, int ROWS>
__device__ void combine(const AttentionParams &p) {
    const int lane = threadIdx.x % 32;
    const int64_t index = (int64_t)blockIdx.x * ROWS + threadIdx.x / 32;
    const int rows = p.seqlen_q * p.group, heads_k = p.heads_q / p.group;
    const int r = index % rows, head_k = index / rows % heads_k;
    const int64_t batch = index / rows / heads_k;
    if (batch >= p.batch) return;
    const Sequence s = sequence(p, batch);
    const int i = r / p.group, head = head_k * p.group + r % p.group;
    if (i >= s.seqlen_q) return;

    // lse = ln sum exp(lse of a part); out = sum exp(lse of a part - lse) out of a part.
    auto lse_of = [&](int split) { return ((const float *)p.partial_lse)[partial_row(p, split, batch, head_k, r)]; };
    float largest = -INFINITY, sum = 0;
    for (int split = 0; split < p.splits; ++split) largest = fmaxf(largest, lse_of(split));
    const float reference = largest == -INFINITY ? 0 : largest;
    float2 out[MAX_HEAD_DIM / 64] = {};
    for (int split = 0; split < p.splits; ++split) {
        const float lse = lse_of(split);
        // A part without keys counts nothing, and its output may be anything.
        if (lse == -INFINITY) continue;
        const float weight = expf(lse - reference);
        sum += weight;
        const float *from = (const float *)p.partial_out + partial_row(p, split, batch, head_k, r) * p.head_dim;
#pragma unroll
        for (int part = 0; part < MAX_HEAD_DIM / 64; ++part) {
            const int c = part * 64 + lane * 2;
            if (c >= p.head_dim) continue;
            const float2 x = *(const float2 *)(from + c);
            out[part].x += weight * x.x;
            out[part].y += weight * x.y;
        }
    }
    const bool seen = sum != 0;
#pragma unroll
    for (int part = 0; part < MAX_HEAD_DIM / 64; ++part) {
        out[part] = seen ? make_float2(out[part].x / sum, out[part].y / sum) : make_float2(0, 0);
    }
    T *to = row<T>(p.out, p.out_strides, batch, s.first_q + i, head);
    write_columns<T>(p, to, out);
    if (p.lse && lane == 0) {
        const int64_t left_out = distance(s, i, nearest_key(s, i));
        *lse_at(p, s, batch, head, i) =
            seen ? farther(largest + logf(sum), slope_of(p, batch, head), left_out) : -INFINITY;
    }
}

}  // namespace

#define DECODE_OF(NAME, T, D, ROWS, KEYS, STAGES, THREADS)                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) decode_##NAME##_d##D##_r##ROWS(                         \
        const __grid_constant__ AttentionParams p) {                                                                 \
        Decode<T, D, ROWS, KEYS, STAGES, THREADS>::run(p);                                                           \
    }
#define DECODE(...) FOR_EACH_ELEMENT(DECODE_OF, __VA_ARGS__)

#define COMBINE_OF(NAME, T, ROWS, THREADS)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS) combine_##NAME(const __grid_constant__ AttentionParams p) { \
        static_assert(ROWS * 32 == THREADS, "a warp a row");                                                          \
        combine<T, ROWS>(p);                                                                                          \
    }
#define COMBINE(...) FOR_EACH_ELEMENT(COMBINE_OF, __VA_ARGS__)
#include "kernels.def"
