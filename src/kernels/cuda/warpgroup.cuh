// What four warps of compute capability 9.0 do together: products whose matrices both lie in a block's memory, and
// counters there by which threads wait for what others copy or change. All lanes of a warp must come to each of these together,
// but for Counter.
#pragma once

#include "tensor_cores.cuh"

/// Threads of four warps, of which the first has a number that is a multiple of four.
constexpr int WARPGROUP = 128;

/// Rows of a left matrix, and of a right one, which are columns of the product.
constexpr int LEFT_ROWS = 64, RIGHT_ROWS = 128;

/// Numbers of a row that lie together, 128 bytes: a matrix's columns go by so many.
constexpr int DEPTH = 64;

/// Sums of a thread: the product's rows are its warp's 16 of the four's 64, and of these lane / 4 and that plus 8.
constexpr int SUMS = LEFT_ROWS * RIGHT_ROWS / WARPGROUP;

/// Sums of a thread of a product of 64 columns, likewise.
constexpr int ROW_SUMS = LEFT_ROWS * DEPTH / WARPGROUP;

/// Columns of a matrix that lies beside another one, and sums of a thread of a product with both.
constexpr int BESIDE = 16, SUMS_OF_BOTH = LEFT_ROWS * (DEPTH + BESIDE) / WARPGROUP;

/// Where 16 bytes of a row lie among the DEPTH columns of a matrix that begin at a multiple of 1024 bytes: the pieces of
/// eight rows are exchanged so that neither a row nor a column of them falls on a bank twice.
__device__ inline int place_of(int row, int piece) { return row * 128 + (piece ^ row % 8) * 16; }

#ifdef EMULATED
#include "emulated_warpgroup.hpp"
#else

/// Memory of a block, as much as its launch says.
#define ALL_SHARED(name)                                                                                               \
    extern __shared__ __align__(1024) char memory_of_launch[];                                                         \
    char *name = memory_of_launch

/// A kernel of blocks of `threads`, one on a multiprocessor.
#define LONE_KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads, 1) name(__VA_ARGS__)

/// Counts arrivals, so many a round; rounds have numbers, of which the last bit is the round's parity.
struct alignas(8) Counter {
    unsigned long long state;

    /// By one thread, before a barrier of the block.
    __device__ void begin(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals) : "memory");
    }

    __device__ void arrive() {
        asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(shared_address(this)) : "memory");
    }

    /// Once all copies are there that this thread has asked for; the thread does not wait for them.
    __device__ void arrive_with_copies() {
        asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(this)) : "memory");
    }

    /// Whether a round of this parity, of the last two, is complete; waits for a moment if not.
    __device__ bool is_past(int parity) {
        unsigned is_past;
        asm volatile("{\n.reg .pred p;\n"
                     "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, p;\n}"
                     : "=r"(is_past)
                     : "r"(shared_address(this)), "r"(parity)
                     : "memory");
        return is_past;
    }

    /// Before the first round completes, the one before it counts as complete.
    __device__ void wait(int parity) {
        // So many moments are seconds: nobody is coming. An error is better than to wait forever.
        for (unsigned moments = 0; !is_past(parity); moments++) {
            if (moments == 1u << 26) __trap();
        }
    }
};

/// What this thread has written to the block's memory, or knows to have been copied there since a counter said so, is what
/// products read later, of whoever waits for this thread then.
__device__ inline void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// Registers of each thread from now on: fewer than it had, or more.
template <int COUNT> __device__ inline void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

/// DEPTH columns of a matrix in the block's memory, as products are told of them: rows of 128 bytes, eight of them 1024,
/// exchanged as place_of says.
__device__ inline unsigned long long matrix_at(const void *x) {
    constexpr unsigned long long EIGHT_ROWS = 1024 >> 4, EXCHANGED_IN_128_BYTES = 1;
    return (shared_address(x) & 0x3ffffu) >> 4 | 1ull << 16 | EIGHT_ROWS << 32 | EXCHANGED_IN_128_BYTES << 62;
}

/// store_matrices, of what a product reads later, once it was shown to it.
__device__ inline void store_for_products(void *row, const unsigned (&x)[4]) { store_matrices(row, x); }

/// Before products: registers that these threads wrote are read by products from now on.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Ends a group of products.
__device__ inline void end_group_of_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits for all groups but the last few. Sums may be touched only once those of all groups are there.
template <int FEW> __device__ inline void wait_for_older_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(FEW) : "memory");
}

/// After that wait: what was waited for is read from here on, and not before.
template <int N> __device__ inline void hold(float (&y)[N]) {
    UNROLL for (int i = 0; i < N; i++) asm volatile("" : "+f"(y[i])::"memory");
}

