// Fused attention for many queries of a sequence, on the tensor cores of sm_90a. A block has ROWS query rows of one head; tiles of
// KEYS keys pass through shared memory, from the diagonal outwards:
//
//     S = Q K^T;  weights = softmax(scale S - slope distance);  O += weights V
//
// A warpgroup copies, the others multiply 64 rows each. Of these, the products of a tile are under way while the weights of
// the next are made: S of the next is first, then O of this one.
//
// For tensors whose rows a tensor map can have, and a scale above 0: src/plan/hopper.rs chooses.

#include "common/epilogue.cuh"
#include "consumer.cuh"
#include "judge.cuh"

#include <new>
#include <type_traits>

namespace {

// HORIZON: tiles may be left out. src/plan/hopper.rs chooses.
template <typename T, int D, int ROWS, int KEYS, int STAGES, int THREADS, bool HORIZON>
struct Prefill {
    static constexpr int CONSUMERS = ROWS / 64;
    static_assert(THREADS == (CONSUMERS + 1) * WARPGROUP, "a warpgroup for every 64 rows, and one that copies");
    static_assert(STAGES == Slot::STAGES, "slots of as many");
    // Of those that a launch has, in multiples of 8 a thread. Who judges needs more than who only copies.
    static constexpr int PRODUCER_REGISTERS = CONSUMERS != 2 ? 32 : HORIZON ? 40 : 24;
    static constexpr int CONSUMER_REGISTERS = CONSUMERS != 2 ? 160 : HORIZON ? 232 : 240;

    using Block = std::conditional_t<HORIZON, JudgedBlock<D, ROWS, KEYS>, ::Block<ROWS, KEYS>>;
    using Shared = ::Shared<D, ROWS, KEYS, CONSUMERS, HORIZON>;
    using QTile = typename Shared::QTile;
    using KeyTile = typename Shared::KeyTile;
    using KeyRing = typename Shared::KeyRing;

    __device__ static void run(const AttentionParams &p, const TensorMap *q, const TensorMap *k, const TensorMap *v) {
        extern __shared__ __align__(1024) unsigned char tiles[];
        constexpr int BARRIERS = 2 + 4 * Slot::STAGES;
        __shared__ __align__(8) uint64_t barriers[BARRIERS + (HORIZON ? Slot::STAGES : 0)];
        __shared__ __align__(alignof(Block)) unsigned char block_bytes[sizeof(Block)];
        const Block &block = *(const Block *)block_bytes;
        const uint32_t q_full = shared_address(barriers), first = shared_address(tiles);
        const KeyRing k_ring = {first + QTile::BYTES, q_full + 16, q_full + 16 + 8 * STAGES};
        const KeyRing v_ring = {k_ring.tiles + STAGES * KeyTile::BYTES, k_ring.full + 16 * STAGES, k_ring.empty + 16 * STAGES};
        __shared__ float maxima[HORIZON ? ROWS : 1];
        const Shared shared = {{first}, q_full, q_full + 8, k_ring, v_ring, (int *)(barriers + BARRIERS), maxima};
        if (HORIZON && threadIdx.x < ROWS) maxima[threadIdx.x] = -FLT_MAX;
        if (threadIdx.x == 0) {
            new (block_bytes) Block(p);
            mbarrier_init(shared.q_full, 1);
            mbarrier_init(shared.landed, 1);
            k_ring.init();
            v_ring.init();
            fence_mbarrier_init();
        }
        __syncthreads();
        if (block.first_row > block.last_row) return;

        const int warpgroup = uniform(threadIdx.x / WARPGROUP);
        if (warpgroup == 0) {
            give_registers<PRODUCER_REGISTERS>();
            if (block.tiles == 0) return;
            const int warp = uniform(threadIdx.x / 32);
            if constexpr (HORIZON) {
                __shared__ RowBound bounds[ROWS];
                __shared__ uint32_t said[WARPGROUP / 32];
                const Judge<T, Block, Shared> judge = {shared, {p, block, bounds, maxima}, 2 * CONSUMERS + 1, said};
                if (block.horizon) {
                    if (warp == 0) {
                        judge.copy({p, block, shared, q, k, v});
                    } else {
                        judge.run();
                    }
                    return;
                }
            }
            if (warp == 0) Producer<Block, Shared>{p, block, shared, q, k, v}.run();
            return;
        }
        take_registers<CONSUMER_REGISTERS>();
        Consumer<T, D, Block, Shared> consumer(block, shared, warpgroup - 1);
        consumer.run();
        if (p.report && threadIdx.x == WARPGROUP) {
            unsigned long long *of_head = (unsigned long long *)p.report + 2 * block.head;
            if (!HORIZON) atomicAdd(of_head, block.tiles);
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

#define WGMMA_PREFILL_OF(ELEMENT, T, NAME, HORIZON, D, ROWS, KEYS, STAGES, THREADS)                                         \
    extern "C" __global__ void __launch_bounds__(THREADS, 1) wgmma_##NAME##_##ELEMENT##_d##D(                               \
        const __grid_constant__ AttentionParams p, const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k, \
        const __grid_constant__ TensorMap v) {                                                                              \
        Prefill<T, D, ROWS, KEYS, STAGES, THREADS, HORIZON>::run(p, &q, &k, &v);                                            \
    }
#define WGMMA_PREFILL(...)                                            \
    FOR_EACH_ELEMENT(WGMMA_PREFILL_OF, prefill, false, __VA_ARGS__) \
    FOR_EACH_ELEMENT(WGMMA_PREFILL_OF, horizon, true, __VA_ARGS__)
#include "kernels.def"
