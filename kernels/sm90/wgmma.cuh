// The products of a warpgroup, wgmma, in every size that a kernel needs.

#pragma once

#include "ptx.cuh"

// The registers of an accumulator with so many columns, and their names.
#define WGMMA_8(b) "+f"(d[b][0]), "+f"(d[b][1]), "+f"(d[b][2]), "+f"(d[b][3])
#define WGMMA_16(b) WGMMA_8(b), WGMMA_8(b + 1)
#define WGMMA_64(b) WGMMA_16(b), WGMMA_16(b + 2), WGMMA_16(b + 4), WGMMA_16(b + 6)
#define WGMMA_REGISTERS_32 WGMMA_16(0), WGMMA_16(2)
#define WGMMA_REGISTERS_64 WGMMA_64(0)
#define WGMMA_REGISTERS_80 WGMMA_64(0), WGMMA_16(8)
#define WGMMA_REGISTERS_96 WGMMA_REGISTERS_80, WGMMA_16(10)
#define WGMMA_REGISTERS_112 WGMMA_REGISTERS_96, WGMMA_16(12)
#define WGMMA_REGISTERS_128 WGMMA_64(0), WGMMA_64(8)
#define WGMMA_REGISTERS_192 WGMMA_REGISTERS_128, WGMMA_64(16)
#define WGMMA_REGISTERS_256 WGMMA_REGISTERS_192, WGMMA_64(24)
#define WGMMA_NAMES_32 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define WGMMA_NAMES_64 WGMMA_NAMES_32 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_NAMES_80 WGMMA_NAMES_64 ", " "%32, %33, %34, %35, %36, %37, %38, %39"
#define WGMMA_NAMES_96 WGMMA_NAMES_80 ", " "%40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_NAMES_112 WGMMA_NAMES_96 ", " "%48, %49, %50, %51, %52, %53, %54, %55"
#define WGMMA_NAMES_128 WGMMA_NAMES_112 ", " "%56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_NAMES_192 \
    WGMMA_NAMES_128 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_NAMES_256 \
    WGMMA_NAMES_192 ", " \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// d = a b, or d += a b with `add`: a is 64x16, and b 16xN, which lies in shared memory as N rows, or TRANSPOSED as 16.
#define WGMMA(N, TYPE, A, B, ADD, LAYOUTS)                                                                       \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE \
    " {" WGMMA_NAMES_##N "}, " A ", " B ", p, 1, 1, " LAYOUTS ";\n}"

// Of one N and type, with a in shared memory and in registers. The names of the other operands follow those of the N / 2
// registers.
#define WGMMA_OF_TYPE(N, TYPE, T, I0, I1, I2, I3, I4, I5, I6)                                                     \
    template <bool TRANSPOSED>                                                                                    \
    __device__ __forceinline__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, int add, T) {             \
        asm volatile(WGMMA(N, TYPE, I0, I1, I2, "0, " I3)                                                         \
                     : WGMMA_REGISTERS_##N                                                                        \
                     : "l"(a), "l"(b), "r"(add), "n"((int)TRANSPOSED));                                           \
    }                                                                                                             \
    template <bool TRANSPOSED>                                                                                    \
    __device__ __forceinline__ void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, int add, T) { \
        asm volatile(WGMMA(N, TYPE, "{" I0 ", " I1 ", " I2 ", " I3 "}", I4, I5, I6)                               \
                     : WGMMA_REGISTERS_##N                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"((int)TRANSPOSED));       \
    }
#define WGMMA_OF(N, ...)                         \
    WGMMA_OF_TYPE(N, "f16", __half, __VA_ARGS__) \
    WGMMA_OF_TYPE(N, "bf16", __nv_bfloat16, __VA_ARGS__)

WGMMA_OF(32, "%16", "%17", "%18", "%19", "%20", "%21", "%22")
WGMMA_OF(64, "%32", "%33", "%34", "%35", "%36", "%37", "%38")
WGMMA_OF(80, "%40", "%41", "%42", "%43", "%44", "%45", "%46")
WGMMA_OF(96, "%48", "%49", "%50", "%51", "%52", "%53", "%54")
WGMMA_OF(112, "%56", "%57", "%58", "%59", "%60", "%61", "%62")
WGMMA_OF(128, "%64", "%65", "%66", "%67", "%68", "%69", "%70")
WGMMA_OF(192, "%96", "%97", "%98", "%99", "%100", "%101", "%102")
WGMMA_OF(256, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
