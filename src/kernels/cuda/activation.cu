// Activation functions, elementwise, plain or with one half of a row gating the other.
#include "activation.cuh"
#include "wide.cuh"

#include <type_traits>

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
