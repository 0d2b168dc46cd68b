// What sm_90a has beside common/ptx.cuh, one PTX instruction a function.

#pragma once

#include "common/ptx.cuh"

// A `CUtensorMap`.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

// One lane of a warp.
__device__ __forceinline__ bool elect_one() {
    int elected;
    asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.b32 %0, 1, 0, p;\n}" : "=r"(elected));
    return elected;
}

// Registers of each thread of a warpgroup, given to others or taken from what they gave.
template <int REGISTERS>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <int REGISTERS>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Barriers of so many threads, by number; 0 is that of __syncthreads.
__device__ __forceinline__ void barrier_sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void barrier_arrive(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Barriers that were initialised are so for copies too.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase end with so many bytes that copies bring.
__device__ __forceinline__ void mbarrier_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of this parity has ended.
__device__ __forceinline__ void mbarrier_wait(uint32_t barrier, int parity) {
    asm volatile(
        "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}" ::"r"(barrier),
        "r"(parity)
        : "memory");
}

// Copies a box of a tensor of four dimensions to shared memory. What lies outside of the tensor is 0, and counts as bytes.
__device__ __forceinline__ void copy_box(uint32_t to, const TensorMap *map, uint32_t barrier, int column, int row, int head,
                                         int batch) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(
            to),
        "l"(map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(barrier)
        : "memory");
}

// Before products whose registers other instructions have read or written.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N of the groups are under way, the last ones.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Keeps the compiler from moving what reads or writes registers across this place: it does not know that products do.
template <int BLOCKS>
__device__ __forceinline__ void hold(float (&x)[BLOCKS][4]) {
#pragma unroll
    for (int i = 0; i < BLOCKS * 4; ++i) asm volatile("" : "+f"(x[i / 4][i % 4])::"memory");
}

template <int BLOCKS>
__device__ __forceinline__ void hold(uint32_t (&x)[BLOCKS][4]) {
#pragma unroll
    for (int i = 0; i < BLOCKS * 4; ++i) asm volatile("" : "+r"(x[i / 4][i % 4])::"memory");
}

// Keeps the compiler from computing a number anew in place of having it in a register.
__device__ __forceinline__ void hold(int &x) { asm volatile("" : "+r"(x)); }

// The registers of 32 columns of an accumulator, from the block `b` of 8 columns on, and their names.
#define WGMMA_OF_BLOCK(b) "+f"(d[b][0]), "+f"(d[b][1]), "+f"(d[b][2]), "+f"(d[b][3])
#define WGMMA_32(b) WGMMA_OF_BLOCK(b), WGMMA_OF_BLOCK(b + 1), WGMMA_OF_BLOCK(b + 2), WGMMA_OF_BLOCK(b + 3)
#define WGMMA_64(b) WGMMA_32(b), WGMMA_32(b + 4)
#define WGMMA_NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_128 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// d = a b, or d += a b with `add`: a is 64x16, and b 16xN, which lies in shared memory as N rows, or TRANSPOSED as 16.
// Of an instruction: the types, the names of d, those of a, b, and `add`, and the constants for a in shared memory.
#define WGMMA(N, TYPE, NAMES, A, B, ADD, LAYOUTS)                                                                    \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE     \
    " {" NAMES "}, " A ", " B ", p, 1, 1, " LAYOUTS ";\n}"

// N = 64, f16.
template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[8][4], uint64_t a, uint64_t b, int add, __half) {
    asm volatile(WGMMA(64, "f16", WGMMA_NAMES_64, "%32", "%33", "%34", "0, %35")
                 : WGMMA_64(0)
                 : "l"(a), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int add, __half) {
    asm volatile(WGMMA(64, "f16", WGMMA_NAMES_64, "{%32, %33, %34, %35}", "%36", "%37", "%38")
                 : WGMMA_64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

// N = 64, bf16.
template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[8][4], uint64_t a, uint64_t b, int add, __nv_bfloat16) {
    asm volatile(WGMMA(64, "bf16", WGMMA_NAMES_64, "%32", "%33", "%34", "0, %35")
                 : WGMMA_64(0)
                 : "l"(a), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int add, __nv_bfloat16) {
    asm volatile(WGMMA(64, "bf16", WGMMA_NAMES_64, "{%32, %33, %34, %35}", "%36", "%37", "%38")
                 : WGMMA_64(0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

// N = 128, f16.
template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[16][4], uint64_t a, uint64_t b, int add, __half) {
    asm volatile(WGMMA(128, "f16", WGMMA_NAMES_128, "%64", "%65", "%66", "0, %67")
                 : WGMMA_64(0), WGMMA_64(8)
                 : "l"(a), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, int add, __half) {
    asm volatile(WGMMA(128, "f16", WGMMA_NAMES_128, "{%64, %65, %66, %67}", "%68", "%69", "%70")
                 : WGMMA_64(0), WGMMA_64(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

// N = 128, bf16.
template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[16][4], uint64_t a, uint64_t b, int add, __nv_bfloat16) {
    asm volatile(WGMMA(128, "bf16", WGMMA_NAMES_128, "%64", "%65", "%66", "0, %67")
                 : WGMMA_64(0), WGMMA_64(8)
                 : "l"(a), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

template <bool TRANSPOSED>
__device__ __forceinline__ void wgmma(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b, int add, __nv_bfloat16) {
    asm volatile(WGMMA(128, "bf16", WGMMA_NAMES_128, "{%64, %65, %66, %67}", "%68", "%69", "%70")
                 : WGMMA_64(0), WGMMA_64(8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"((int)TRANSPOSED));
}

#undef WGMMA
#undef WGMMA_OF_BLOCK
#undef WGMMA_32
#undef WGMMA_64
#undef WGMMA_NAMES_64
#undef WGMMA_NAMES_128
