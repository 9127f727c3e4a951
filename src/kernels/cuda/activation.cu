// Activation functions, elementwise, plain or with one half of a row gating the other.
#include "wide.cuh"

namespace {

/// Columns of a thread, of which it takes N side by side.
constexpr int OWN = 8;

/// In the order of the CPU's.
enum Activation {
    GELU,
    GELU_TANH,
    RELU,
    SILU,
    TANH,
    SIGMOID,
    LOG_SIGMOID,
    LEAKY_RELU,
    ELU,
    SELU,
    SOFTPLUS,
    MISH,
    CLAMP,
    HARD_SIGMOID,
    HARD_SWISH,
    SOFTSIGN,
    SOFTSHRINK,
    HARDSHRINK,
    TANHSHRINK,
};

/// What multiplies the activation.
enum Gate { ABSENT, OF_FIRST, OF_SECOND };

__device__ inline float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

__device__ inline float gelu_tanh(float x) {
    return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
}

__device__ inline float log_sigmoid(float x) { return (x < 0.0f ? x : 0.0f * x) - log1pf(expf(-fabsf(x))); }

__device__ inline float elu(float x) { return x < 0.0f ? expf(x) - 1.0f : x; }

/// With the constants of Klambauer et al., 2017.
__device__ inline float selu(float x) { return 1.050701f * (x < 0.0f ? 1.6732632f * elu(x) : x); }

__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/// Not of `fminf` and `fmaxf`, which make numbers of NaN.
__device__ inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

template <typename F> __device__ void map(float (&x)[OWN], F f) {
    for (int i = 0; i < OWN; i++) x[i] = f(x[i]);
}

/// One choice for all values of a thread. NaN stays NaN in every one.
__device__ void apply(float (&x)[OWN], int activation, float p, float q) {
    switch (activation) {
    case GELU: return map(x, gelu);
    case GELU_TANH: return map(x, gelu_tanh);
    case RELU: return map(x, [](float x) { return x < 0.0f ? 0.0f : x; });
    case SILU: return map(x, [](float x) { return x / (1.0f + expf(-x)); });
    case TANH: return map(x, [](float x) { return tanhf(x); });
    case SIGMOID: return map(x, [](float x) { return 1.0f / (1.0f + expf(-x)); });
    case LOG_SIGMOID: return map(x, log_sigmoid);
    case LEAKY_RELU: return map(x, [=](float x) { return x < 0.0f ? p * x : x; });
    case ELU: return map(x, elu);
    case SELU: return map(x, selu);
    case SOFTPLUS: return map(x, softplus);
    case MISH: return map(x, [](float x) { return x * tanhf(softplus(x)); });
    case CLAMP: return map(x, [=](float x) { return clamp(x, p, q); });
    case HARD_SIGMOID: return map(x, [](float x) { return clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case HARD_SWISH: return map(x, [](float x) { return x * clamp(x + 3.0f, 0.0f, 6.0f) / 6.0f; });
    case SOFTSIGN: return map(x, [](float x) { return x / (1.0f + fabsf(x)); });
    case SOFTSHRINK: return map(x, [](float x) { return x - clamp(x, -0.5f, 0.5f); });
    case HARDSHRINK: return map(x, [](float x) { return fabsf(x) <= 0.5f ? 0.0f : x; });
    case TANHSHRINK: return map(x, [](float x) { return x - tanhf(x); });
    }
}

/// A thread's columns of a block's 1024, from `x [width]`; what lies beyond the width is left as it is.
template <int N, typename T> __device__ void read_own(float (&values)[OWN], const T *x, int first, int width) {
    for (int i = 0; i < OWN; i += N) {
        int column = first + i * THREADS;
        float few[N];
        if (column >= width) return;
        read_columns(few, x + column);
        for (int j = 0; j < N; j++) values[i + j] = few[j];
    }
}

/// `y [width] = f(x) * gate`, of a block's columns; the gate may be null.
template <int N, typename T>
__device__ void activate_row(T *y, const T *x, const T *gate, int activation, float p, float q, int width) {
    int first = blockIdx.y * OWN * THREADS + N * threadIdx.x;
    float values[OWN] = {}, factors[OWN] = {};
    read_own<N>(values, x, first, width);
    if (gate) read_own<N>(factors, gate, first, width);
    apply(values, activation, p, q);
    for (int i = 0; i < OWN; i += N) {
        int column = first + i * THREADS;
        float few[N];
        if (column >= width) return;
        for (int j = 0; j < N; j++) few[j] = gate ? values[i + j] * factors[i + j] : values[i + j];
        write_columns(y + column, few);
    }
}

template <typename T>
__device__ void activate(T *y, const T *x, int activation, float p, float q, int gate, int width, int x_stride) {
    y += static_cast<long long>(blockIdx.x) * width;
    x += static_cast<long long>(blockIdx.x) * x_stride;
    const T *other = gate == ABSENT ? nullptr : gate == OF_FIRST ? x + width : x;
    if (gate == OF_SECOND) x += width;
    if (are_wide(width, y, x, other)) {
        activate_row<WIDE>(y, x, other, activation, p, q, width);
    } else {
        activate_row<1>(y, x, other, activation, p, q, width);
    }
}

} // namespace

#define ACTIVATE(NAME, T)                                                                                              \
    KERNEL(NAME, T *y, const T *x, int activation, float p, float q, int gate, int width, int x_stride) {              \
        activate(y, x, activation, p, q, gate, width, x_stride);                                                       \
    }

ACTIVATE(activate_f32, float)
ACTIVATE(activate_bf16, bf16)
ACTIVATE(activate_f16, f16)
