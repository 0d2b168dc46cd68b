// Whole kernels for the tests: everyday CUDA C++.
#include <cuda_fp16.h>

extern "C" __global__ void reduce(const float* in, float* out, int n) {
    __shared__ float partial[32];
    float sum = 0.f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        sum += in[i];
    }
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f;
        for (int d = 16; d > 0; d /= 2) sum += __shfl_down_sync(0xffffffffu, sum, d);
        if (threadIdx.x == 0) atomicAdd(out, sum);
    }
}

// Every thread loops as often as its number says, with a branch inside.
extern "C" __global__ void collatz(const unsigned* in, unsigned* steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned long long x = in[i];
    unsigned s = 0;
    while (x != 1) {
        if (x % 2 == 0) x /= 2;
        else x = 3 * x + 1;
        s++;
    }
    steps[i] = s;
}

extern "C" __global__ void histogram(const unsigned char* in, unsigned* bins, int n) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
        atomicAdd(&local[in[i]], 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) {
        if (local[i]) atomicAdd(&bins[i], local[i]);
    }
}

// The last block to finish adds the partial sums: fences order them.
__device__ unsigned ticket = 0;
extern "C" __global__ void last_block(const int* in, int* partial, int* out) {
    __shared__ bool last;
    int v = in[blockIdx.x * blockDim.x + threadIdx.x];
    v = __reduce_add_sync(0xffffffffu, v);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = v;
        __threadfence();
        last = atomicAdd(&ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        int sum = 0;
        for (int b = 0; b < gridDim.x; b++) sum += ((volatile int*)partial)[b];
        *out = sum;
    }
}

__constant__ float table[4] = {1.f, 2.f, 4.f, 8.f};

__device__ __noinline__ double polynomial(double x, int n) {
    double r = 0;
    for (int i = 0; i < n; i++) r = r * x + table[i & 3];
    return r;
}

__device__ __noinline__ int factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }

extern "C" __global__ void calls(const double* in, double* out, int* fact) {
    int i = threadIdx.x;
    out[i] = polynomial(in[i], i % 7);
    fact[i] = factorial(i % 11);
}

struct Wide { int4 a; float b[3]; long long c; };
extern "C" __global__ void by_value(Wide w, long long* out) {
    int local[8];
    for (int i = 0; i < 8; i++) local[i] = w.a.x * i;
    int s = 0;
    for (int i = 0; i < 8; i++) s += local[(i * threadIdx.x) & 7];
    out[threadIdx.x] = s + w.a.y + w.a.z + w.a.w + (long long)w.b[threadIdx.x % 3] + w.c;
}

// A spin lock in shared memory taken lane by lane: lanes must run independently.
extern "C" __global__ void spin_lock(int* out) {
    __shared__ int lock, count;
    if (threadIdx.x == 0) { lock = 0; count = 0; }
    __syncthreads();
    while (atomicCAS(&lock, 0, 1) != 0) {}
    __threadfence_block();
    atomicAdd(&count, 1);
    __threadfence_block();
    atomicExch(&lock, 0);
    __syncthreads();
    if (threadIdx.x == 0) *out = count;
}

// Named barriers: two warps produce, two consume.
extern "C" __global__ void named(const int* in, int* out) {
    __shared__ int buffer[64];
    int t = threadIdx.x;
    if (t < 64) {
        buffer[t] = in[t] * 2;
        asm volatile("bar.arrive 3, 128;" ::: "memory");
    } else {
        asm volatile("bar.sync 3, 128;" ::: "memory");
        out[t - 64] = buffer[127 - t];
    }
}
