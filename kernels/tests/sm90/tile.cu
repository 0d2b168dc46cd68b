// Copies a tensor in tiles, by tensor maps and through shared memory: for tests of launches that have them.

#include "common/params.h"
#include "common/ptx.cuh"

namespace {

// A `CUtensorMap`.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

constexpr int COLUMNS = 64, ROWS = 16;

}  // namespace

// Of q and out as matrices of `head_dim` columns, a block copies a tile. One thread does it all.
extern "C" __global__ void __launch_bounds__(32)
    copy_tile(const __grid_constant__ AttentionParams p, const __grid_constant__ TensorMap from,
              const __grid_constant__ TensorMap to) {
    __shared__ __align__(1024) uint16_t tile[ROWS * COLUMNS];
    __shared__ uint64_t arrived;
    if (threadIdx.x > 0) return;
    const int tiles = (p.head_dim + COLUMNS - 1) / COLUMNS;
    const int column = blockIdx.x % tiles * COLUMNS, row = blockIdx.x / tiles * ROWS;
    const uint32_t shared = shared_address(tile), barrier = shared_address(&arrived);

    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"((int)sizeof(tile))
                 : "memory");
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(shared), "l"(&from), "r"(column), "r"(row), "r"(barrier) : "memory");
    int done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.b32 %0, 1, 0, p;\n}"
            : "=r"(done) : "r"(barrier) : "memory");
    }
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&to),
                 "r"(column), "r"(row), "r"(shared) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
