// C = A * B^T by tensor cores: 64x64 tiles, double-buffered cp.async, ldmatrix, swizzled.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__device__ unsigned smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

template <typename T>
__device__ void mma(float* c, const unsigned* a, const unsigned* b);
template <>
__device__ void mma<__half>(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ void mma<__nv_bfloat16>(float* c, const unsigned* a, const unsigned* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ int swizzle(int row, int chunk) { return row * 32 + ((chunk ^ ((row >> 1) & 3)) * 8); }

template <typename T>
__device__ void gemm(const T* a, const T* b, float* c, int n, int k) {
    __shared__ alignas(128) T sa[2][64 * 32], sb[2][64 * 32];
    int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
    int row0 = blockIdx.y * 64, col0 = blockIdx.x * 64;
    auto copy = [&](int stage, int k0) {
        for (int i = tid; i < 64 * 4; i += 128) {
            int r = i / 4, ch = i % 4;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(&sa[stage][swizzle(r, ch)])),
                         "l"(a + (size_t)(row0 + r) * k + k0 + ch * 8) : "memory");
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(&sb[stage][swizzle(r, ch)])),
                         "l"(b + (size_t)(col0 + r) * k + k0 + ch * 8) : "memory");
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    float acc[8][4] = {};
    copy(0, 0);
    for (int k0 = 0, stage = 0; k0 < k; k0 += 32, stage ^= 1) {
        if (k0 + 32 < k) {
            copy(stage ^ 1, k0 + 32);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
        } else {
            asm volatile("cp.async.wait_group 0;" ::: "memory");
        }
        __syncthreads();
        for (int kk = 0; kk < 2; kk++) {
            unsigned fa[4];
            int r = warp * 16 + lane % 16, ch = kk * 2 + lane / 16;
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(fa[0]), "=r"(fa[1]), "=r"(fa[2]), "=r"(fa[3])
                         : "r"(smem(&sa[stage][swizzle(r, ch)])) : "memory");
            for (int j = 0; j < 8; j++) {
                unsigned fb[2];
                int rb = j * 8 + lane % 8, cb = kk * 2 + (lane / 8) % 2;
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                             : "=r"(fb[0]), "=r"(fb[1]) : "r"(smem(&sb[stage][swizzle(rb, cb)])) : "memory");
                mma<T>(acc[j], fa, fb);
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < 8; j++) {
        int r = row0 + warp * 16 + lane / 4, col = col0 + j * 8 + lane % 4 * 2;
        *(float2*)&c[(size_t)r * n + col] = make_float2(acc[j][0], acc[j][1]);
        *(float2*)&c[(size_t)(r + 8) * n + col] = make_float2(acc[j][2], acc[j][3]);
    }
}

extern "C" __global__ void gemm_f16(const __half* a, const __half* b, float* c, int n, int k) { gemm(a, b, c, n, k); }
extern "C" __global__ void gemm_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int n, int k) { gemm(a, b, c, n, k); }
