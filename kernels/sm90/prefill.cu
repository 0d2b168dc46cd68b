// Fused attention for many queries of a sequence, on the tensor cores of sm_90a. A block has ROWS query rows of one head; tiles of
// KEYS keys pass through shared memory, from the diagonal outwards:
//
//     S = Q K^T;  weights = softmax(scale S - slope distance);  O += weights V
//
// A warpgroup copies, the others multiply 64 rows each. Of these, the products of a tile are under way while the weights of
// the next are made: S of the next is first, then O of this one.
//
// For dense tensors whose rows a tensor map can have, a scale above 0, no softcap and no lengths in device memory:
// src/plan/hopper.rs chooses.

#include "common/epilogue.cuh"
#include "softmax.cuh"
#include "tile.cuh"

#include <new>

namespace {

constexpr int WARPGROUP = 128;

// Whether warpgroups multiply by turns. To be chosen on a GPU.
constexpr bool TURNS = true;

// Of all lanes, the first's: the compiler then knows that it is the same for all.
__device__ inline int uniform(int x) { return __shfl_sync(0xffffffff, x, 0); }

template <typename T, int D, int ROWS, int KEYS, int STAGES, int THREADS>
struct Prefill {
    static constexpr int CONSUMERS = ROWS / 64;
    static_assert(THREADS == (CONSUMERS + 1) * WARPGROUP, "a warpgroup for every 64 rows, and one that copies");
    // Of 65536, in multiples of 8 a thread.
    static constexpr int PRODUCER_REGISTERS = CONSUMERS == 2 ? 24 : 32, CONSUMER_REGISTERS = CONSUMERS == 2 ? 240 : 160;

    using QTile = PanelTile<ROWS, D>;
    using KeyTile = PanelTile<KEYS, D>;

    // What all threads of a block know.
    struct Block {
        Sequence s;
        int batch, head, first_row, last_row;
        Span span;
        // Tiles of keys: how many any row sees, the first of them, and that of the last row's own position.
        int tiles, first_tile, nearest_tile;
        // Steps up to which tiles are, by turns, any, and such that all rows see and stand on one side of: first behind, then before.
        int ends[5];
        Alibi alibi;

        __device__ Block(const AttentionParams &p) {
            // The last rows come first: under a causal mask they have the most keys.
            const int blocks = (p.seqlen_q + ROWS - 1) / ROWS;
            first_row = (blocks - 1 - blockIdx.x % blocks) * ROWS;
            const int index = blockIdx.x / blocks;
            batch = index / p.heads_q;
            head = index % p.heads_q;
            s = sequence(p, batch);
            alibi = Alibi(p, batch, head);
            last_row = min(first_row + ROWS, s.seqlen_q) - 1;
            span = Span(s, first_row, last_row);
            divide_keys();
        }

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
        }

        // The steps from the nearest tile back to the first; the others go on to the last.
        __device__ int back() const { return nearest_tile - first_tile; }
        __device__ int first_key(int step) const { return (step <= back() ? nearest_tile - step : first_tile + step) * KEYS; }
    };

    // The rows of a lane.
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

