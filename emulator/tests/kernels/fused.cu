// Two matrix products with a softmax between, fused in registers: O = softmax(Q K^T) V per head, lower
// triangle only. 64 rows of Q per block, 64 rows of K and V per step, 64 columns; 4 warps of 16 rows. It uses
// most of what a tensor-core kernel of sm_80 does: two copy groups in flight, swizzled shared memory,
// ldmatrix with and without transposition, shuffles, ex2, packed conversions.
#include <cuda_fp16.h>
#include <cstdint>

constexpr int D = 64, B = 64;

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ int chunk(int row, int c) { return row * 8 + (c ^ (row & 7)); }

__device__ __forceinline__ void copy_tile(uint4 *dst, const __half *src) {
    for (int i = threadIdx.x; i < B * 8; i += 128)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(smem(dst + chunk(i / 8, i % 8))), "l"(src + i * 8));
    asm volatile("cp.async.commit_group;");
}

template <bool T> __device__ __forceinline__ void ldsm4(uint32_t (&r)[4], const void *p) {
    if (T)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem(p)));
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem(p)));
}

__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack(float lo, float hi) {
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
}

extern "C" __global__ void __launch_bounds__(128) fused(const __half *q, const __half *k, const __half *v, float *o, int n, float scale) {
    extern __shared__ __align__(128) uint4 dyn[];
    uint4 *sq = dyn, *sk = dyn + B * 8, *sv = dyn + 2 * B * 8;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    size_t head = (size_t)blockIdx.y * n * D;
    int row0 = blockIdx.x * B;
    copy_tile(sq, q + head + row0 * D);
    copy_tile(sk, k + head);
    float acc[8][4] = {}, top[2] = {-1e30f, -1e30f}, sum[2] = {};
    for (int j = 0; j <= blockIdx.x; ++j) {
        copy_tile(sv, v + head + j * B * D);
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        float s[8][4] = {};
        for (int kk = 0; kk < 4; ++kk) {
            uint32_t a[4];
            ldsm4<false>(a, &sq[chunk(warp * 16 + lane % 16, kk * 2 + lane / 16)]);
            for (int t = 0; t < 4; ++t) {
                uint32_t b[4];
                ldsm4<false>(b, &sk[chunk(t * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2)]);
                mma(s[2 * t], a, b[0], b[1]);
                mma(s[2 * t + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
        if (j < blockIdx.x) copy_tile(sk, k + head + (j + 1) * B * D);
        else asm volatile("cp.async.commit_group;");
        if (j == blockIdx.x)
            for (int t = 0; t < 8; ++t)
                for (int e = 0; e < 4; ++e)
                    if (t * 8 + lane % 4 * 2 + e % 2 > warp * 16 + lane / 4 + e / 2 * 8) s[t][e] = -1e30f;
        for (int h = 0; h < 2; ++h) {
            float m = top[h];
            for (int t = 0; t < 8; ++t) m = fmaxf(m, fmaxf(s[t][2 * h], s[t][2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            float f = ex2((top[h] - m) * scale);
            top[h] = m;
            sum[h] *= f;
            for (int t = 0; t < 8; ++t) {
                acc[t][2 * h] *= f;
                acc[t][2 * h + 1] *= f;
                for (int e = 2 * h; e < 2 * h + 2; ++e) sum[h] += s[t][e] = ex2(fmaf(s[t][e], scale, -m * scale));
            }
        }
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int kk = 0; kk < 4; ++kk) {
            uint32_t a[4] = {pack(s[2 * kk][0], s[2 * kk][1]), pack(s[2 * kk][2], s[2 * kk][3]),
                             pack(s[2 * kk + 1][0], s[2 * kk + 1][1]), pack(s[2 * kk + 1][2], s[2 * kk + 1][3])};
            for (int t = 0; t < 4; ++t) {
                uint32_t b[4];
                ldsm4<true>(b, &sv[chunk(kk * 16 + lane % 16, t * 2 + lane / 16)]);
                mma(acc[2 * t], a, b[0], b[1]);
                mma(acc[2 * t + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        for (int t = 0; t < 8; ++t) {
            float2 r = {acc[t][2 * h] / sum[h], acc[t][2 * h + 1] / sum[h]};
            *(float2 *)(o + head + (size_t)(row0 + warp * 16 + lane / 4 + 8 * h) * D + t * 8 + lane % 4 * 2) = r;
        }
    }
}
