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

// A `CUtensorMap`.
struct alignas(64) TensorMap {
    unsigned char bytes[128];
};

// One thread copies a tile of two dimensions through shared memory, by the device's own copies.
extern "C" __global__ void copy_tile(const __grid_constant__ TensorMap from, const __grid_constant__ TensorMap to,
                                     int column, int row, int bytes) {
#if __CUDA_ARCH__ >= 900
    extern __shared__ __align__(1024) char tile[];
    __shared__ unsigned long long arrived;
    const unsigned shared = __cvta_generic_to_shared(tile), barrier = __cvta_generic_to_shared(&arrived);
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(shared), "l"(&from), "r"(column), "r"(row), "r"(barrier) : "memory");
    int done = 0;
    while (!done) {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.b32 %0, 1, 0, p;\n}"
            : "=r"(done) : "r"(barrier) : "memory");
    }
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];"
                 ::"l"(&to), "r"(column), "r"(row), "r"(shared) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
#endif
}
