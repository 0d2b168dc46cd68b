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
