// arch: compute_90a
// Small kernels with one bug each, chosen by BUG; with NONE they are right.
#include "hopper.cuh"

enum Bug {
    NONE,
    OVERWRITE,
    EARLY_READ,
    NO_WGMMA_FENCE,
    NO_PROXY_FENCE,
    THREE_WARPS,
    DESCRIPTORS,
    PANEL,
    OFFSETS,
    REGISTERS,
    TOO_FEW,
    TOO_MANY,
    PARITY,
    REFILL,
    NO_INIT_FENCE,
    STORE_NO_FENCE,
    STORE_REUSE,
};

// One warpgroup multiplies two matrices of ones that it wrote itself.
template <Bug BUG> DEVICE void own_operands(float *out) {
    __shared__ __align__(1024) __half a[64 * 64 + 512], b[64 * 64];
    for (int i = threadIdx.x; i < 64 * 64; i += 128) a[i] = b[i] = __float2half(1.0f);
    for (int i = threadIdx.x; i < 512; i += 128) a[64 * 64 + i] = __float2half(1.0f);
    if (BUG != NO_PROXY_FENCE) fence_async();
    __syncthreads();
    if (BUG == THREE_WARPS && threadIdx.x >= 96) return;
    if (BUG == REGISTERS) regs_inc<256>();
    float d[32];
    if (BUG == NO_WGMMA_FENCE)
        for (int i = 0; i < 32; ++i) d[i] = (float)threadIdx.x;
    hold(d);
    if (BUG != NO_WGMMA_FENCE) wgmma_fence();
    const __half *from = a + (BUG == PANEL ? 64 * 3 : 0);
    if (BUG == DESCRIPTORS) from += threadIdx.x / 32 * 512;
    uint64_t da = BUG == OFFSETS ? descriptor(from, 1024, 16) : descriptor(from, 16, 1024);
    wgmma64<__half, 0>(d, da, descriptor(b, 16, 1024), BUG == NO_WGMMA_FENCE);
    wgmma_commit();
    if (BUG == OVERWRITE) a[threadIdx.x] = __float2half(2.0f);
    if (BUG == EARLY_READ) out[threadIdx.x] = d[0];
    wgmma_wait<0>();
    hold(d);
    for (int i = 0; i < 32; ++i) out[i * 128 + threadIdx.x] = d[i];
}

// One warp copies tiles of 64 x 64 in a ring of two stages, a warpgroup multiplies each with itself.
template <Bug BUG> DEVICE void ring(const TensorMap &map, float *out, int steps) {
    __shared__ __align__(1024) __half stage[2][64 * 64];
    __shared__ uint64_t full[2], empty[2];
    constexpr int BYTES = 64 * 128;
    if (threadIdx.x == 0) {
        for (int s = 0; s < 2; ++s) {
            mbar_init(&full[s], 1);
            mbar_init(&empty[s], 1);
        }
        if (BUG != NO_INIT_FENCE) fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x >= 128) {
        if (threadIdx.x == 128)
            for (int i = 0; i < steps; ++i) {
                int s = i % 2;
                mbar_wait(&empty[s], (i / 2 & 1) ^ 1);
                mbar_expect(&full[s], BUG == TOO_FEW ? BYTES - 1024 : BUG == TOO_MANY ? BYTES + 16 : BYTES);
                tma_load(stage[s], &map, &full[s], 0, 64 * i);
            }
        // Its other threads stay until the copies are used.
        named_sync(1, 256);
        return;
    }
    float d[32];
    for (int i = 0; i < steps; ++i) {
        int s = i % 2;
        mbar_wait(&full[s], (i / 2 & 1) ^ (BUG == PARITY));
        wgmma_fence();
        wgmma64<__half, 0>(d, descriptor(stage[s], 16, 1024), descriptor(stage[s], 16, 1024), i > 0);
        wgmma_commit();
        if (BUG == REFILL && threadIdx.x == 0) mbar_arrive(&empty[s]);
        wgmma_wait<0>();
        if (BUG != REFILL && threadIdx.x == 0) mbar_arrive(&empty[s]);
    }
    hold(d);
    for (int i = 0; i < 32; ++i) out[i * 128 + threadIdx.x] = d[i];
    named_sync(1, 256);
}

// 128 threads store two tiles of 64 x 64 from one buffer.
template <Bug BUG> DEVICE void stores(const TensorMap &map) {
    __shared__ __align__(1024) __half tile[64 * 64];
    for (int t = 0; t < 2; ++t) {
        for (int i = threadIdx.x; i < 64 * 64; i += 128) tile[i] = __float2half((float)t);
        if (BUG != STORE_NO_FENCE) fence_async();
        __syncthreads();
        if (threadIdx.x == 0) {
            tma_store(&map, tile, 0, 64 * t);
            bulk_commit();
            if (BUG != STORE_REUSE) bulk_wait_read<0>();
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) bulk_wait<0>();
}

#define OWN(name, BUG) \
    extern "C" __global__ void __launch_bounds__(128) name(float *out) { own_operands<BUG>(out); }
OWN(own_right, NONE)
OWN(own_overwrite, OVERWRITE)
OWN(own_early_read, EARLY_READ)
OWN(own_no_wgmma_fence, NO_WGMMA_FENCE)
OWN(own_no_proxy_fence, NO_PROXY_FENCE)
OWN(own_three_warps, THREE_WARPS)
OWN(own_descriptors, DESCRIPTORS)
OWN(own_panel, PANEL)
OWN(own_offsets, OFFSETS)
OWN(own_registers, REGISTERS)
#define RING(name, BUG) \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ TensorMap map, float *out, int steps) { ring<BUG>(map, out, steps); }
RING(ring_right, NONE)
RING(ring_too_few, TOO_FEW)
RING(ring_too_many, TOO_MANY)
RING(ring_parity, PARITY)
RING(ring_refill, REFILL)
RING(ring_no_init_fence, NO_INIT_FENCE)
#define STORES(name, BUG) \
    extern "C" __global__ void __launch_bounds__(128) name(const __grid_constant__ TensorMap map) { stores<BUG>(map); }
STORES(stores_right, NONE)
STORES(stores_no_fence, STORE_NO_FENCE)
STORES(stores_reuse, STORE_REUSE)
