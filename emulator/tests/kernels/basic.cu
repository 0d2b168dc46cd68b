// Whole kernels for tests/kernels.rs.
#include <cassert>
#include <cuda_fp16.h>

extern "C" __global__ void saxpy(const float *x, float *y, float a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// Sum by shuffles in the warp, then by the first warp through shared memory.
extern "C" __global__ void reduce(const float *x, float *out, int n) {
    __shared__ float part[32];
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) v += x[i];
    for (int o = 16; o > 0; o >>= 1) v += __shfl_down_sync(~0u, v, o);
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0;
        for (int o = 16; o > 0; o >>= 1) v += __shfl_down_sync(~0u, v, o);
        if (threadIdx.x == 0) atomicAdd(out, v);
    }
}

// Each lane leaves the loop after a number of steps of its own.
extern "C" __global__ void collatz(const unsigned *x, unsigned *steps, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned v = x[i], s = 0;
    while (v != 1) {
        if (v & 1) v = 3 * v + 1;
        else v >>= 1;
        ++s;
    }
    steps[i] = s + 1000 * __popc(__ballot_sync(__activemask(), v == 1));
}

extern "C" __global__ void histogram(const unsigned char *x, unsigned *bins, int n) {
    __shared__ unsigned local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[x[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) if (local[i]) atomicAdd(&bins[i], local[i]);
}

// The last block to finish sums what all blocks wrote: ordered by fence and atomic.
__device__ unsigned finished;
extern "C" __global__ void last_block(const float *x, float *partial, float *out) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        float s = 0;
        for (int i = 0; i < 64; ++i) s += x[blockIdx.x * 64 + i];
        partial[blockIdx.x] = s;
        __threadfence();
        last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float s = 0;
        for (int i = 0; i < gridDim.x; ++i) s += partial[i];
        *out = s;
    }
}

// In every round the last block to count itself reads what all have written in it.
extern "C" __global__ void last_of_rounds(float *partial, unsigned *counted, float *out, int rounds) {
    for (int r = 0; r < rounds; ++r) {
        partial[r * gridDim.x + blockIdx.x] = 1;
        __threadfence();
        if (atomicAdd(&counted[r], 1) != gridDim.x - 1) continue;
        float s = 0;
        for (int i = 0; i < gridDim.x; ++i) s += partial[r * gridDim.x + i];
        out[r] = s;
    }
}

// Block 0 announces each value by a flag; the others read the latest that is announced.
extern "C" __global__ void announced(int *data, volatile int *flag, int *wrong, int n) {
    for (int i = 1; i <= n; ++i) {
        if (blockIdx.x == 0) {
            data[i] = i;
            __threadfence();
            *flag = i;
        } else {
            int latest = *flag;
            __threadfence();
            if (latest && data[latest] != latest) atomicAdd(wrong, 1);
        }
    }
}

struct Poly { float c[5]; int n; };
__device__ __noinline__ float eval(Poly p, float x) {
    float r = 0;
    for (int i = p.n - 1; i >= 0; --i) r = r * x + p.c[i];
    return r;
}
__constant__ float table[4] = {1.f, 2.f, 3.f, 4.f};
extern "C" __global__ void calls(float *y, Poly p, int n) {
    int i = threadIdx.x;
    float v = eval(p, i * 0.5f);
    switch (i & 7) {
        case 0: v += 1; break;
        case 1: v *= 3; break;
        case 2: v = -v; break;
        case 3: v = eval(p, v * 0.01f); break;
        case 4: v /= 3.1f; break;
        case 5: v = v * v; break;
        case 6: v = sqrtf(fabsf(v)); break;
        default: v = 7;
    }
    assert(n < 100);
    y[i] = v * table[i & 3];
}

// Threads of one warp hand a ticket around: needs every lane to make progress.
extern "C" __global__ void lane_lock(int *lock, int *count) {
    for (bool done = false; !done;) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            *(volatile int *)count = *(volatile int *)count + 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
}

extern "C" __global__ void far_store(float *x, long long at, float v) { x[at + threadIdx.x] = v; }

extern "C" __global__ void half_math(const __half2 *x, __half2 *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = __hfma2(x[i], x[i], __hmax2(x[i], __float2half2_rn(0.25f)));
}

// Transpose through shared memory, without padding: every store conflicts.
extern "C" __global__ void transpose(const float *x, float *y, int pad) {
    extern __shared__ float tile[];
    int stride = 32 + pad;
    tile[threadIdx.x * stride + threadIdx.y] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.y * stride + threadIdx.x];
}

extern "C" __global__ void named(int *out) {
    __shared__ int box[32];
    int w = threadIdx.x / 32, l = threadIdx.x % 32;
    if (w == 0) {
        for (int i = 0; i < 8; ++i) {
            box[l] = i * 100 + l;
            asm volatile("bar.arrive 1, 64;" ::: "memory");
            asm volatile("bar.sync 2, 64;" ::: "memory");
        }
    } else {
        int s = 0;
        for (int i = 0; i < 8; ++i) {
            asm volatile("bar.sync 1, 64;" ::: "memory");
            s += box[31 - l];
            asm volatile("bar.arrive 2, 64;" ::: "memory");
        }
        out[l] = s;
    }
}
