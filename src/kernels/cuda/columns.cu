// Rows copied from one place and type to another, columns scaled and shifted, and sums.
#include "wide.cuh"

namespace {

/// The number of no row: zeros are copied in its place.
constexpr unsigned NO_ROW = 0xffffffffu;

/// Elements of a block where they are counted one by one.
constexpr int ELEMENTS = 1024;

/// `y [width] = x + others`, of which each but `y` may be null.
template <int N, typename Y, typename X, typename... O>
__device__ void copy_row(int width, Y *__restrict__ y, const X *x, const O *...others) {
    for (int column = N * threadIdx.x; column < width; column += N * THREADS) {
        float values[N] = {};
        auto add = [&](auto *row) {
            if (!row) return;
            float more[N];
            read_columns(more, row + column);
            for (int i = 0; i < N; i++) values[i] += more[i];
        };
        add(x);
        (add(others), ...);
        write_columns(y + column, values);
    }
}

template <typename Y, typename X, typename... O>
__device__ void copy_row(int width, Y *y, const X *x, const O *...others) {
    if (are_wide(width, y, x, others...)) {
        copy_row<WIDE>(width, y, x, others...);
    } else {
        copy_row<1>(width, y, x, others...);
    }
}

/// The block's row of a table, by its id; null where there is no table.
template <typename T> __device__ const T *row_of(const T *table, const unsigned *ids, int width) {
    return table ? table + static_cast<long long>(ids[blockIdx.x]) * width : nullptr;
}

/// A block a row of `y [outer, inner, width]`.
template <typename Y, typename X>
__device__ void copy(Y *y, const X *x, const unsigned *ids, const float *addend, int inner, int width, int x_outer,
                     int x_inner, int y_outer, int y_inner) {
    unsigned outer = blockIdx.x / inner;
    long long within = blockIdx.x % inner;
    unsigned source = ids ? ids[outer] : outer;
    x = source == NO_ROW ? nullptr : x + static_cast<long long>(source) * x_outer + within * x_inner;
    y += static_cast<long long>(outer) * y_outer + within * y_inner;
    if (addend) addend += within * width;
    copy_row(width, y, x, addend);
}

/// A block's elements of `y = a + scale * b`, or of `scale * b` where there is no `a`.
template <int N, typename Y, typename A, typename B>
__device__ void sum_elements(Y *__restrict__ y, const A *a, const B *b, float scale, long long count) {
    long long first = static_cast<long long>(blockIdx.x) * ELEMENTS + N * threadIdx.x;
    for (int round = 0; round < ELEMENTS / THREADS / N; round++) {
        long long at = first + round * N * THREADS;
        if (at >= count) return;
        float values[N] = {}, more[N];
        read_columns(more, b + at);
        if (a) read_columns(values, a + at);
        for (int i = 0; i < N; i++) values[i] = a ? values[i] + scale * more[i] : scale * more[i];
        write_columns(y + at, values);
    }
}

template <typename Y, typename A, typename B>
__device__ void sum(Y *y, const A *a, const B *b, float scale, long long count) {
    if (are_wide(count, y, a, b)) {
        sum_elements<WIDE>(y, a, b, scale, count);
    } else {
        sum_elements<1>(y, a, b, scale, count);
    }
}

template <int N, typename Y>
__device__ void scale_row(Y *__restrict__ y, const float *factor, const float *shift, int columns) {
    for (int column = N * threadIdx.x; column < columns; column += N * THREADS) {
        float values[N], factors[N], shifts[N];
        read_columns(values, y + column);
        read_columns(factors, factor + column);
        read_columns(shifts, shift + column);
        for (int i = 0; i < N; i++) values[i] = values[i] * factors[i] + shifts[i];
        write_columns(y + column, values);
    }
}

/// A block a row.
template <typename Y>
__device__ void scale_columns(Y *y, const float *factor, const float *shift, int columns, int stride) {
    y += static_cast<long long>(blockIdx.x) * stride;
    if (are_wide(columns, y, factor, shift)) {
        scale_row<WIDE>(y, factor, shift, columns);
    } else {
        scale_row<1>(y, factor, shift, columns);
    }
}

template <int N, typename Y>
__device__ void add_difference_of_row(Y *__restrict__ y, const Y *after, const Y *before, float weight, int columns) {
    for (int column = N * threadIdx.x; column < columns; column += N * THREADS) {
        float values[N], added[N], removed[N];
        read_columns(values, y + column);
        read_columns(added, after + column);
        read_columns(removed, before + column);
        for (int i = 0; i < N; i++) values[i] += weight * (added[i] - removed[i]);
        write_columns(y + column, values);
    }
}

/// A block a row; only `y` may be a window.
template <typename Y>
__device__ void add_difference(Y *y, const Y *after, const Y *before, float weight, int columns, int stride) {
    y += static_cast<long long>(blockIdx.x) * stride;
    after += static_cast<long long>(blockIdx.x) * columns;
    before += static_cast<long long>(blockIdx.x) * columns;
    if (are_wide(columns, y, after, before)) {
        add_difference_of_row<WIDE>(y, after, before, weight, columns);
    } else {
        add_difference_of_row<1>(y, after, before, weight, columns);
    }
}

template <int N, typename X>
__device__ void add_row(float *__restrict__ y, const X *x, float share, int width) {
    for (int column = N * threadIdx.x; column < width; column += N * THREADS) {
        float values[N], added[N];
        read_columns(values, y + column);
        read_columns(added, x + column);
        for (int i = 0; i < N; i++) values[i] += share * added[i];
        write_columns(y + column, values);
    }
}

/// A block a row of `x`, each of which goes to another row of `y`.
template <typename X>
__device__ void scatter_add(float *y, const X *x, const unsigned *rows, const float *shares, int width) {
    y += static_cast<long long>(rows[blockIdx.x]) * width;
    x += static_cast<long long>(blockIdx.x) * width;
    float share = shares[blockIdx.x];
    if (are_wide(width, y, x)) {
        add_row<WIDE>(y, x, share, width);
    } else {
        add_row<1>(y, x, share, width);
    }
}

} // namespace

