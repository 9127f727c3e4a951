// What every kernel file begins with: element types, a warp's reductions, and the same words for nvcc and for a host
// compiler, which runs the kernels thread by thread where there is no GPU (emulated.hpp).
#pragma once

#ifdef EMULATED
#include "emulated.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef __nv_bfloat16 bf16;
typedef __half f16;

// A kernel that can be launched by its name, in blocks of 128 threads: KERNEL(name, int count, ...) { body }
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(128) name(__VA_ARGS__)

// The same with no more registers than let so many blocks run on a multiprocessor at once.
#define CROWDED_KERNEL(blocks, name, ...) extern "C" __global__ void __launch_bounds__(128, blocks) name(__VA_ARGS__)

// A parameter that is a struct, which stays where the launch has put it.
#define PARAMETER(type) const __grid_constant__ type

// Memory of a block.
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }
template <> __device__ inline f16 from_float<f16>(float x) { return __float2half_rn(x); }

// Two numbers in one register, the first in its low half: a single one is rounded by a unit that is a quarter as fast.
template <typename T> __device__ inline unsigned packed(float low, float high);

template <> __device__ inline unsigned packed<bf16>(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&both);
}

template <> __device__ inline unsigned packed<f16>(float low, float high) {
    __half2 both = __floats2half2_rn(low, high);
    return *reinterpret_cast<unsigned *>(&both);
}

// Both of them again, exactly.
template <typename T> __device__ inline float2 unpacked(unsigned both);

template <> __device__ inline float2 unpacked<bf16>(unsigned both) {
    return {__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u)};
}

template <> __device__ inline float2 unpacked<f16>(unsigned both) {
    return __half22float2(*reinterpret_cast<__half2 *>(&both));
}

// Four bytes, the lowest by the last digit: 0 to 3 are bytes of the first number, 4 to 7 of the second one, and with 8 more
// they are the signs of these bytes, in all of their bits.
__device__ inline unsigned bytes_of(unsigned first, unsigned second, unsigned digits) {
    unsigned bytes;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(first), "r"(second), "r"(digits));
    return bytes;
}

// The value of the lane whose number differs in these bits.
__device__ inline float exchanged(float x, int bits) { return __shfl_xor_sync(0xffffffffu, x, bits); }

// A number by its bits.
__device__ inline float of_bits(unsigned bits) { return __uint_as_float(bits); }
__device__ inline unsigned bits_of(float x) { return __float_as_uint(x); }

// 2^x within 2 units of the last place; 0 where it would be less than the least normal number.
__device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x within 1 unit of the last place; 0 where it would be less than the least normal number.
__device__ inline float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Waits for every thread of the block.
__device__ inline void barrier() { __syncthreads(); }

// Waits for every lane of the warp, and shows it what the others have written to the block's memory.
__device__ inline void warp_barrier() { __syncwarp(); }
#endif

#ifdef EMULATED
#define UNROLL
#define ROLLED
#else
/// Before loops over arrays that live in registers.
#define UNROLL _Pragma("unroll")
/// Before loops that are not worth more registers.
#define ROLLED _Pragma("unroll 1")
#endif

constexpr int WARP = 32;
constexpr int THREADS = 128;

__device__ inline float sum_of_warp(float x) {
    for (int bits = WARP / 2; bits > 0; bits /= 2) x += exchanged(x, bits);
    return x;
}

__device__ inline float max_of_warp(float x) {
    for (int bits = WARP / 2; bits > 0; bits /= 2) x = fmaxf(x, exchanged(x, bits));
    return x;
}
