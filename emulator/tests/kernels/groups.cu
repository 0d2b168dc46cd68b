// Cooperative groups: masks of parts of a warp, in convergence and out of it.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
namespace cg = cooperative_groups;

extern "C" __global__ void groups(int *out) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<8>(block);
    int i = threadIdx.x;
    int v = cg::reduce(tile, i, cg::plus<int>());
    v += 1000 * tile.shfl_xor(i, 1);
    if (i & 1) {
        auto odd = cg::coalesced_threads();
        v += 100000 * odd.size() + 10000000 * odd.shfl(odd.thread_rank(), 3);
    }
    tile.sync();
    block.sync();
    out[i] = v;
}


// Indices that are spread over a line: local memory with dynamic addresses.
extern "C" __global__ void local_array(int *out) {
    int a[16];
    for (int k = 0; k < 16; ++k) a[(k * 7 + threadIdx.x) & 15] = k * 100 + threadIdx.x;
    int s = 0;
    for (int k = 0; k < 4; ++k) s += a[(threadIdx.x * 3 + k * out[k]) & 15];
    out[32 + threadIdx.x] = s;
}