/// The same number, of which nothing is known: what is made of it is made where that stands, and takes no registers before.
__device__ inline int hidden(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

#define EIGHT_SUMS(i)                                                                                                  \
    "+f"(y[i]), "+f"(y[i + 1]), "+f"(y[i + 2]), "+f"(y[i + 3]), "+f"(y[i + 4]), "+f"(y[i + 5]), "+f"(y[i + 6]),        \
        "+f"(y[i + 7])

#define MULTIPLY_MATRICES(T, NAME)                                                                                     \
    template <>                                                                                                        \
    __device__ inline void multiply_matrices<T>(float (&y)[SUMS], unsigned long long a, unsigned long long b,          \
                                                bool is_sum) {                                                         \
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                                      \
                     "wgmma.mma_async.sync.aligned.m64n128k16.f32." NAME "." NAME " "                                  \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                \
                     "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                \
                     "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "               \
                     "%64, %65, p, 1, 1, 0, 0;\n}"                                                                     \
                     : EIGHT_SUMS(0), EIGHT_SUMS(8), EIGHT_SUMS(16), EIGHT_SUMS(24), EIGHT_SUMS(32), EIGHT_SUMS(40),   \
                       EIGHT_SUMS(48), EIGHT_SUMS(56)                                                                  \
                     : "l"(a), "l"(b), "r"(static_cast<int>(is_sum)));                                                 \
    }

/// y [64, 128] = a [64, 16] * b [128, 16]^T, or added to what it is; spread over the threads like the results of
/// multiply_add, 8 columns after 8. The matrices are 16 of DEPTH columns, see matrix_at.
template <typename T>
__device__ inline void multiply_matrices(float (&y)[SUMS], unsigned long long a, unsigned long long b, bool is_sum);

MULTIPLY_MATRICES(bf16, "bf16")
MULTIPLY_MATRICES(f16, "f16")
#undef MULTIPLY_MATRICES

#define MULTIPLY_ROWS(T, NAME)                                                                                         \
    template <>                                                                                                        \
    __device__ inline void multiply_rows<T>(float (&y)[ROW_SUMS], const unsigned (&a)[4], unsigned long long b) {      \
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." NAME "." NAME " "                                   \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "               \
                     "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"                                                          \
                     : EIGHT_SUMS(0), EIGHT_SUMS(8), EIGHT_SUMS(16), EIGHT_SUMS(24)                                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                            \
    }

/// y [64, 64] += a [64, 16] * b [16, 64]. The left side is in registers, of a warp's 16 rows as in multiply_add, and must
/// stay there until the product is waited for; of the right side 16 rows of DEPTH numbers lie in the block's memory.
template <typename T>
__device__ inline void multiply_rows(float (&y)[ROW_SUMS], const unsigned (&a)[4], unsigned long long b);

MULTIPLY_ROWS(bf16, "bf16")
MULTIPLY_ROWS(f16, "f16")
#undef MULTIPLY_ROWS

#define MULTIPLY_ROWS_OF_BOTH(T, NAME)                                                                                 \
    template <>                                                                                                        \
    __device__ inline void multiply_rows<T>(float (&y)[SUMS_OF_BOTH], const unsigned (&a)[4], unsigned long long b,    \
                                            unsigned long long beside) {                                               \
        /* How far the one lies behind the other, in place of the 1 of matrix_at. */                                   \
        unsigned long long both = b + ((beside - b) << 16) - (1ull << 16);                                             \
        asm volatile("wgmma.mma_async.sync.aligned.m64n80k16.f32." NAME "." NAME " "                                   \
                     "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                         \
                     "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                \
                     "%32, %33, %34, %35, %36, %37, %38, %39}, "                                                       \
                     "{%40, %41, %42, %43}, %44, 1, 1, 1, 1;"                                                          \
                     : EIGHT_SUMS(0), EIGHT_SUMS(8), EIGHT_SUMS(16), EIGHT_SUMS(24), EIGHT_SUMS(32)                    \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(both));                                         \
    }

/// The same, and behind it y [64, 16] of so many columns of another matrix, which must lie less than 2^18 bytes behind the
/// first.
template <typename T>
__device__ inline void multiply_rows(float (&y)[SUMS_OF_BOTH], const unsigned (&a)[4], unsigned long long b,
                                     unsigned long long beside);

MULTIPLY_ROWS_OF_BOTH(bf16, "bf16")
MULTIPLY_ROWS_OF_BOTH(f16, "f16")
#undef MULTIPLY_ROWS_OF_BOTH
#undef EIGHT_SUMS
#endif

/// A warp's arrival.
__device__ inline void arrive(Counter &counter) {
    warp_barrier();
    if (threadIdx.x % WARP == 0) counter.arrive();
}

/// Which stage is whose turn, and the parity of how often it was.
struct Turn {
    int stage = 0, parity = 0;

    __device__ void advance(int stages) {
        if (++stage < stages) return;
        stage = 0;
        parity ^= 1;
    }
};

/// Waits for what others have brought, and lets this warp's products read it.
__device__ inline void wait_for_stage(Counter &there, int parity) {
    there.wait(parity);
    show_to_products();
    // Products want all lanes at once.
    warp_barrier();
}

/// Asks for the product of DEPTH columns of two matrices, as a group, in the place of what the sums are.
template <typename T> __device__ inline void multiply_depth(float (&y)[SUMS], const T *left, const T *right) {
    begin_products();
    UNROLL for (int part = 0; part < DEPTH / 16; part++) {
        // 32 bytes further.
        multiply_matrices<T>(y, matrix_at(left) + 2 * part, matrix_at(right) + 2 * part, part > 0);
    }
    end_group_of_products();
}
