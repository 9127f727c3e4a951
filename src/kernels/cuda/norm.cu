// LayerNorm and RMSNorm over the last dimension, with the residual added first where there is one, and rows of length 1.
// A warp has a row, or of wide ones a block, and reads it once: its values stay in registers.
#include "split.cuh"

namespace {

/// Columns up to which a warp has a row, and a block one for each of its warps: no thread waits for other warps then.
constexpr int OF_WARP = 1024;

/// How many times N columns a thread keeps at most: of 4096 columns, where they go by fours and a block has the row. More
/// would leave room for too few blocks side by side; what a row has beyond them is read again, and lies in a cache then.
constexpr int KEPT = 8;

/// Pieces whose weights are read together.
constexpr int FEW = 2;

/// The sum of the numbers of so many threads, which share a row, to all of them.
template <int SHARING> __device__ float sum_of_row(float x) {
    x = sum_of_warp(x);
    if constexpr (SHARING == WARP) {
        return x;
    } else {
        SHARED(float, sums, THREADS / WARP);
        // The sums of the time before have been read.
        barrier();
        if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
        barrier();
        float total = 0.0f;
        for (int i = 0; i < THREADS / WARP; i++) total += sums[i];
        return total;
    }
}

/// Which columns of a row a thread has: N side by side, PIECES times, of those that SHARING threads have together. Where
/// the pieces are just the row, its width is known to the compiler, which leaves out comparisons and knows where they are.
template <int AT_ONCE, int THREADS_OF_ROW, int TIMES, bool IS_EXACT = false> struct Share {
    static constexpr int N = AT_ONCE, SHARING = THREADS_OF_ROW, PIECES = TIMES, COLUMNS = N * SHARING;
    /// Whether there is nothing beyond the pieces: see `run`.
    static constexpr bool IS_ALL = N == WIDE && SHARING == WARP;
    typedef float Piece[N];

    /// The first column of a piece.
    static __device__ int column(int piece) { return piece * COLUMNS + threadIdx.x % SHARING * N; }

    static __device__ bool has(int column, int width) { return column < (IS_EXACT ? PIECES * COLUMNS : width); }

    /// Reads pieces, from one on, without waiting for one. What lies past the width is read at the row's beginning, since
    /// a load that may be left out would wait for a choice.
    template <int COUNT, typename X>
    static __device__ void read(Piece (&pieces)[COUNT], X x, int width, int first = 0) {
        for (int i = 0; i < COUNT; i++) {
            int place = column(first + i);
            read_columns(pieces[i], x + (has(place, width) ? place : 0));
        }
    }
};

/// `x + residual - less [width]`, of which this thread has its share. Both are pointers, or Split; the second may be null.
template <typename Own, typename X, typename R> struct Row {
    typedef typename Own::Piece Piece;
    X x;
    R residual;
    int width;
    float less = 0.0f;
    Piece kept[Own::PIECES];

    __device__ Row(X x, R residual, int width) : x(x), residual(residual), width(width) {
        Piece more[Own::PIECES] = {};
        if (residual) Own::read(more, residual, width);
        Own::read(kept, x, width);
        for (int i = 0; i < Own::PIECES; i++) {
            for (int j = 0; j < Own::N; j++) kept[i][j] += more[i][j];
        }
    }

    /// Subtracts from all values, of which nothing was subtracted yet.
    __device__ void subtract(float number) {
        less = number;
        for (Piece &piece : kept) {
            for (float &value : piece) value -= number;
        }
    }

    /// Calls `f` with values, and the column of their first.
    template <typename F> __device__ void each(F f) const {
        for (int i = 0; i < Own::PIECES; i++) {
            if (Own::has(Own::column(i), width)) f(kept[i], Own::column(i));
        }
        each_beyond(f);
    }

    /// The same with those that are not kept.
    template <typename F> __device__ void each_beyond(F f) const {
        for (int column = Own::column(Own::PIECES); !Own::IS_ALL && column < width; column += Own::COLUMNS) {
            Piece values, more = {};
            read_columns(values, x + column);
            if (residual) read_columns(more, residual + column);
            for (int i = 0; i < Own::N; i++) values[i] = values[i] + more[i] - less;
            f(values, column);
        }
    }

    /// The sum of `f` of all values.
    template <typename F> __device__ float sum(F f) const {
        float sum = 0.0f;
        each([&](const Piece &values, int) {
            for (float value : values) sum += f(value);
        });
        return sum_of_row<Own::SHARING>(sum);
    }
};

/// Runs an operation on a row that a warp has in so many pieces.
template <int PIECES, typename Operation> __device__ void run_pieces(const Operation &operation, int width) {
    bool is_exact = width == PIECES * WIDE * WARP;
    is_exact ? operation.template run<Share<WIDE, WARP, PIECES, true>>()
             : operation.template run<Share<WIDE, WARP, PIECES>>();
}

/// Runs an operation on a row, of columns that go by fours or not, with as many pieces as it needs. Whatever rows there
/// are beside it, its sums are added up in the same order.
template <typename Operation> __device__ void run(const Operation &operation, bool is_wide, int width) {
    constexpr int PIECE = WIDE * WARP;
    if (!is_wide) {
        width > OF_WARP ? operation.template run<Share<1, THREADS, 2>>() : operation.template run<Share<1, WARP, 2>>();
    } else if (width > OF_WARP) {
        operation.template run<Share<WIDE, THREADS, KEPT>>();
    } else if (width <= 3 * PIECE) {
        run_pieces<3>(operation, width);
    } else if (width <= 6 * PIECE) {
        run_pieces<6>(operation, width);
    } else {
        run_pieces<OF_WARP / PIECE>(operation, width);
    }
}

/// The row of this thread.
__device__ inline int row_of(int width) {
    // The last first: a product made them last, so they may lie in a cache yet, and the next begins with the first.
    int block = gridDim.x - 1 - blockIdx.x;
    return width > OF_WARP ? block : block * (THREADS / WARP) + threadIdx.x / WARP;
}

/// Numbers, and where the second is not null their copy in another type.
template <typename Y, typename Z> struct WithRounded {
    Y *y;
    Z *rounded;

    template <int N> __device__ void write(int column, const float (&values)[N]) const {
        write_columns(y + column, values);
        if (rounded) write_columns(rounded + column, values);
    }
};

/// To Y, which is WithRounded or Split.
template <typename Y, typename X, typename R> struct Norm {
    Y y;
    X x;
    R residual;
    const float *weight, *bias;
    bool is_layer;
    float eps;
    int width;

    template <typename Own> __device__ void run() const {
        constexpr int N = Own::N, PIECES = Own::PIECES;
        Row<Own, X, R> row(x, residual, width);
        if (is_layer) row.subtract(row.sum([](float v) { return v; }) / width);
        float variance = row.sum([](float v) { return v * v; }) / width;
        float scale = rsqrtf(variance + eps);
        auto write = [&](const float(&values)[N], const float(&factors)[N], const float(&shifts)[N], int column) {
            float results[N];
            for (int i = 0; i < N; i++) results[i] = values[i] * scale * factors[i] + shifts[i];
            y.write(column, results);
        };
        // All weights at once would take registers, and leave room for fewer rows side by side; those of one piece after the
        // other would be waited for each time.
        for (int first = 0; first < PIECES; first += FEW) {
            float factors[FEW][N], shifts[FEW][N] = {};
            Own::read(factors, weight, width, first);
            if (bias) Own::read(shifts, bias, width, first);
            for (int i = 0; i < FEW && first + i < PIECES; i++) {
                int column = Own::column(first + i);
                if (Own::has(column, width)) write(row.kept[first + i], factors[i], shifts[i], column);
            }
        }
        row.each_beyond([&](const float(&values)[N], int column) {
            float factors[N], shifts[N] = {};
            read_columns(factors, weight + column);
            if (bias) read_columns(shifts, bias + column);
            write(values, factors, shifts, column);
        });
    }
};

struct Unit {
    float *y;
    const float *x;
    int width;

