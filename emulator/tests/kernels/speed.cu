// Kernels for benches/speed.rs.
extern "C" __global__ void alu(float *y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float a = i * 0.001f, b = 0.5f;
    unsigned h = i;
    for (int k = 0; k < n; ++k) {
        a = fmaf(a, b, 0.25f);
        h = h * 1664525u + 1013904223u;
        h ^= h >> 13;
        b = (h & 1) ? b * 0.99f + 0.001f : fmaxf(b, 0.1f);
    }
    y[i] = a + b + h;
}

// Softmax over rows in shared memory: loads, shuffles, ex2.
extern "C" __global__ void softmax(const float *x, float *y, int cols) {
    extern __shared__ float row[];
    for (int i = threadIdx.x; i < cols; i += blockDim.x) row[i] = x[(size_t)blockIdx.x * cols + i];
    __syncthreads();
    float m = -1e30f;
    for (int i = threadIdx.x % 32; i < cols; i += 32) m = fmaxf(m, row[i]);
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    float s = 0;
    for (int i = threadIdx.x % 32; i < cols; i += 32) s += exp2f(row[i] - m);
    for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    for (int i = threadIdx.x; i < cols; i += blockDim.x) y[(size_t)blockIdx.x * cols + i] = exp2f(row[i] - m) / s;
}
