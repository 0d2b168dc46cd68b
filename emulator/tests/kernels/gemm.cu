// C = A * B^T with A [m][k], B [n][k] row-major: double-buffered by cp.async, swizzled shared memory,
// ldmatrix, mma.sync m16n8k16 with f32 accumulation. 64x64 tiles, 4 warps of 16 rows, k in steps of 32.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

constexpr int BM = 64, BN = 64, BK = 32;

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

// Rows of 64 bytes, two to a 128-byte line: the 16-byte chunk is exchanged by the line number.
__device__ __forceinline__ int chunk(int row, int c) { return row * 4 + (c ^ ((row >> 1) & 3)); }

template <typename T> __device__ __forceinline__ void copy_tile(uint4 *dst, const T *src, int ld) {
    for (int i = threadIdx.x; i < 64 * 4; i += 128) {
        int row = i / 4, c = i % 4;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(dst + chunk(row, c))),
                     "l"(src + (size_t)row * ld + c * 8));
    }
}

__device__ __forceinline__ void ldsm4(uint32_t (&r)[4], const void *p) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(smem(p)));
}

template <typename T> __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <> __device__ __forceinline__ void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <typename T> __device__ __forceinline__ void gemm(const T *a, const T *b, float *c, int n, int k) {
    __shared__ __align__(128) uint4 sa[2][BM * 4], sb[2][BN * 4];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const T *ga = a + (size_t)blockIdx.y * BM * k, *gb = b + (size_t)blockIdx.x * BN * k;
    float acc[8][4] = {};
    int steps = k / BK;
    copy_tile(sa[0], ga, k);
    copy_tile(sb[0], gb, k);
    asm volatile("cp.async.commit_group;");
    for (int s = 0; s < steps; ++s) {
        int cur = s & 1;
        if (s + 1 < steps) {
            copy_tile(sa[cur ^ 1], ga + (s + 1) * BK, k);
            copy_tile(sb[cur ^ 1], gb + (s + 1) * BK, k);
        }
        asm volatile("cp.async.commit_group;");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int kk = 0; kk < 2; ++kk) {
            uint32_t fa[4];
            ldsm4(fa, &sa[cur][chunk(warp * 16 + lane % 16, kk * 2 + lane / 16)]);
            for (int j = 0; j < 4; ++j) {
                uint32_t fb[4];
                ldsm4(fb, &sb[cur][chunk(j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2)]);
                mma<T>(acc[2 * j], fa, fb[0], fb[1]);
                mma<T>(acc[2 * j + 1], fa, fb[2], fb[3]);
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < 4; ++i) {
            int row = blockIdx.y * BM + warp * 16 + lane / 4 + i / 2 * 8, col = blockIdx.x * BN + j * 8 + lane % 4 * 2 + i % 2;
            c[(size_t)row * n + col] = acc[j][i];
        }
}

extern "C" __global__ void __launch_bounds__(128) gemm_f16(const __half *a, const __half *b, float *c, int n, int k) { gemm(a, b, c, n, k); }
extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int n, int k) { gemm(a, b, c, n, k); }
