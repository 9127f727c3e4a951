// DeBERTa's disentangled attention (arXiv:2006.03654, section 3.1) within each sequence of packed rows, without tensor
// cores. A warp has a query at a time: its lanes take a key each for the scores, and columns each for the result.
#include "attention.cuh"
#include "wide.cuh"

namespace {

constexpr int WARPS = THREADS / WARP;
/// Columns of the result that a lane gathers at once; where there are more, scores are formed again for the next.
constexpr int OWN = 8;

/// One head: rows of tokens, and of relative positions, which may be null.
template <typename T> struct RelativeHead {
    const T *q, *k, *v, *keys, *queries;
    /// By query - key, which may be negative.
    const unsigned *places;
    int q_stride, k_stride, v_stride, table_stride;
    int width;
    float scale;

    __device__ const T *of_place(const T *table, unsigned place) const {
        return table ? table + static_cast<long long>(place) * table_stride : nullptr;
    }

    /// q_query k_key + q_query keys_place + k_key queries_place, scaled.
    __device__ float score(int query, int key) const {
        const T *q_row = q + static_cast<long long>(query) * q_stride;
        const T *k_row = k + static_cast<long long>(key) * k_stride;
        unsigned place = places[query - key];
        const T *key_row = of_place(keys, place), *query_row = of_place(queries, place);
        bool is_wide = are_wide(width, q_row, k_row, key_row, query_row);
        return scale * (is_wide ? product<WIDE>(q_row, k_row, key_row, query_row)
                                : product<1>(q_row, k_row, key_row, query_row));
    }

    template <int N>
    __device__ float product(const T *q_row, const T *k_row, const T *key_row, const T *query_row) const {
        float sum = 0.0f;
        for (int column = 0; column < width; column += N) {
            float of_query[N], of_key[N], by_query[N] = {}, by_key[N] = {};
            read_columns(of_query, q_row + column);
            read_columns(of_key, k_row + column);
            if (key_row) read_columns(by_query, key_row + column);
            if (query_row) read_columns(by_key, query_row + column);
            for (int i = 0; i < N; i++) {
                sum += of_query[i] * of_key[i];
                if (key_row) sum += of_query[i] * by_query[i];
                if (query_row) sum += of_key[i] * by_key[i];
            }
        }
        return sum;
    }
};

/// Columns of a query's result, first and every 32nd from there.
struct Gathered {
    float highest = -INFINITY;
    /// Of this lane's keys.
    float total = 0.0f;
    float sums[OWN] = {};

    /// Takes the score of each lane in; returns its weight.
    __device__ float weigh(float score) {
        float top = fmaxf(highest, max_of_warp(score));
        // Where all scores so far are -inf, their weights are 0 and not NaN.
        float base = top == -INFINITY ? 0.0f : top;
        float shrink = expf(highest - base), weight = expf(score - base);
        highest = top;
        total = total * shrink + weight;
        for (int i = 0; i < OWN; i++) sums[i] *= shrink;
        return weight;
    }

    /// Adds rows of values from `v` on, each by its weight.
    template <typename T>
    __device__ void add(const float *weights, const T *v, int count, int stride, int column, int width) {
        for (int key = 0; key < count; key++) {
            const T *row = v + static_cast<long long>(key) * stride;
            float weight = weights[key];
            for (int i = 0; i < OWN; i++) {
                if (column + i * WARP < width) sums[i] += weight * to_float(row[column + i * WARP]);
            }
        }
    }
};

/// Columns from `first` on of a query's result, in `y [width]`.
template <typename T>
__device__ void attend(T *y, const RelativeHead<T> &head, int query, int start, int end, int first, float *weights) {
    Gathered gathered;
    int lane = threadIdx.x % WARP, column = first + lane;
    for (int key = start; key < end; key += WARP) {
        float score = key + lane < end ? head.score(query, key + lane) : -INFINITY;
        float weight = gathered.weigh(score);
        // The weights before have been read.
        warp_barrier();
        weights[lane] = weight;
        warp_barrier();
        const T *v = head.v + static_cast<long long>(key) * head.v_stride;
        gathered.add(weights, v, min(WARP, end - key), head.v_stride, column, head.width);
    }
    float total = sum_of_warp(gathered.total);
    for (int i = 0; i < OWN; i++) {
        if (column + i * WARP < head.width) y[column + i * WARP] = from_float<T>(gathered.sums[i] / total);
    }
}

/// A block some queries of one head.
template <typename T> __device__ void disentangled(T *y, const Queries &tile, const RelativeHead<T> &head, int y_stride) {
    SHARED(float, weights, THREADS);
    int warp = threadIdx.x / WARP, past = min(tile.first + QUERIES, tile.end);
    for (int query = tile.first + warp; query < past; query += WARPS) {
        T *row = y + static_cast<long long>(query) * y_stride;
        for (int first = 0; first < head.width; first += OWN * WARP) {
            attend(row, head, query, tile.start, tile.end, first, weights + warp * WARP);
        }
    }
}

} // namespace

#define DISENTANGLED(NAME, T)                                                                                          \
    KERNEL(NAME, T *y, const T *q, const T *k, const T *v, const Queries *tiles, const T *keys, const T *queries,      \
           const unsigned *places, int heads, int width, int q_outer, int q_inner, int k_outer, int k_inner,           \
           int v_outer, int v_inner, float scale, int span_middle) {                                                   \
        long long number = blockIdx.y;                                                                                 \
        RelativeHead<T> head = {q + number * q_inner, k + number * k_inner, v + number * v_inner,                              \
                        keys ? keys + number * width : nullptr, queries ? queries + number * width : nullptr,          \
                        places + span_middle, q_outer, k_outer, v_outer, heads * width, width, scale};                 \
        disentangled(y + number * width, tiles[blockIdx.x], head, heads * width);                                      \
    }

DISENTANGLED(disentangled_f32, float)
DISENTANGLED(disentangled_bf16, bf16)
DISENTANGLED(disentangled_f16, f16)
