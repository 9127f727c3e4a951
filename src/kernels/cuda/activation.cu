// Activation functions, elementwise, plain or with one half of a row gating the other.
#include "wide.cuh"

#include <type_traits>

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

/// Of which half of a row's columns an activation is, that the other half multiplies.
enum Gate { ABSENT, OF_FIRST, OF_SECOND };

/// `max(x, 0) - |x| Phi(-|x|)`, which is x Phi(x) without the difference of two that are almost 1. The logarithm of Phi,
/// to base 2, is a polynomial: the minimax fit on [-6.5, 0], by Remez' algorithm, of the error of the result. The fit's is
/// 8e-8 at most, and where the result is less than 1e-4 there, 8e-4 of it. From -14 on it is 0.
__device__ inline float gelu(float x) {
    float size = fminf(fabsf(x), 14.0f);
    float power = -9.43718703e-7f;
    power = power * size + 4.68025428e-5f;
    power = power * size - 8.3999621e-4f;
    power = power * size + 8.25319067e-3f;
    power = power * size - 5.36259301e-2f;
    power = power * size - 4.58638757e-1f;
    power = power * size - 1.15123796f;
    power = power * size - 9.99989927e-1f;
    // Not `fmaxf`, which makes 0 of NaN.
    return (x < 0.0f ? 0.0f : x) - size * power_of_two(power);
}

/// 1 / (1 + e^-x).
__device__ inline float sigmoid(float x) { return reciprocal(1.0f + power_of_two(-1.44269504f * x)); }

/// `x (1 + tanh(y)) / 2` is x sigmoid(2y), which does not cancel.
__device__ inline float gelu_tanh(float x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

__device__ inline float log_sigmoid(float x) { return (x < 0.0f ? x : 0.0f * x) - log1pf(expf(-fabsf(x))); }

__device__ inline float elu(float x) { return x < 0.0f ? expf(x) - 1.0f : x; }

/// With the constants of Klambauer et al., 2017.
__device__ inline float selu(float x) { return 1.050701f * (x < 0.0f ? 1.6732632f * elu(x) : x); }

__device__ inline float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

/// Not of `fminf` and `fmaxf`, which make numbers of NaN.
__device__ inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

template <int COUNT, typename F> __device__ void map(float (&x)[COUNT], F f) {
    UNROLL for (int i = 0; i < COUNT; i++) x[i] = f(x[i]);
}

/// One choice for all values of a thread. NaN stays NaN in every one.
template <int COUNT> __device__ void apply(float (&x)[COUNT], int activation, float p, float q) {
    switch (activation) {
    case GELU: return map(x, gelu);
    case GELU_TANH: return map(x, gelu_tanh);
    case RELU: return map(x, [](float x) { return x < 0.0f ? 0.0f : x; });
    case SILU: return map(x, [](float x) { return x * sigmoid(x); });
    case TANH: return map(x, [](float x) { return tanhf(x); });
    case SIGMOID: return map(x, sigmoid);
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

namespace {

/// Numbers of a thread that are on their way at once.
constexpr int OWN = 16;

/// Numbers of 16 bytes, which a thread reads and writes at once where they are aligned for it.
template <typename T> constexpr int SIDE_BY_SIDE = 16 / sizeof(T);

/// A block has so many columns, of so many rows that a thread of aligned ones has OWN numbers.
template <typename T> constexpr int COLUMNS = THREADS * SIDE_BY_SIDE<T>;
template <typename T> constexpr int ROWS = OWN / SIDE_BY_SIDE<T>;

/// What an activation's numbers are made of.
template <typename T> struct Rows {
    T *y;
    const T *x;
    /// May be null.
    const T *gate;
    int count, width, x_stride;
};

/// Numbers of a thread as they lie in memory, N side by side.
template <int N, typename T> using Raw = std::conditional_t<N == 1, T, uint4>;

/// N columns of every row. They are read without a choice, and not yet changed, so that no load waits for one before it:
/// what lies past the last row is the last once more.
template <int N, typename T> __device__ void read_rows(Raw<N, T> (&raw)[ROWS<T>], const T *x, const Rows<T> &rows) {
    for (int row = 0; row < ROWS<T>; row++) {
        const T *place = x + static_cast<long long>(min(row, rows.count - 1)) * rows.x_stride;
        raw[row] = *reinterpret_cast<const Raw<N, T> *>(place);
    }
}

template <int N, typename T> __device__ void unpack(float (&values)[ROWS<T> * N], const Raw<N, T> (&raw)[ROWS<T>]) {
    Few<N, T> few[ROWS<T>];
    memcpy(few, raw, sizeof few);
    for (int i = 0; i < ROWS<T> * N; i++) values[i] = to_float(few[i / N].numbers[i % N]);
}

/// `y [count, width] = f(x) * gate`, of a block's columns, N at once.
template <int N, typename T>
__device__ void activate_rows(const Rows<T> &rows, int activation, float p, float q) {
    int first = blockIdx.y * COLUMNS<T>, end = min(first + COLUMNS<T>, rows.width);
    for (int column = first + N * threadIdx.x; column < end; column += N * THREADS) {
        Raw<N, T> raw[ROWS<T>], raw_gate[ROWS<T>] = {};
        float values[ROWS<T> * N], factors[ROWS<T> * N];
        if (rows.gate) read_rows<N>(raw_gate, rows.gate + column, rows);
        read_rows<N>(raw, rows.x + column, rows);
        unpack<N, T>(values, raw);
        apply(values, activation, p, q);
        unpack<N, T>(factors, raw_gate);
        for (int row = 0; row < ROWS<T> && row < rows.count; row++) {
            float few[N];
            for (int i = 0; i < N; i++) few[i] = values[row * N + i] * (rows.gate ? factors[row * N + i] : 1.0f);
            write_columns(rows.y + static_cast<long long>(row) * rows.width + column, few);
        }
    }
}

template <typename T>
__device__ void activate(T *y, const T *x, int activation, float p, float q, int gate, int count, int width,
                         int x_stride) {
    // The last rows first: a product made them last, so they may lie in a cache yet, and the next begins with the first.
    int row = (gridDim.x - 1 - blockIdx.x) * ROWS<T>;
    y += static_cast<long long>(row) * width;
    x += static_cast<long long>(row) * x_stride;
    const T *other = gate == ABSENT ? nullptr : gate == OF_FIRST ? x + width : x;
    if (gate == OF_SECOND) x += width;
    Rows<T> rows{y, x, other, count - row, width, x_stride};
    if (x_stride % SIDE_BY_SIDE<T> == 0 && are_wide<SIDE_BY_SIDE<T>>(width, y, x, other)) {
        activate_rows<SIDE_BY_SIDE<T>>(rows, activation, p, q);
    } else {
        activate_rows<1>(rows, activation, p, q);
    }
}

} // namespace

#define ACTIVATE(NAME, T)                                                                                              \
    KERNEL(NAME, T *y, const T *x, int activation, float p, float q, int gate, int count, int width, int x_stride) {   \
        activate(y, x, activation, p, q, gate, count, width, x_stride);                                                \
    }

ACTIVATE(activate_f32, float)
ACTIVATE(activate_bf16, bf16)
ACTIVATE(activate_f16, f16)
