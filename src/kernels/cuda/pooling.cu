// Token vectors to one vector a sequence. A block has 128 columns of a sequence, of which each lane takes four and each
// warp every fourth token.
#include "wide.cuh"

namespace {

/// In the order of the CPU's.
enum Pooling { CLS, MAX, MEAN, MEAN_SQRT_LEN, WEIGHTED_MEAN, LAST_TOKEN };

constexpr int WARPS = THREADS / WARP;
/// Columns of a lane: side by side where they can be read at once, else a warp's width apart.
constexpr int OWN = THREADS / WARP;

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

/// What this lane's columns of this warp's tokens come to.
template <int N>
__device__ void gather(float (&gathered)[OWN], const float *x, Tokens tokens, int mode, int column, int width,
                       int x_stride) {
    for (unsigned token = tokens.first + threadIdx.x / WARP; token < tokens.end; token += WARPS) {
        const float *row = x + static_cast<long long>(token) * x_stride;
        float weight = mode == WEIGHTED_MEAN ? token - tokens.start + 1 : 1.0f;
        for (int i = 0; i < OWN; i += N) {
            float values[N];
            if (column + i * WARP >= width) break;
            read_columns(values, row + column + i * WARP);
            for (int j = 0; j < N; j++) gathered[i + j] = joined(gathered[i + j], values[j], weight, mode == MAX);
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

/// Which of the block's columns a lane's number i is.
template <int N> __device__ int place(int lane, int i) { return N == 1 ? lane + i * WARP : lane * OWN + i; }

/// All but the modes of one token.
template <int N>
__device__ void pool_columns(float *y, const float *x, Tokens tokens, int mode, int width, int x_stride) {
    SHARED(float, all, WARPS * THREADS);
    int lane = threadIdx.x % WARP, first = blockIdx.y * THREADS, column = first + threadIdx.x;
    float none = mode == MAX ? -INFINITY : 0.0f;
    float gathered[OWN];
    for (int i = 0; i < OWN; i++) gathered[i] = none;
    gather<N>(gathered, x, tokens, mode, first + N * lane, width, x_stride);
    for (int i = 0; i < OWN; i++) all[threadIdx.x / WARP * THREADS + place<N>(lane, i)] = gathered[i];
    barrier();
    if (column >= width) return;
    float result = none;
    for (int warp = 0; warp < WARPS; warp++) {
        result = joined(result, all[warp * THREADS + threadIdx.x], 1.0f, mode == MAX);
    }
    y[column] = mode == MAX ? result : result / divisor(tokens, mode);
}

} // namespace

KERNEL(pool_f32, float *y, const float *x, const unsigned *offsets, const unsigned *left_out, int mode, int width,
       int x_stride) {
    unsigned start = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    unsigned first = left_out ? min(start + left_out[blockIdx.x], end) : start;
    int column = blockIdx.y * THREADS + threadIdx.x;
    y += static_cast<long long>(blockIdx.x) * width;
    if (mode == CLS || mode == LAST_TOKEN) {
        if (column >= width) return;
        // Where no token counts, the first is the first of all.
        unsigned token = mode == LAST_TOKEN ? end - 1 : first < end ? first : start;
        bool is_none = mode == LAST_TOKEN && first == end;
        y[column] = is_none ? 0.0f : x[static_cast<long long>(token) * x_stride + column];
    } else if (x_stride % WIDE == 0 && are_wide(width, x)) {
        pool_columns<WIDE>(y, x, Tokens{start, first, end}, mode, width, x_stride);
    } else {
        pool_columns<1>(y, x, Tokens{start, first, end}, mode, width, x_stride);
    }
}
