// arch: compute_90a
// softmax(Q K^T) V for rows of 64: a warpgroup has 64 queries; scores and probabilities stay in registers.
#include "hopper.cuh"

constexpr int TILE = 64 * 128;

DEVICE uint32_t pack(float x, float y) {
    __half2 h = __floats2half2_rn(x, y);
    return *(uint32_t *)&h;
}

// `scale` is in units of log2. Keys come in tiles of 64, two stages ahead.
extern "C" __global__ void __launch_bounds__(128, 1)
    attention(const __grid_constant__ TensorMap mq, const __grid_constant__ TensorMap mk, const __grid_constant__ TensorMap mv, float *out, int keys, float scale) {
    extern __shared__ __align__(1024) uint8_t tiles[];
    __shared__ uint64_t q_full, full[2];
    uint8_t *q = tiles, *k = tiles + TILE, *v = tiles + 3 * TILE;
    int head = blockIdx.y * keys, steps = keys / 64;
    if (threadIdx.x == 0) {
        mbar_init(&q_full, 1);
        mbar_init(&full[0], 1);
        mbar_init(&full[1], 1);
        fence_mbarrier_init();
    }
    __syncthreads();
    auto load = [&](int i) {
        int s = i % 2;
        mbar_expect(&full[s], 2 * TILE);
        tma_load(k + s * TILE, &mk, &full[s], 0, head + 64 * i);
        tma_load(v + s * TILE, &mv, &full[s], 0, head + 64 * i);
    };
    if (threadIdx.x == 0) {
        mbar_expect(&q_full, TILE);
        tma_load(q, &mq, &q_full, 0, head + 64 * blockIdx.x);
        load(0);
        if (steps > 1) load(1);
    }
    mbar_wait(&q_full, 0);
    float o[32], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    for (int i = 0; i < 32; ++i) o[i] = 0;
    for (int i = 0; i < steps; ++i) {
        int s = i % 2;
        mbar_wait(&full[s], i / 2 & 1);
        float x[32];
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; ++j) wgmma64<__half, 0>(x, descriptor(q + 32 * j, 16, 1024), descriptor(k + s * TILE + 32 * j, 16, 1024), j > 0);
        wgmma_commit();
        wgmma_wait<0>();
        hold(x);
        float rescale[2];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            float m = top[h];
#pragma unroll
            for (int c = 0; c < 32; c += 4) m = fmaxf(m, fmaxf(x[c + 2 * h], x[c + 2 * h + 1]));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
            m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
            rescale[h] = exp2f((top[h] - m) * scale);
            top[h] = m;
            sum[h] *= rescale[h];
#pragma unroll
            for (int c = 0; c < 32; c += 4) {
                x[c + 2 * h] = exp2f((x[c + 2 * h] - m) * scale);
                x[c + 2 * h + 1] = exp2f((x[c + 2 * h + 1] - m) * scale);
                sum[h] += x[c + 2 * h] + x[c + 2 * h + 1];
            }
        }
#pragma unroll
        for (int c = 0; c < 32; ++c) o[c] *= rescale[c / 2 % 2];
        uint32_t p[4][4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int r = 0; r < 4; ++r) p[j][r] = pack(x[8 * j + 2 * r], x[8 * j + 2 * r + 1]);
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 4; ++j) wgmma64<__half, 1>(o, p[j], descriptor(v + s * TILE + 2048 * j, 16, 1024), 1);
        wgmma_commit();
        wgmma_wait<0>();
        hold(o);
        __syncthreads();
        if (threadIdx.x == 0 && i + 2 < steps) load(i + 2);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    }
    int lane = threadIdx.x % 32, row = head + 64 * blockIdx.x + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int c = 0; c < 32; c += 2) {
        int h = c / 2 % 2;
        *(float2 *)(out + (row + 8 * h) * 64 + c / 4 * 8 + 2 * (lane % 4)) = make_float2(o[c] / sum[h], o[c + 1] / sum[h]);
    }
}
