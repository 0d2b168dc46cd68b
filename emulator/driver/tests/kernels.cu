// Kernels for tests/driver.rs.

// Passed by value.
struct Scale {
    float factor;
    int n;
};

extern "C" __global__ void saxpy(const float *x, float *y, Scale scale) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < scale.n) y[i] += scale.factor * x[i];
}

__device__ int turns = 10;
extern "C" __global__ void count(int *out) { *out = ++turns; }

extern "C" __global__ void stray(int *x, int i) { x[i] = 1; }

extern "C" __global__ void unwritten(const int *x, int *out) { *out = *x; }

extern "C" __global__ void fails() { __trap(); }

// Reverses a block's part through dynamic shared memory, of which it uses the end.
extern "C" __global__ void reverse(int *x, int skip) {
    extern __shared__ int part[];
    part[skip + threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = part[skip + blockDim.x - 1 - threadIdx.x];
}

// What the code that runs was compiled for: 10 times the number of the architecture, and 1 more for `sm_90a`.
extern "C" __global__ void compiled_for(int *out) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    *out = __CUDA_ARCH__ + 1;
#else
    *out = __CUDA_ARCH__;
#endif
}

extern "C" __global__ void nothing() {}
