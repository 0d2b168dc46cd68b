// The element types of q, k, v and out. A new one is added here, in `ELEMENTS` of build/tables.rs, and in `Dtype` of src/kernels;
// beside that, row.cuh widens and narrows it, and ptx.cuh packs and multiplies it.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// KERNEL(name, type, ...) for each.
#define FOR_EACH_ELEMENT(KERNEL, ...) KERNEL(f16, __half, __VA_ARGS__) KERNEL(bf16, __nv_bfloat16, __VA_ARGS__)