    template <typename Own> __device__ void run() const {
        Row<Own, const float *, const float *> row(x, nullptr, width);
        float length = sqrtf(row.sum([](float v) { return v * v; }));
        // Not `fmaxf`, which makes 1e-12 of NaN.
        float scale = 1.0f / (length < 1e-12f ? 1e-12f : length);
        row.each([&](const typename Own::Piece &values, int column) {
            typename Own::Piece results;
            for (int i = 0; i < Own::N; i++) results[i] = values[i] * scale;
            write_columns(y + column, results);
        });
    }
};

} // namespace

// Of X and R to Y, and where `rounded` is not null to Z too.
#define NORM(NAME, Y, Z, X, R)                                                                                         \
    KERNEL(NAME, Y *y, Z *rounded, const X *x, const R *residual, const float *weight, const float *bias,              \
           int is_layer, float eps, int rows, int inner, int width, int x_outer, int x_inner) {                        \
        int number = row_of(width);                                                                                    \
        long long row = number, outer = number / inner, within = number % inner;                                       \
        if (row >= rows) return;                                                                                       \
        x += outer * x_outer + within * x_inner;                                                                       \
        y += row * width;                                                                                              \
        if (rounded) rounded += row * width;                                                                           \
        if (residual) residual += row * width;                                                                         \
        bool is_wide = are_wide(width, y, rounded, x, residual, weight, bias);                                         \
        WithRounded<Y, Z> both{y, rounded};                                                                            \
        Norm<decltype(both), const X *, const R *> norm{both, x, residual, weight, bias, is_layer != 0, eps, width};   \
        run(norm, is_wide, width);                                                                                     \
    }

