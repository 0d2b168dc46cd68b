// Attention without tiles or tensor cores, one warp a row. The fast kernels are compared with it on a device, and it shows
// that a device, its driver and this build fit together. Only builds with the feature `ptx` have it.

#include "common/row.cuh"

namespace {

// Grid: rows / warps of a block, query heads, sequences.
template <typename T>
__device__ void attention(const AttentionParams &p) {
    const int i = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const int head = blockIdx.y, batch = blockIdx.z;
    const Sequence s = sequence(p, batch);
    if (i >= s.seqlen_q) return;
    const RowResult result = attend_row<T>(p, s, batch, head, i, visible(s, i));
    write_row<T>(p, s, batch, head, i, result);
}

}  // namespace

extern "C" __global__ void reference_f16(const __grid_constant__ AttentionParams p) { attention<__half>(p); }
extern "C" __global__ void reference_bf16(const __grid_constant__ AttentionParams p) { attention<__nv_bfloat16>(p); }
extern "C" __global__ void reference_f32(const __grid_constant__ AttentionParams p) { attention<float>(p); }
