// A ring of two stages between a producing and a consuming warp, ordered by mbarriers alone.
#include <cstdint>

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void init(uint64_t *b, int n) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(smem(b)), "r"(n)); }
__device__ __forceinline__ void arrive(uint64_t *b) {
    asm volatile("{ .reg .b64 t; mbarrier.arrive.shared.b64 t, [%0]; }" ::"r"(smem(b)) : "memory");
}
// The parity form of the wait came with sm_90; on sm_80 a thread keeps the phase it waits for.
__device__ __forceinline__ void wait(uint64_t *b, uint64_t state) {
    asm volatile("{ .reg .pred p; again: mbarrier.test_wait.shared.b64 p, [%0], %1; @!p bra again; }" ::"r"(smem(b)), "l"(state) : "memory");
}
__device__ __forceinline__ uint64_t arrive_state(uint64_t *b) {
    uint64_t s;
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(s) : "r"(smem(b)) : "memory");
    return s;
}

extern "C" __global__ void ring(const int *x, int *y, int steps) {
    __shared__ int box[2][32];
    __shared__ uint64_t full[2], empty[2];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0)
        for (int i = 0; i < 2; ++i) { init(&full[i], 64); init(&empty[i], 64); }
    __syncthreads();
    // Every thread arrives at both barriers of a stage, so each has a state to wait on.
    for (int i = 0; i < steps; ++i) {
        int s = i & 1;
        if (warp == 0) {
            box[s][lane] = x[i * 32 + lane];
            arrive(&full[s]);
            uint64_t t = arrive_state(&empty[s]);
            wait(&empty[s], t);
        } else {
            uint64_t t = arrive_state(&full[s]);
            wait(&full[s], t);
            y[i * 32 + lane] = box[s][31 - lane] * 2;
            arrive(&empty[s]);
        }
    }
}

// cp.async completes an mbarrier.
extern "C" __global__ void async_ring(const int4 *x, int4 *y, int wait_for_it) {
    __shared__ int4 box[32];
    __shared__ uint64_t full;
    if (threadIdx.x == 0) init(&full, 32);
    __syncthreads();
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(&box[threadIdx.x])), "l"(x + threadIdx.x));
    asm volatile("cp.async.mbarrier.arrive.shared.b64 [%0];" ::"r"(smem(&full)) : "memory");
    uint64_t t = arrive_state(&full);
    if (wait_for_it) wait(&full, t);
    y[threadIdx.x] = box[31 - threadIdx.x];
}

// Nobody arrives: a deadlock of polling.
extern "C" __global__ void nobody(int *y) {
    __shared__ uint64_t full;
    if (threadIdx.x == 0) init(&full, 65);
    __syncthreads();
    uint64_t t = arrive_state(&full);
    wait(&full, t);
    y[threadIdx.x] = 1;
}
