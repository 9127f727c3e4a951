// Token vectors to one vector a sequence. A block has 32 columns of a sequence: of aligned ones a thread has four, of
// every 16th token, else one, of every fourth. What is added to what depends on the sequence alone.
#include "split.cuh"

namespace {

/// In the order of the CPU's.
enum Pooling { CLS, MAX, MEAN, MEAN_SQRT_LEN, WEIGHTED_MEAN, LAST_TOKEN };

/// Columns of a block.
constexpr int COLUMNS = 32;
/// Tokens of a thread that are on their way at once.
constexpr int TOKENS = 8;

/// Tokens first .. end count.
struct Tokens {
    unsigned start, first, end;
};

/// The higher, NaN above all.
__device__ inline float higher(float x, float y) { return x > y || x != x ? x : y; }

/// One more token in what a column has gathered.
__device__ inline float joined(float gathered, float x, float weight, bool is_max) {
    return is_max ? higher(x, gathered) : gathered + weight * x;
}

/// What N columns of every so many tokens, from the first on, come to. X is where they are read from.
template <int N, typename X>
__device__ void gather(float (&gathered)[N], X x, Tokens tokens, int step, int mode, int x_stride) {
    for (unsigned token = tokens.first; token < tokens.end; token += TOKENS * step) {
        float values[TOKENS][N];
        for (int i = 0; i < TOKENS; i++) {
            // The last again where there are no more: so no load waits for what is to be done with the others.
            unsigned at = min(token + i * step, tokens.end - 1);
            read_columns(values[i], x + static_cast<long long>(at) * x_stride);
        }
        for (int i = 0; i < TOKENS; i++) {
            unsigned at = token + i * step;
            float weight = mode == WEIGHTED_MEAN ? at - tokens.start + 1 : 1.0f;
            if (at >= tokens.end) break;
            for (int j = 0; j < N; j++) gathered[j] = joined(gathered[j], values[i][j], weight, mode == MAX);
        }
    }
}

/// By what a sum is divided. Tokens that are left out are counted by the weights of the others.
__device__ float divisor(Tokens tokens, int mode) {
    long long before = tokens.first - tokens.start, all = tokens.end - tokens.start;
    float sum = mode == WEIGHTED_MEAN ? (all - before) * (all + before + 1) / 2 : all - before;
    sum = fmaxf(sum, 1e-9f);
    return mode == MEAN_SQRT_LEN ? sqrtf(sum) : sum;
}

/// All but the modes of one token.
template <int N, typename X>
__device__ void pool_columns(float *y, X x, Tokens tokens, int mode, int width, int x_stride) {
    // Threads that share a token, and those that share columns.
    constexpr int ABREAST = COLUMNS / N, SHARES = THREADS / ABREAST;
    SHARED(float, all, SHARES * COLUMNS);
    int share = threadIdx.x / ABREAST, within = threadIdx.x % ABREAST * N, first = blockIdx.y * COLUMNS;
    float none = mode == MAX ? -INFINITY : 0.0f;
    float gathered[N];
    for (int i = 0; i < N; i++) gathered[i] = none;
    if (first + within < width) {
        Tokens own{tokens.start, tokens.first + share, tokens.end};
        gather(gathered, x + first + within, own, SHARES, mode, x_stride);
    }
    write_columns(all + share * COLUMNS + within, gathered);
    barrier();
    int column = first + threadIdx.x;
    if (threadIdx.x >= COLUMNS || column >= width) return;
    float result = none;
    for (int i = 0; i < SHARES; i++) result = joined(result, all[i * COLUMNS + threadIdx.x], 1.0f, mode == MAX);
    y[column] = mode == MAX ? result : result / divisor(tokens, mode);
}

template <typename X>
__device__ void pool(float *y, X x, const unsigned *offsets, const unsigned *left_out, int mode, int width, int x_stride,
                     bool is_wide) {
    unsigned start = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    unsigned first = left_out ? min(start + left_out[blockIdx.x], end) : start;
    int column = blockIdx.y * COLUMNS + threadIdx.x;
    y += static_cast<long long>(blockIdx.x) * width;
    if (mode == CLS || mode == LAST_TOKEN) {
        if (threadIdx.x >= COLUMNS || column >= width) return;
        // Where no token counts, the first is the first of all.
        unsigned token = mode == LAST_TOKEN ? end - 1 : first < end ? first : start;
        float value[1] = {};
        bool is_none = mode == LAST_TOKEN && first == end;
        if (!is_none) read_columns(value, x + (static_cast<long long>(token) * x_stride + column));
        y[column] = value[0];
    } else if (is_wide) {
        pool_columns<WIDE>(y, x, Tokens{start, first, end}, mode, width, x_stride);
    } else {
        pool_columns<1>(y, x, Tokens{start, first, end}, mode, width, x_stride);
    }
}

} // namespace

KERNEL(pool_f32, float *y, const float *x, const unsigned *offsets, const unsigned *left_out, int mode, int width,
       int x_stride) {
    pool(y, x, offsets, left_out, mode, width, x_stride, x_stride % WIDE == 0 && are_wide(width, x));
}

// Of numbers in 24 bits, whose rest lies as they do.
#define POOL_SPLIT(NAME, T)                                                                                            \
    KERNEL(NAME, float *y, const T *x, const signed char *rest, const unsigned *offsets, const unsigned *left_out,     \
           int mode, int width, int x_stride) {                                                                        \
        bool is_wide = x_stride % WIDE == 0 && are_wide(width, x, rest);                                               \
        pool(y, SplitSource<T>{x, rest}, offsets, left_out, mode, width, x_stride, is_wide);                           \
    }

POOL_SPLIT(pool_split_bf16, bf16)
POOL_SPLIT(pool_split_f16, f16)