NORM(norm_f32_f32_bf16, float, bf16, float, float)
NORM(norm_f32_f32_f16, float, f16, float, float)
NORM(norm_bf16_f32_bf16, float, bf16, bf16, float)
NORM(norm_f16_f32_f16, float, f16, f16, float)
NORM(norm_f32_bf16_bf16, float, bf16, float, bf16)
NORM(norm_f32_f16_f16, float, f16, float, f16)
NORM(norm_bf16_bf16_bf16, bf16, bf16, bf16, bf16)
NORM(norm_f16_f16_f16, f16, f16, f16, f16)

// Of dense rows of T and of a residual, in f32 or split like the result. Eight blocks leave each other the registers for rows
// of just 384, 768 or 1024 columns; more blocks would not.
#define NORM_SPLIT(NAME, T)                                                                                            \
    CROWDED_KERNEL(8, NAME, T *y, signed char *y_rest, const T *x, const float *residual, const T *residual_high,      \
                   const signed char *residual_rest, const float *weight, const float *bias, int is_layer, float eps,  \
                   int rows, int width) {                                                                              \
        long long row = row_of(width), first = row * width;                                                            \
        if (row >= rows) return;                                                                                       \
        Split<T> split = Split<T>{y, y_rest} + first;                                                                  \
        bool is_wide = are_wide(width, y, y_rest, x, residual, residual_high, residual_rest, weight, bias);            \
        auto normalize = [=](auto other) {                                                                             \
            typedef Norm<Split<T>, const T *, decltype(other)> Normal;                                                 \
            run(Normal{split, x + first, other, weight, bias, is_layer != 0, eps, width}, is_wide, width);             \
        };                                                                                                             \
        if (residual) return normalize(residual + first);                                                              \
        normalize(SplitSource<T>{residual_high, residual_rest} + first);                                               \
    }

NORM_SPLIT(norm_split_bf16, bf16)
NORM_SPLIT(norm_split_f16, f16)

// f32 of both parts.
#define JOIN(NAME, T)                                                                                                  \
    KERNEL(NAME, float *y, const T *high, const signed char *rest, int rows, int width) {                              \
        long long row = blockIdx.x;                                                                                    \
        SplitSource<T> source = SplitSource<T>{high, rest} + row * width;                                              \
        for (int column = threadIdx.x; column < width; column += THREADS) {                                            \
            float value[1];                                                                                            \
            read_columns(value, source + column);                                                                      \
            y[row * width + column] = value[0];                                                                        \
        }                                                                                                              \
    }

JOIN(join_bf16, bf16)
JOIN(join_f16, f16)

KERNEL(unit_f32, float *y, const float *x, int rows, int width, int x_stride) {
    long long row = row_of(width);
    if (row >= rows) return;
    y += row * width;
    x += row * x_stride;
    run(Unit{y, x, width}, are_wide(width, y, x), width);
}
