// What sm_90a has beside common/ptx.cuh, one PTX instruction a function.

#pragma once

#include "common/ptx.cuh"

// A `CUtensorMap`.
struct alignas(64) TensorMap {
    uint8_t bytes[128];
};

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

// What ordinary instructions have written to shared memory is there for copies and products too, once the barrier after this one
// has been passed.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

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

// Keeps the compiler from having in registers what it has read before.
__device__ __forceinline__ void read_anew() { asm volatile("" ::: "memory"); }

// Keeps the compiler from computing a number anew in place of having it in a register.
__device__ __forceinline__ void hold(int &x) { asm volatile("" : "+r"(x)); }
