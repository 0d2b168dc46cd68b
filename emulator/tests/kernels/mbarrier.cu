// A producer warp copies, consumers wait on mbarriers.
#include <cuda_runtime.h>

__device__ unsigned smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }

__device__ void wait(unsigned bar, unsigned parity) {
    asm volatile(
        "{\n.reg .pred p;\nL_WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
        "@p bra L_DONE;\nbra L_WAIT;\nL_DONE:\n}\n" ::"r"(bar), "r"(parity) : "memory");
}

extern "C" __global__ void pipeline(const int* in, int* out, int tiles) {
    __shared__ alignas(16) int buffer[2][128];
    __shared__ alignas(8) unsigned long long full[2], empty[2];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 32;" ::"r"(smem(&full[i])));
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 4;" ::"r"(smem(&empty[i])));
        }
    }
    __syncthreads();
    if (warp == 0) {
        for (int t = 0; t < tiles; t++) {
            int s = t % 2;
            if (t >= 2) wait(smem(&empty[s]), (t / 2 - 1) & 1);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem(&buffer[s][lane * 4])),
                         "l"(in + t * 128 + lane * 4) : "memory");
            asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(smem(&full[s])) : "memory");
        }
    } else {
        int sum = 0;
        for (int t = 0; t < tiles; t++) {
            int s = t % 2;
            wait(smem(&full[s]), (t / 2) & 1);
            sum += buffer[s][(warp - 1) * 32 + lane];
            __syncwarp();
            if (lane == 0) {
                unsigned long long state;
                asm volatile("mbarrier.arrive.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(smem(&empty[s])) : "memory");
            }
        }
        out[(warp - 1) * 32 + lane] = sum;
    }
}
