// One bug per kernel; tests/planted_bugs.rs looks for it at the line marked with its name.
#include <cstdint>

__device__ __forceinline__ uint32_t smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

extern "C" __global__ void out_of_bounds(float *x, int n) {
    int i = threadIdx.x;
    x[i < n ? i : i + 1] = 1; // BUG out_of_bounds
}

extern "C" __global__ void misaligned(const float *x, float4 *y) {
    y[threadIdx.x] = *(const float4 *)(x + threadIdx.x); // BUG misaligned
}

extern "C" __global__ void uninitialised(float *y) {
    __shared__ float s[64];
    if (threadIdx.x != 5) s[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = s[63 - threadIdx.x]; // BUG uninitialised
}

extern "C" __global__ void missing_sync(float *y) {
    __shared__ float s[128];
    s[threadIdx.x] = threadIdx.x; // BUG missing_sync
    y[threadIdx.x] = s[127 - threadIdx.x]; // BUG missing_sync
}

template <int N> __device__ __forceinline__ void pipeline(const int4 *x, int4 *y, bool waits) {
    __shared__ int4 s[2][64];
    for (int i = 0; i < 2; ++i) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(&s[i][threadIdx.x])), "l"(x + i * 64 + threadIdx.x)); // BUG copy
        asm volatile("cp.async.commit_group;");
    }
    if (waits) asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
    __syncthreads();
    y[threadIdx.x] = s[0][63 - threadIdx.x]; // BUG copy
    if (N == 0) y[threadIdx.x + 64] = s[1][63 - threadIdx.x];
}

extern "C" __global__ void missing_wait(const int4 *x, int4 *y) { pipeline<1>(x, y, false); }
extern "C" __global__ void wrong_wait(const int4 *x, int4 *y) { pipeline<2>(x, y, true); }
extern "C" __global__ void right_wait(const int4 *x, int4 *y) { pipeline<1>(x, y, true); }

extern "C" __global__ void divergent(int *y) {
    if (threadIdx.x % 32 < 16) {
        y[threadIdx.x] = 1;
        __syncthreads(); // BUG divergent
        y[threadIdx.x] += 1;
    }
    y[threadIdx.x + 64] = 2;
}

extern "C" __global__ void deadlock(int *y) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory"); // BUG deadlock
    else asm volatile("bar.sync 2, 64;" ::: "memory"); // BUG deadlock
    y[threadIdx.x] = 1;
}

extern "C" __global__ void wrong_count(int *y) {
    asm volatile("bar.sync 1, 40;" ::: "memory"); // BUG wrong_count
    y[threadIdx.x] = 1;
}

extern "C" __global__ void mixed_count(int *y) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory"); // BUG mixed_count
    else asm volatile("bar.sync 1, 32;" ::: "memory"); // BUG mixed_count
    y[threadIdx.x] = 1;
}

extern "C" __global__ void global_race(int *y) {
    y[threadIdx.x] = blockIdx.x; // BUG global_race
}

extern "C" __global__ void global_read_race(int *y) {
    if (blockIdx.x == 0) y[threadIdx.x] = 5; // BUG global_read_race
    else y[64 + threadIdx.x] = y[63 - threadIdx.x]; // BUG global_read_race
}

extern "C" __global__ void warps_race(int *y) {
    y[threadIdx.x] = threadIdx.x; // BUG warps_race
    y[64 + threadIdx.x] = y[63 - threadIdx.x]; // BUG warps_race
}

extern "C" __global__ void warps_ordered(int *y) {
    y[threadIdx.x] = threadIdx.x;
    __syncthreads();
    y[64 + threadIdx.x] = y[63 - threadIdx.x];
}

extern "C" __global__ void freed(int *y) {
    y[threadIdx.x] = 1; // BUG freed
}

extern "C" __global__ void uninitialised_global(const int *x, int *y) {
    y[threadIdx.x] = x[threadIdx.x]; // BUG uninitialised_global
}

extern "C" __global__ void lanes_collide(int *y) {
    __shared__ int s[16];
    s[threadIdx.x / 2] = threadIdx.x; // BUG lanes_collide
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x / 2];
}
