// The PTX of sm_90a that the kernels here use, an instruction a function.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

#define DEVICE __device__ __forceinline__

DEVICE uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

DEVICE bool elect_one() {
    uint32_t p;
    asm volatile("{ .reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p; }" : "=r"(p));
    return p != 0;
}

// mbarriers
DEVICE void mbar_init(uint64_t *b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem(b)), "r"(n) : "memory"); }
DEVICE void mbar_arrive(uint64_t *b) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared::cta.b64 t, [%0]; }" ::"r"(smem(b)) : "memory");
}
DEVICE void mbar_expect(uint64_t *b, uint32_t bytes) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.expect_tx.shared::cta.b64 t, [%0], %1; }" ::"r"(smem(b)), "r"(bytes) : "memory");
}
DEVICE void mbar_wait(uint64_t *b, uint32_t parity) {
    asm volatile("{ .reg .pred p; again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1; @!p bra again; }" ::"r"(smem(b)), "r"(parity) : "memory");
}

// fences and barriers
DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
DEVICE void named_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
template <int N> DEVICE void regs_inc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void regs_dec() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

// tensor copies
DEVICE void tma_load(void *dst, const TensorMap *map, uint64_t *bar, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(smem(dst)),
                 "l"(map), "r"(smem(bar)), "r"(x), "r"(y)
                 : "memory");
}
DEVICE void tma_store(const TensorMap *map, const void *src, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(smem(src)), "r"(x), "r"(y)
                 : "memory");
}
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int N> DEVICE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
template <int N> DEVICE void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }

// wgmma
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// After a wait: the compiler must not move a use of the accumulators above it.
template <int N> DEVICE void hold(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// A matrix descriptor with the 128-byte swizzle.
DEVICE uint64_t descriptor(const void *p, uint32_t leading, uint32_t stride) {
    return (uint64_t)((smem(p) & 0x3ffff) >> 4) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 | 1ull << 62;
}

#define D32(d)                                                                                                                       \
    "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),          \
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]),         \
        "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]),         \
        "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define D32_NAMES                                                                                                                    \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

// 64 x 64 x 16: A and B in shared memory, or A in registers; TRANS_B when B is stored with N innermost.
template <typename T, int TRANS_B> DEVICE void wgmma64(float (&d)[32], uint64_t a, uint64_t b, int add) {
    if constexpr (sizeof(T) == 2 && __is_same(T, __half))
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " D32_NAMES
                     ", %32, %33, p, 1, 1, 0, %35; }"
                     : D32(d)
                     : "l"(a), "l"(b), "r"(add), "n"(TRANS_B));
    else
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " D32_NAMES
                     ", %32, %33, p, 1, 1, 0, %35; }"
                     : D32(d)
                     : "l"(a), "l"(b), "r"(add), "n"(TRANS_B));
}
template <typename T, int TRANS_B> DEVICE void wgmma64(float (&d)[32], const uint32_t (&a)[4], uint64_t b, int add) {
    if constexpr (sizeof(T) == 2 && __is_same(T, __half))
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " D32_NAMES
                     ", {%32,%33,%34,%35}, %36, p, 1, 1, %38; }"
                     : D32(d)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANS_B));
    else
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %37, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " D32_NAMES
                     ", {%32,%33,%34,%35}, %36, p, 1, 1, %38; }"
                     : D32(d)
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANS_B));
}

// Byte of column c (in 16-byte chunks) of row r in a panel of 128-byte rows with the 128-byte swizzle.
DEVICE int swizzled(int r, int c) { return r * 128 + ((c ^ (r & 7)) << 4); }