        __device__ SideRows(const LaneRows &rows, float side)
            : nearest_of{rows.nearest(0, 0), rows.nearest(0, 1)},
              slope_of(rows.slope(0, 0) * side),
              slope_log2_of(rows.slope_log2(0, 0) * side) {}
        __device__ int nearest(int, int h) const { return nearest_of[h]; }
        __device__ float slope(int, int) const { return slope_of; }
        __device__ float slope_log2(int, int) const { return slope_log2_of; }
    };

    // Which tile of a ring a step has, and the parity of the phase in which it arrives.
    struct Slot {
        static constexpr int BARRIER_BYTES = 8;
        static_assert(STAGES == 2, "of two, the parity changes with every second");

        // Its place among the slots, as an offset of its barriers.
        uint32_t barrier = 0, parity = 0;

        // Slots of values but the first are released once before they have had any.
        __device__ bool released_once() const { return barrier != 0; }
        __device__ Slot next() const { return {barrier ^ BARRIER_BYTES, parity ^ barrier / BARRIER_BYTES}; }
    };

    // From an operand to that in the next slot, for each byte from barrier to barrier.
    static constexpr int TILE_STEP = KeyTile::BYTES / Operand<KeyTile>::UNIT / Slot::BARRIER_BYTES;

    // A ring of tiles. Its barriers say of each that it has arrived, and that nobody reads it any more.
    struct Ring {
        uint32_t tiles, full, empty;

        __device__ void init() const {
            for (int i = 0; i < STAGES; ++i) {
                mbarrier_init(full + i * 8, 1);
                mbarrier_init(empty + i * 8, CONSUMERS);
            }
        }
        __device__ void wait_full(Slot slot) const { mbarrier_wait(full + slot.barrier, slot.parity); }
        // One thread of a warpgroup, whose products are done.
        __device__ void release(Slot slot) const {
            if (threadIdx.x % WARPGROUP == 0) mbarrier_arrive(empty + slot.barrier);
        }
        // `turn`: the parity of the phase of the slot that must have ended.
        __device__ void copy(const TensorMap *map, Slot slot, uint32_t turn, int first_key, int head, int batch) const {
            mbarrier_wait(empty + slot.barrier, turn);
            const KeyTile tile = {tiles + slot.barrier / Slot::BARRIER_BYTES * KeyTile::BYTES};
            tile.copy(map, full + slot.barrier, first_key, head, batch);
        }
    };

    struct Shared {
        QTile q;
        uint32_t q_full;
        Ring k, v;
    };

    // One thread.
    __device__ static void produce(const AttentionParams &p, const Block &block, const Shared &shared, const TensorMap *q,
                                   const TensorMap *k, const TensorMap *v) {
        const int head_k = block.head / p.group, batch = block.batch;
        shared.q.copy(q, shared.q_full, block.first_row, block.head, batch);
        Slot slot;
        auto copy_k = [&](Slot slot, int step) {
            shared.k.copy(k, slot, slot.parity ^ 1, block.first_key(step), head_k, batch);
        };
        copy_k(slot, 0);
        for (int step = 0; step < block.tiles; ++step) {
            // K of the next tile is needed before V of this one.
            const Slot next = slot.next();
            if (step + 1 < block.tiles) copy_k(next, step + 1);
            shared.v.copy(v, slot, slot.parity ^ !slot.released_once(), block.first_key(step), head_k, batch);
            slot = next;
        }
    }

    // A warpgroup and its rows.
    struct Consumer {
        const Block &block;
        const Shared &shared;
        // Barriers of the turns.
        int turn, next_turn;
        LaneRows rows;
        Operand<QTile> q;
        Operand<KeyTile> k, v;
        float scale;
        // Of the last tile whose scores were begun.
        Slot slot;
        Scores<1, KEYS> scores;
        uint32_t weights[KEYS / 16][4];
        float out[1][D / 8][4];
        PendingSoftmax softmax;

        __device__ Consumer(const Block &block, const Shared &shared, int group)
            : block(block),
              shared(shared),
              turn(threadIdx.x / WARPGROUP),
              next_turn(turn == CONSUMERS ? 1 : turn + 1),
              rows{block, (int)threadIdx.x % WARPGROUP / 32 * 16 + (int)threadIdx.x % 32 / 4 + group * 64},
              q(shared.q, group * 64),
              k(KeyTile{shared.k.tiles}),
              v(KeyTile{shared.v.tiles}),
              scale(block.alibi.scale) {}

        // Warpgroups issue their products by turns, so that one makes weights while others multiply.
        __device__ void await_turn() const {
            if (TURNS) barrier_sync(turn, 2 * WARPGROUP);
        }
        __device__ void pass_turn() const {
            if (TURNS) barrier_arrive(next_turn, 2 * WARPGROUP);
        }

        // S = Q K^T.
        __device__ void multiply_qk(Slot slot) {
            const Operand<KeyTile> k_tile = k.further(slot.barrier * TILE_STEP);
#pragma unroll
            for (int c = 0; c < D / 16; ++c) wgmma<false>(scores.s[0], q.columns(c), k_tile.columns(c), c > 0, T());
            wgmma_commit();
        }

        // O += weights V.
        __device__ void multiply_pv(Slot slot) {
            const Operand<KeyTile> v_tile = v.further(slot.barrier * TILE_STEP);
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) wgmma<true>(out[0], weights[n], v_tile.rows(n), 1, T());
            wgmma_commit();
        }

        // Ends what the tile before has left under way, and prepares its weights for their product. It is the beginning of a round
        // of the loop: within one, ptxas would wait before the weights are made, and nothing would be under way meanwhile.
        __device__ void settle() {
            hold(scores.s[0]);
            wgmma_wait<0>();
            hold(out[0]), hold(weights);
            // That of the tile before, or before the first tile of none: the producer knows.
            shared.v.release(slot.next());
            pack_weights(scores, weights, T());
            softmax.apply(out[0]);
            hold(scores.s[0]), hold(out[0]), hold(weights);
        }

        // S of the next tile and O of this one are under way together, and the weights of the next are made while O is.
        template <typename Weigh>
        __device__ void step(Weigh weigh) {
            settle();
            const Slot next = slot.next();
            shared.k.wait_full(next);
            await_turn();
            wgmma_fence();
            multiply_qk(next);
            shared.v.wait_full(slot);
            wgmma_fence();
            multiply_pv(slot);
            pass_turn();
            wgmma_wait<1>();
            hold(scores.s[0]);
            shared.k.release(next);
            slot = next;
            weigh();
        }

        // Of the scores of any tile.
        __device__ void weigh_any(int step) {
            scores.bias_and_mask(rows, block.first_key(step));
            const float constant[1][2] = {};
            softmax.weigh(scores, scale, constant);
        }

        // Of those of a tile that all rows see and stand on one side of.
        __device__ void weigh(const SideRows &side_rows, int first_key) {
            float constant[1][2];
            scores.bias(side_rows, first_key, 1, constant);
            softmax.weigh(scores, scale, constant);
        }

        __device__ void run() {
#pragma unroll
            for (int i = 0; i < D / 2; ++i) out[0][i / 4][i % 4] = 0;
            const int tiles = uniform(block.tiles);
            if (tiles == 0) return;
            if (next_turn == 1) pass_turn();
            mbarrier_wait(shared.q_full, 0);
            shared.k.wait_full(slot);
            wgmma_fence();
            multiply_qk(slot);
            wgmma_wait<0>();
            hold(scores.s[0]);
            shared.k.release(slot);
            weigh_any(0);

            int at = 1;
#pragma unroll 1
            for (int run = 0; run < 5; ++run) {
                const int end = uniform(block.ends[run]);
                if (run % 2 == 0) {
#pragma unroll 1
                    for (; at < end; ++at) step([&] { weigh_any(at); });
                } else if (at < end) {
                    const SideRows side_rows(rows, run == 1 ? 1 : -1);
                    int next = run == 1 ? -KEYS : KEYS;
                    hold(next);
                    int first_key = uniform(block.first_key(at));
#pragma unroll 1
                    for (; at < end; ++at, first_key += next) step([&] { weigh(side_rows, first_key); });
                }
            }

            // The last turn that is passed is the first one's.
            if (turn == 1) await_turn();
            settle();
            shared.v.wait_full(slot);
            wgmma_fence();
            multiply_pv(slot);
            wgmma_wait<0>();
            hold(out[0]);
        }
    };

    __device__ static void run(const AttentionParams &p, const TensorMap *q, const TensorMap *k, const TensorMap *v) {
        extern __shared__ __align__(1024) unsigned char tiles[];
        __shared__ __align__(8) uint64_t barriers[1 + 4 * STAGES];
        __shared__ __align__(alignof(Block)) unsigned char block_bytes[sizeof(Block)];
        const Block &block = *(const Block *)block_bytes;
        const uint32_t q_full = shared_address(barriers), first = shared_address(tiles);
        const Ring k_ring = {first + QTile::BYTES, q_full + 8, q_full + 8 + 8 * STAGES};
        const Ring v_ring = {k_ring.tiles + STAGES * KeyTile::BYTES, k_ring.full + 16 * STAGES, k_ring.empty + 16 * STAGES};
        const Shared shared = {{first}, q_full, k_ring, v_ring};
        if (threadIdx.x == 0) {
            new (block_bytes) Block(p);
            mbarrier_init(q_full, 1);
            k_ring.init();
            v_ring.init();
            fence_mbarrier_init();
        }
        __syncthreads();

        const int warpgroup = uniform(threadIdx.x / WARPGROUP);
        if (warpgroup == 0) {
            give_registers<PRODUCER_REGISTERS>();
            if (uniform(threadIdx.x / 32) == 0 && block.tiles > 0 && elect_one()) produce(p, block, shared, q, k, v);
            return;
        }
        take_registers<CONSUMER_REGISTERS>();
        Consumer consumer(block, shared, warpgroup - 1);
        consumer.run();
        if (p.report && threadIdx.x == WARPGROUP) {
            unsigned long long *of_head = (unsigned long long *)p.report + 2 * block.head;
            atomicAdd(of_head, block.tiles);
            atomicAdd(of_head + 1, block.tiles);
        }
        // Rows of Q are room for those of the output once nobody of the warpgroup reads them.
        barrier_sync(CONSUMERS + warpgroup, WARPGROUP);
        const int warp_row = (warpgroup - 1) * 64 + threadIdx.x % WARPGROUP / 32 * 16;
        const QTile rows = {first + warp_row * 128};
        const float max[1][2] = {{consumer.softmax.max[0], consumer.softmax.max[1]}};
        const float sum[1][2] = {{consumer.softmax.sum[0], consumer.softmax.sum[1]}};
        write_rows<T>(p, block.s, block.batch, block.head, block.first_row + warp_row, block.last_row, rows, consumer.out, max, sum,
                      [&](int m, int h) { return consumer.rows.nearest(m, h); });
    }
};

}  // namespace

#define WGMMA_PREFILL_OF(ELEMENT, T, D, ROWS, KEYS, STAGES, THREADS)                                                        \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) wgmma_prefill_##ELEMENT##_d##D(                                \
        const __grid_constant__ AttentionParams p, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, \
        const __grid_constant__ TensorMap v) {                                                                              \
        Prefill<T, D, ROWS, KEYS, STAGES, THREADS>::run(p, &q, &k, &v);                                                     \
    }
#define WGMMA_PREFILL(...) FOR_EACH_ELEMENT(WGMMA_PREFILL_OF, __VA_ARGS__)
#include "kernels.def"
