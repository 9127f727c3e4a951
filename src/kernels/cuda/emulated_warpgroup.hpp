// The words of warpgroup.cuh for a host compiler. A product is made when it is asked for or when it is waited for, of
// what was shown to it of the block's memory until then, and a thread that waits for a counter runs again when its
// round is complete.
#pragma once

#include "emulated.hpp"

#include <cstdlib>
#include <functional>

/// Of functions that come to no memory but through those of emulated.cpp, so that races need not be looked for there.
#define UNWATCHED __attribute__((no_sanitize_thread))

namespace emulated {

/// All memory that the launch gives the block, at a multiple of 1024 bytes. It begins as NaN.
char *memory_of_launch();

/// Shows products the copies that this thread knows of, and what was shown to them of two bytes. Threads whose products read the
/// same need not all be `noted` as those who do.
void show();
unsigned short shown(const void *place, bool is_noted);

/// Makes a product of this thread's now, or when it is waited for.
void multiply_later(std::function<void()> make);
void end_group_of_products();
void wait_for_products_but(int few);

/// Shows products what this thread has written there, when it shows what it knows of.
void write_unshown(unsigned *word);

/// The number in a row and a column of 16, of a matrix as matrix_at and place_of describe it.
template <typename T> UNWATCHED float number_at(unsigned long long matrix, int row, int column, bool is_noted) {
    unsigned long long first = matrix << 4, begin = first / 1024 * 1024;
    int piece = static_cast<int>(first - begin) / 16 + column / 8;
    const char *place = reinterpret_cast<const char *>(begin) + place_of(row, piece) + column % 8 * sizeof(T);
    return to_float(T{shown(place, is_noted)});
}

/// The same of a left matrix, whose rows four lanes read, and of a right one, whose columns lanes with equal last bits do.
template <typename T> UNWATCHED float left_at(unsigned long long matrix, int row, int column) {
    return number_at<T>(matrix, row, column, threadIdx.x % 4 == 0);
}

template <typename T> UNWATCHED float right_at(unsigned long long matrix, int row, int column) {
    return number_at<T>(matrix, row, column, threadIdx.x % 32 < 4);
}

/// Two rows of a left matrix, which are a thread's, of 16 columns.
typedef float Left[2][16];

/// y += left * right^T, or in its place, of COUNT sums of a thread; `right(column, k)` are the right matrix's numbers.
template <int COUNT, typename F> UNWATCHED void multiply(float *y, const Left &left, F right, bool is_sum) {
    for (int i = 0; i < COUNT; i++) {
        int column = i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
        float sum = is_sum ? y[i] : 0.0f;
        for (int k = 0; k < 16; k++) sum += left[i / 2 % 2][k] * right(column, k);
        y[i] = sum;
    }
}

} // namespace emulated

#define ALL_SHARED(name) char *name = emulated::memory_of_launch()

#define LONE_KERNEL(threads, name, ...) EMULATED_KERNEL(name, __VA_ARGS__)

struct alignas(8) Counter {
    unsigned short arrivals, missing;
    unsigned round;

    void begin(int count);
    void arrive();
    void arrive_with_copies();
    void wait(int parity);

  private:
    void count();
};

inline void show_to_products() { emulated::show(); }
template <int COUNT> inline void keep_registers() { emulated::wait_for_warp(emulated::AGREE); }
template <int COUNT> inline void take_registers() { emulated::wait_for_warp(emulated::AGREE); }

inline unsigned long long matrix_at(const void *x) { return reinterpret_cast<unsigned long long>(x) >> 4; }

inline void store_for_products(void *row, const unsigned (&x)[4]) {
    emulated::store(row, x, emulated::write_unshown);
}

inline void begin_products() { emulated::wait_for_warp(emulated::AGREE); }
inline void end_group_of_products() { emulated::end_group_of_products(); }
template <int FEW> inline void wait_for_older_products() {
    emulated::wait_for_warp(emulated::AGREE);
    emulated::wait_for_products_but(FEW);
}
template <int N> inline void hold(float (&)[N]) {}
inline int hidden(int x) { return x; }

template <typename T>
inline void multiply_matrices(float (&y)[SUMS], unsigned long long a, unsigned long long b, bool is_sum) {
    emulated::multiply_later([=, sums = &y[0]]() UNWATCHED {
        int thread = threadIdx.x % WARPGROUP, first = thread / 32 * 16 + thread % 32 / 4;
        emulated::Left left;
        for (int i = 0; i < 32; i++) left[i / 16][i % 16] = emulated::left_at<T>(a, first + i / 16 * 8, i % 16);
        auto right = [=](int column, int k) UNWATCHED { return emulated::right_at<T>(b, column, k); };
        emulated::multiply<SUMS>(sums, left, right, is_sum);
    });
}

namespace emulated {

/// y += a * right, of COUNT sums of a thread; `right(row, column)` are the right side's numbers.
template <typename T, int COUNT, typename F>
void multiply_rows(float (&y)[COUNT], const unsigned (&a)[4], F right) {
    struct Row {
        float numbers[16];
    };
    // Each of four lanes has a part of both rows.
    Row *rows = static_cast<Row *>(memory_of_warp());
    int lane = emulated::lane();
    for (int i = 0; i < 8; i++) {
        unsigned short bits = static_cast<unsigned short>(a[i / 2] >> i % 2 * 16);
        rows[lane / 4 + i / 2 % 2 * 8].numbers[lane % 4 * 2 + i / 4 * 8 + i % 2] = to_float(T{bits});
    }
    wait_for_warp(MULTIPLY);
    Row own[2] = {rows[lane / 4], rows[lane / 4 + 8]};
    multiply_later([=, sums = &y[0]]() UNWATCHED {
        Left left;
        std::memcpy(left, own, sizeof left);
        multiply<COUNT>(sums, left, [=](int column, int k) UNWATCHED { return right(k, column); }, true);
    });
}

} // namespace emulated

template <typename T>
inline void multiply_rows(float (&y)[ROW_SUMS], const unsigned (&a)[4], unsigned long long b) {
    emulated::multiply_rows<T>(y, a, [=](int row, int column) UNWATCHED { return emulated::right_at<T>(b, row, column); });
}

template <typename T>
inline void multiply_rows(float (&y)[SUMS_OF_BOTH], const unsigned (&a)[4], unsigned long long b,
                          unsigned long long beside) {
    // Farther than a product can be told.
    if (beside <= b || beside - b >= 1 << 14) std::abort();
    emulated::multiply_rows<T>(y, a, [=](int row, int column) UNWATCHED {
        bool is_beside = column >= DEPTH;
        return emulated::right_at<T>(is_beside ? beside : b, row, is_beside ? column - DEPTH : column);
    });
}
