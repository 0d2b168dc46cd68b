// One planted bug each. The tests find the lines by the words BUG and OTHER.
__device__ unsigned smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

extern "C" __global__ void out_of_bounds(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = 1.f;  // BUG out_of_bounds
}

extern "C" __global__ void misaligned(const float* x, float4* out) {
    out[threadIdx.x] = *(const float4*)(x + 1 + threadIdx.x * 4);  // BUG misaligned
}

extern "C" __global__ void uninitialised(float* out) {
    __shared__ float s[64];
    if (threadIdx.x < 63) s[threadIdx.x] = 1.f;
    __syncthreads();
    out[threadIdx.x] = s[threadIdx.x];  // BUG uninitialised
}

extern "C" __global__ void missing_sync(const float* in, float* out) {
    __shared__ float s[128];
    s[threadIdx.x] = in[threadIdx.x];  // OTHER missing_sync
    out[threadIdx.x] = s[127 - threadIdx.x];  // BUG missing_sync
}

extern "C" __global__ void missing_wait(const float* in, float* out) {
    __shared__ alignas(16) float s[128];
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem(&s[threadIdx.x])), "l"(in + threadIdx.x) : "memory");  // OTHER missing_wait
    asm volatile("cp.async.commit_group;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = s[127 - threadIdx.x];  // BUG missing_wait
}

extern "C" __global__ void wrong_wait(const float* in, float* out) {
    __shared__ alignas(16) float s[2][128];
    for (int g = 0; g < 2; g++) {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(smem(&s[g][threadIdx.x])), "l"(in + g * 128 + threadIdx.x) : "memory");  // OTHER wrong_wait
        asm volatile("cp.async.commit_group;" ::: "memory");
    }
    asm volatile("cp.async.wait_group 1;" ::: "memory");
    __syncthreads();
    out[threadIdx.x] = s[0][127 - threadIdx.x];
    out[threadIdx.x] += s[1][127 - threadIdx.x];  // BUG wrong_wait
}

extern "C" __global__ void divergent_barrier(float* out) {
    if (threadIdx.x % 2 == 0) {
        out[threadIdx.x] = 1.f;
        __syncthreads();  // BUG divergent_barrier
    }
    out[threadIdx.x] = 2.f;
}

extern "C" __global__ void deadlock(float* out) {
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory");  // BUG deadlock
    } else {
        asm volatile("bar.sync 2, 64;" ::: "memory");  // OTHER deadlock
    }
    out[threadIdx.x] = 2.f;
}

extern "C" __global__ void global_race(int* x, int* out) {
    if (threadIdx.x == 0) x[blockIdx.x] = 1;  // BUG global_race
    out[blockIdx.x * blockDim.x + threadIdx.x] = x[0];  // OTHER global_race
}

extern "C" __global__ void unknown(unsigned* out) {
    unsigned r = 0;
    asm volatile("vadd2.u32.u32.u32 %0, %1, %1, %1;" : "=r"(r) : "r"(threadIdx.x));  // BUG unknown
    out[threadIdx.x] = r;
}

// Not a bug of the ten: the fence that orders the partial sums is missing.
extern "C" __global__ void missing_fence(int* partial, unsigned* ticket, int* out) {
    partial[blockIdx.x] = blockIdx.x;  // OTHER missing_fence
    if (atomicAdd(ticket, 1u) == gridDim.x - 1) {
        int sum = 0;
        for (int b = 0; b < gridDim.x; b++) sum += partial[b];  // BUG missing_fence
        *out = sum;
    }
}

extern "C" __global__ void wrong_count(float* out) {
    if (threadIdx.x < 32) {
        asm volatile("bar.sync 1, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 96;" ::: "memory");
    }
    out[threadIdx.x] = 2.f;
}

extern "C" __global__ void missing_lane(int* out) {
    int v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_xor_sync(0xffffffffu, v, 1);  // BUG missing_lane
    out[threadIdx.x] = v;
}
