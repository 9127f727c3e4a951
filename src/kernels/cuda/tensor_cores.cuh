// Products of small matrices by a whole warp, and copies that arrive later: what device.cuh does not name because only
// the kernels that multiply use it. All lanes of a warp must come to multiply_add and load_* together.
#pragma once

#include "device.cuh"

#ifndef EMULATED

/// Two numbers into neighbouring places, the first of which lies at a multiple of 4 bytes.
template <typename T> __device__ inline void write_pair(T *target, float low, float high) {
    *reinterpret_cast<unsigned *>(target) = packed<T>(low, high);
}

/// y [16, 8] += a [16, 16] * b [16, 8], spread over the lanes as in the PTX manual's mma.m16n8k16.
template <typename T>
__device__ inline void multiply_add(float (&y)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high);

#define MULTIPLY_ADD(T, NAME)                                                                                          \
    template <>                                                                                                        \
    __device__ inline void multiply_add<T>(float (&y)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {   \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 {%0, %1, %2, %3}, "                  \
                     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                   \
                     : "+f"(y[0]), "+f"(y[1]), "+f"(y[2]), "+f"(y[3])                                                  \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));                           \
    }

MULTIPLY_ADD(bf16, "bf16")
MULTIPLY_ADD(f16, "f16")
#undef MULTIPLY_ADD

__device__ inline unsigned shared_address(const void *x) { return static_cast<unsigned>(__cvta_generic_to_shared(x)); }

/// Four matrices of 8 rows of 8 numbers of 16 bits from a block's memory: lane i names row i % 8 of matrix i / 8, and
/// gets of each matrix the numbers 2 * (i % 4) and the next of row i / 4.
__device__ inline void load_matrices(unsigned (&y)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// The same, of each matrix's transpose.
__device__ inline void load_transposed(unsigned (&y)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// Writes four matrices where load_matrices reads them.
__device__ inline void store_matrices(void *row, const unsigned (&x)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
                 :
                 : "r"(shared_address(row)), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
#else
    UNROLL for (int i = 0; i < 4; i++) {
        unsigned target = __shfl_sync(0xffffffffu, shared_address(row), 8 * i + threadIdx.x % WARP / 4);
        asm volatile("st.shared.u32 [%0], %1;" : : "r"(target + threadIdx.x % 4 * 4), "r"(x[i]) : "memory");
    }
#endif
}

/// Copies 16 bytes into a block's memory. Both addresses are multiples of 16. Not fewer: ptxas
/// adds how many are left out to the address, which compute-sanitizer then reports as not aligned.
__device__ inline void copy_later(void *target, const void *source) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"(shared_address(target)), "l"(source)
                 : "memory");
}

/// The same, or 16 bytes of zeros: then nothing is read, and nothing is added to the address.
__device__ inline void copy_later_or_zeros(void *target, const void *source, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(target)), "l"(source), "r"(is_there ? 16 : 0)
                 : "memory");
}

/// Waits for this thread's copies; others see them after a barrier.
__device__ inline void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

/// Ends a group of this thread's copies, which may be empty.
__device__ inline void end_group_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for this thread's groups of copies but for the last few.
template <int FEW> __device__ inline void wait_for_older_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(FEW) : "memory");
}
#endif

/// Copies numbers that fill 16 bytes into a block's memory: the first `count` of them, which may be none or negative,
/// and zeros for the others. They are there after wait_for_copies and a barrier.
template <typename T> __device__ inline void copy_piece(T *target, const T *source, int count) {
    constexpr int PIECE = 16 / sizeof(T);
    if (count >= PIECE && reinterpret_cast<unsigned long long>(source) % 16 == 0) {
        copy_later(target, source);
        return;
    }
    alignas(16) T piece[PIECE];
    UNROLL for (int i = 0; i < PIECE; i++) piece[i] = i < count ? source[i] : from_float<T>(0.0f);
    *reinterpret_cast<uint4 *>(target) = *reinterpret_cast<const uint4 *>(piece);
}

/// Numbers from one row to the next in a block's memory: with 16 bytes between rows, a column of rows nearby lies in
/// different banks.
template <typename T, int COLUMNS> constexpr int PADDED = COLUMNS + 16 / static_cast<int>(sizeof(T));

/// Copies a part of a matrix into a block's memory, from `column` on, by all threads. `row_at` says where a row begins;
/// null is a row of zeros, as are columns from `width` on.
template <int ROWS, int COLUMNS, typename T, typename F>
__device__ inline void load_rows(T *target, F row_at, int column, int width) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = COLUMNS / PIECE;
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        int row = i / PIECES, place = i % PIECES * PIECE;
        const T *source = row_at(row);
        int count = source ? width - column - place : 0;
        copy_piece(target + row * PADDED<T, COLUMNS> + place, count > 0 ? source + column + place : nullptr, count);
    }
}
