// LayerNorm and RMSNorm over the last dimension, with the residual added first where there is one, and rows of length 1.
// A block has a row, which is read once: its values stay in registers.
#include "wide.cuh"

namespace {

/// How many times N columns a thread keeps: of 4096 columns, where they go by fours. More would leave room for too few
/// blocks side by side; what a row has beyond them is read again, and lies in a cache then.
constexpr int KEPT = 8;

/// The sum of all threads' numbers, to all of them.
__device__ float sum_of_block(float x) {
    SHARED(float, sums, THREADS / WARP);
    x = sum_of_warp(x);
    // The sums of the time before have been read.
    barrier();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    barrier();
    float total = 0.0f;
    for (int i = 0; i < THREADS / WARP; i++) total += sums[i];
    return total;
}

/// `x + residual [width]`, of which this thread has every 128th N columns.
template <int N, typename X, typename R> struct Row {
    const X *x;
    /// May be null.
    const R *residual;
    int width;
    float kept[KEPT][N];

    __device__ Row(const X *x, const R *residual, int width) : x(x), residual(residual), width(width) {
        for (int i = 0; i < KEPT; i++) {
            int column = (i * THREADS + threadIdx.x) * N;
            if (column < width) read(kept[i], column);
        }
    }

    __device__ void read(float (&values)[N], int column) const {
        read_columns(values, x + column);
        if (!residual) return;
        float more[N];
        read_columns(more, residual + column);
        for (int i = 0; i < N; i++) values[i] += more[i];
    }

    /// Calls `f` with values and the column of their first.
    template <typename F> __device__ void each(F f) const {
        for (int i = 0; i < KEPT; i++) {
            int column = (i * THREADS + threadIdx.x) * N;
            if (column < width) f(kept[i], column);
        }
        for (int column = (KEPT * THREADS + threadIdx.x) * N; column < width; column += THREADS * N) {
            float values[N];
            read(values, column);
            f(values, column);
        }
    }

    /// The sum of `f` of all values.
    template <typename F> __device__ float sum(F f) const {
        float sum = 0.0f;
        each([&](const float(&values)[N], int) {
            for (int i = 0; i < N; i++) sum += f(values[i]);
        });
        return sum_of_block(sum);
    }
};

template <int N, typename Y, typename Z, typename X, typename R>
__device__ void norm_row(Y *y, Z *rounded, const X *x, const R *residual, const float *weight, const float *bias,
                         bool is_layer, float eps, int width) {
    Row<N, X, R> row(x, residual, width);
    float mean = is_layer ? row.sum([](float v) { return v; }) / width : 0.0f;
    float variance = row.sum([=](float v) { return (v - mean) * (v - mean); }) / width;
    float scale = rsqrtf(variance + eps);
    row.each([=](const float(&values)[N], int column) {
        float weights[N], biases[N] = {}, results[N];
        read_columns(weights, weight + column);
        if (bias) read_columns(biases, bias + column);
        for (int i = 0; i < N; i++) results[i] = (values[i] - mean) * scale * weights[i] + biases[i];
        write_columns(y + column, results);
        if (rounded) write_columns(rounded + column, results);
    });
}

template <typename Y, typename Z, typename X, typename R>
__device__ void norm(Y *y, Z *rounded, const X *x, const R *residual, const float *weight, const float *bias,
                     bool is_layer, float eps, int inner, int width, int x_outer, int x_inner) {
    x += static_cast<long long>(blockIdx.x / inner) * x_outer + static_cast<long long>(blockIdx.x % inner) * x_inner;
    y += static_cast<long long>(blockIdx.x) * width;
    if (rounded) rounded += static_cast<long long>(blockIdx.x) * width;
    if (residual) residual += static_cast<long long>(blockIdx.x) * width;
    if (are_wide(width, y, rounded, x, residual, weight, bias)) {
        norm_row<WIDE>(y, rounded, x, residual, weight, bias, is_layer, eps, width);
    } else {
        norm_row<1>(y, rounded, x, residual, weight, bias, is_layer, eps, width);
    }
}

template <int N> __device__ void unit_row(float *y, const float *x, int width) {
    Row<N, float, float> row(x, nullptr, width);
    float length = sqrtf(row.sum([](float v) { return v * v; }));
    // Not `fmaxf`, which makes 1e-12 of NaN.
    length = length < 1e-12f ? 1e-12f : length;
    row.each([=](const float(&values)[N], int column) {
        float results[N];
        for (int i = 0; i < N; i++) results[i] = values[i] / length;
        write_columns(y + column, results);
    });
}

} // namespace

// Of X and R to Y, and where `rounded` is not null to Z too.
#define NORM(NAME, Y, Z, X, R)                                                                                         \
    KERNEL(NAME, Y *y, Z *rounded, const X *x, const R *residual, const float *weight, const float *bias,              \
           int is_layer, float eps, int inner, int width, int x_outer, int x_inner) {                                  \
        norm(y, rounded, x, residual, weight, bias, is_layer, eps, inner, width, x_outer, x_inner);                    \
    }

NORM(norm_f32_f32_bf16, float, bf16, float, float)
NORM(norm_f32_f32_f16, float, f16, float, float)
NORM(norm_bf16_f32_bf16, float, bf16, bf16, float)
NORM(norm_f16_f32_f16, float, f16, f16, float)
NORM(norm_f32_bf16_bf16, float, bf16, float, bf16)
NORM(norm_f32_f16_f16, float, f16, float, f16)
NORM(norm_bf16_bf16_bf16, bf16, bf16, bf16, bf16)
NORM(norm_f16_f16_f16, f16, f16, f16, f16)

KERNEL(unit_f32, float *y, const float *x, int width, int x_stride) {
    y += static_cast<long long>(blockIdx.x) * width;
    x += static_cast<long long>(blockIdx.x) * x_stride;
    if (are_wide(width, y, x)) {
        unit_row<WIDE>(y, x, width);
    } else {
        unit_row<1>(y, x, width);
    }
}
