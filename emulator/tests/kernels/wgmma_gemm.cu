// arch: compute_90a
// C = A B in tiles of 128 x 64: a warpgroup that copies, two of 64 rows that multiply, a ring of stages between.
#include "hopper.cuh"

constexpr int BM = 128, BN = 64, BK = 64, STAGE = (BM + BN) * 128;

// SS: B is [n][k]. RS: A goes through registers and B is [k][n]. C is written by a tensor copy, in panels of 32 columns.
template <typename T, bool RS, int STAGES> DEVICE void gemm(const TensorMap &ma, const TensorMap &mb, const TensorMap &mc, int k) {
    extern __shared__ __align__(1024) uint8_t stages[];
    __shared__ uint64_t full[STAGES], empty[STAGES];
    int group = threadIdx.x / 128, warp = threadIdx.x / 32, m0 = blockIdx.y * BM, n0 = blockIdx.x * BN;
    int steps = (k + BK - 1) / BK;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) {
            mbar_init(&full[s], 1);
            // Once a warpgroup has waited for its tensor operations, one thread speaks for it. What its warps read
            // themselves each must speak for.
            mbar_init(&empty[s], RS ? 8 : 2);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    if (group == 0) {
        regs_dec<40>();
        if (warp == 0 && elect_one()) {
            for (int i = 0; i < steps; ++i) {
                int s = i % STAGES;
                mbar_wait(&empty[s], (i / STAGES & 1) ^ 1);
                mbar_expect(&full[s], STAGE);
                uint8_t *a = stages + s * STAGE, *b = a + BM * 128;
                tma_load(a, &ma, &full[s], i * BK, m0);
                if (RS) tma_load(b, &mb, &full[s], n0, i * BK);
                else tma_load(b, &mb, &full[s], i * BK, n0);
            }
        }
        return;
    }
    regs_inc<232>();
    int row = (group - 1) * 64, lane = threadIdx.x % 32, w = warp % 4;
    float d[32];
    for (int i = 0; i < steps; ++i) {
        int s = i % STAGES;
        mbar_wait(&full[s], i / STAGES & 1);
        uint8_t *a = stages + s * STAGE + row * 128, *b = stages + s * STAGE + BM * 128;
        if constexpr (RS) {
            uint32_t f[4][4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(f[j][0]), "=r"(f[j][1]), "=r"(f[j][2]), "=r"(f[j][3])
                             : "r"(smem(a + swizzled(16 * w + lane % 16, 2 * j + lane / 16)))
                             : "memory");
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; ++j) wgmma64<T, 1>(d, f[j], descriptor(b + j * 2048, 16, 1024), i + j > 0);
            wgmma_commit();
            wgmma_wait<0>();
            if (lane == 0) mbar_arrive(&empty[s]);
        } else {
            wgmma_fence();
#pragma unroll
            for (int j = 0; j < 4; ++j) wgmma64<T, 0>(d, descriptor(a + j * 32, 16, 1024), descriptor(b + j * 32, 16, 1024), i + j > 0);
            wgmma_commit();
            // One step stays in flight; the stage before it is free.
            wgmma_wait<1>();
            if (i > 0 && threadIdx.x % 128 == 0) mbar_arrive(&empty[(i - 1) % STAGES]);
        }
    }
    wgmma_wait<0>();
    hold(d);
    // Each warpgroup has its rows of the first stages for itself once both are done with them.
    named_sync(1, 256);
    uint8_t *c = stages + (group - 1) * 2 * 64 * 128;
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
        int r = 16 * w + lane / 4 + 8 * (i / 2 % 2), col = 8 * (i / 4) + 2 * (lane % 4);
        uint8_t *at = c + col / 32 * 64 * 128 + swizzled(r, col % 32 / 4) + col % 4 * 4;
        *(float2 *)at = make_float2(d[i], d[i + 1]);
    }
    fence_async();
    named_sync(1 + group, 128);
    if (threadIdx.x % 128 == 0) {
        tma_store(&mc, c, n0, m0 + row);
        tma_store(&mc, c + 64 * 128, n0 + 32, m0 + row);
        bulk_commit();
        bulk_wait<0>();
    }
}

#define GEMM(name, T, RS, STAGES)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                              \
        name(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, const __grid_constant__ TensorMap c, int k) {  \
        gemm<T, RS, STAGES>(a, b, c, k);                                                                                              \
    }
GEMM(gemm_ss_f16_2, __half, false, 2)
GEMM(gemm_ss_f16_3, __half, false, 3)
GEMM(gemm_ss_bf16_4, __nv_bfloat16, false, 4)
GEMM(gemm_rs_f16_2, __half, true, 2)
GEMM(gemm_rs_bf16_3, __nv_bfloat16, true, 3)
GEMM(gemm_rs_bf16_4, __nv_bfloat16, true, 4)