#define COPY(NAME, X, Y)                                                                                               \
    KERNEL(NAME, Y *y, const X *x, const unsigned *ids, const float *addend, int inner, int width, int x_outer,        \
           int x_inner, int y_outer, int y_inner) {                                                                    \
        copy(y, x, ids, addend, inner, width, x_outer, x_inner, y_outer, y_inner);                                     \
    }

COPY(copy_f32_f32, float, float)
COPY(copy_f32_bf16, float, bf16)
COPY(copy_f32_f16, float, f16)
COPY(copy_bf16_f32, bf16, float)
COPY(copy_bf16_bf16, bf16, bf16)
COPY(copy_bf16_f16, bf16, f16)
COPY(copy_f16_f32, f16, float)
COPY(copy_f16_bf16, f16, bf16)
COPY(copy_f16_f16, f16, f16)

#define SUM(NAME, Y, A, B)                                                                                             \
    KERNEL(NAME, Y *y, const A *a, const B *b, float scale, long long count) { sum(y, a, b, scale, count); }

SUM(sum_f32_f32, float, float, float)
SUM(sum_bf16_f32, float, bf16, float)
SUM(sum_f16_f32, float, f16, float)
SUM(sum_f32_bf16, float, float, bf16)
SUM(sum_f32_f16, float, float, f16)
SUM(sum_bf16_bf16, bf16, bf16, bf16)
SUM(sum_f16_f16, f16, f16, f16)

KERNEL(affine_f32, float *y, const float *x, float scale, long long count) {
    sum(y, static_cast<const float *>(nullptr), x, scale, count);
}

#define OF_TYPE(SUFFIX, T)                                                                                             \
    KERNEL(look_up_##SUFFIX, float *y, const T *first, const unsigned *first_ids, const T *second,                     \
           const unsigned *second_ids, const T *third, const unsigned *third_ids, int width) {                         \
        y += static_cast<long long>(blockIdx.x) * width;                                                               \
        copy_row(width, y, row_of(first, first_ids, width), row_of(second, second_ids, width),                         \
                 row_of(third, third_ids, width));                                                                     \
    }                                                                                                                  \
    KERNEL(scale_columns_##SUFFIX, T *y, const float *factor, const float *shift, int columns, int stride) {           \
        scale_columns(y, factor, shift, columns, stride);                                                              \
    }                                                                                                                  \
    KERNEL(add_difference_##SUFFIX, T *y, const T *after, const T *before, float weight, int columns, int stride) {    \
        add_difference(y, after, before, weight, columns, stride);                                                     \
    }                                                                                                                  \
    KERNEL(scatter_add_##SUFFIX, float *y, const T *x, const unsigned *rows, const float *shares, int width) {         \
        scatter_add(y, x, rows, shares, width);                                                                        \
    }

OF_TYPE(f32, float)
OF_TYPE(bf16, bf16)
OF_TYPE(f16, f16)
