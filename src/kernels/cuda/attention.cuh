// Softmax attention within each sequence of packed rows, in one pass over the keys (arXiv:2205.14135): each query keeps
// its highest score so far and the sum of its powers, and what it has gathered shrinks when a higher score comes. What
// the kernels on tensor cores and the plain ones share.
#pragma once

#include "tensor_cores.cuh"

/// A block's queries, from the first on, of the sequence of rows start .. end, and its number.
struct Queries {
    int first, start, end, sequence;
};

/// Of a block, or half of them.
constexpr int QUERIES = 64;
constexpr float LOG2_E = 1.44269504f;

/// The rows of one head.
template <typename T> struct Head {
    const T *x;
    int stride;

    /// Whether all rows begin at 16 bytes.
    __device__ bool is_wide() const {
        return reinterpret_cast<unsigned long long>(x) % 16 == 0 && stride * sizeof(T) % 16 == 0;
    }

    __device__ const T *row(int i, int end) const {
        return i < end ? x + static_cast<long long>(i) * stride : nullptr;
    }
};

/// What the queries of a sequence see.
struct Sight {
    int start, end, window;
    bool is_causal;

    __device__ int first(int query) const {
        return window >= 0 && query - start > window ? query - window : start;
    }

    __device__ int past(int query) const {
        if (is_causal) return query + 1;
        return window >= 0 && end - query > window ? query + window + 1 : end;
    }
};

/// A query's biases from a key on, which may be null.
struct Biases {
    const float *biases;

    __device__ void operator()(float &score, int place) const {
        if (biases) score += biases[place] * LOG2_E;
    }
};

/// What a block works on: some queries of one head.
template <typename T> struct Task {
    Head<T> q, k, v;
    Sight sight;
    /// Queries.
    int first, past;
    int sequence;
    /// Their head, and that of keys and values.
    int head, shared;
    int width;
    /// Whether every row begins at 16 bytes, and its width fills them.
    bool is_wide;
    /// To scores of which powers of two are taken.
    float scale;
    /// By key - query; may be null.
    const float *bias;
    /// The rows of the result, of this head.
    T *y;
    int y_stride;

    /// A query beyond the last is treated as the last.
    __device__ int query(int row) const { return min(first + row, past - 1); }

    /// A product as a score; what the query does not see is lowest.
    __device__ float score(float product, int query, int key) const {
        if (key < sight.first(query) || key >= sight.past(query)) return -INFINITY;
        float score = product * scale;
        return bias ? score + bias[key - query] * LOG2_E : score;
    }

    __device__ Biases biases(int query, int key) const { return {bias ? bias + (key - query) : nullptr}; }

    /// Whether all queries see all these keys, and nothing is added.
    __device__ bool is_plain(int key, int keys) const {
        return !bias && key >= sight.first(past - 1) && key + keys <= sight.past(first);
    }
};

/// What a query has seen.
struct Row {
    float highest = -INFINITY;
    /// Sum of 2^(score - highest).
    float total = 0.0f;

    /// Takes the highest of more scores in; returns what to subtract from scores, and by what all before shrinks.
    __device__ float rise(float top, float &shrink) {
        top = fmaxf(top, highest);
        float base = top == -INFINITY ? 0.0f : top;
        shrink = power_of_two(highest - base);
        highest = top;
        total *= shrink;
        return base;
    }
};

/// Some queries of a tile, of one of so many heads, which see their whole sequence without biases. `y` are all heads'
/// results.
template <typename T>
__device__ inline Task<T> task_of(const Queries &tile, int queries, Head<T> q, Head<T> k, Head<T> v, T *y, int head,
                                  int heads, int width, float scale) {
    Task<T> task;
    task.q = q, task.k = k, task.v = v;
    task.sight = {tile.start, tile.end, -1, false};
    task.first = tile.first;
    task.past = min(tile.first + queries, tile.end);
    task.sequence = tile.sequence;
    task.head = task.shared = head;
    task.width = width;
    task.is_wide = q.is_wide() && k.is_wide() && v.is_wide() && width * sizeof(T) % 16 == 0;
    task.scale = scale * LOG2_E;
    task.bias = nullptr;
    task.y = y + static_cast<long long>(head) * width;
    task.y_stride = heads * width;
    return task;
}

/// What a launch is told.
template <typename T> struct Call {
    T *y;
    const T *q, *k, *v;
    const Queries *tiles;
    const float *bias;
    /// Heads that have the same keys.
    int group;
    int width, q_outer, q_inner, k_outer, k_inner, v_outer, v_inner;
    float scale;
    int causal, window, span;

    /// Some queries of a tile, of one of so many heads.
    __device__ Task<T> task(const Queries &tile, int queries, long long head, int heads) const {
        long long shared = head / group;
        Head<T> own = {q + head * q_inner, q_outer};
        Head<T> keys = {k + shared * k_inner, k_outer}, values = {v + shared * v_inner, v_outer};
        Task<T> task = task_of(tile, queries, own, keys, values, y, head, heads, width, scale);
        task.shared = static_cast<int>(shared);
        task.sight.window = window;
        task.sight.is_causal = causal != 0;
        task.bias = bias ? bias + head * (2 * span - 1) + span - 1 : nullptr;
        return task;
    }
};

#define CALL_PARAMETERS(T)                                                                                             \
    T *y, const T *q, const T *k, const T *v, const Queries *tiles, const float *bias, int group, int width,           \
        int q_outer, int q_inner, int k_outer, int k_inner, int v_outer, int v_inner, float scale, int causal,         \
        int window, int span

#define CALL(T)                                                                                                        \
    Call<T> {                                                                                                          \
        y, q, k, v, tiles, bias, group, width, q_outer, q_inner, k_outer, k_inner, v_outer, v_inner, scale, causal,    \
            window, span                                                                                               \
    }

/// The task of a block that has some queries of a tile.
#define TASK(T, COUNT) CALL(T).task(tiles[gridDim.x - 1 - blockIdx.x], COUNT, blockIdx.y, gridDim.y)

#define ATTENTION(NAME, T, COUNT, ATTEND)                                                                              \
    KERNEL(NAME, CALL_PARAMETERS(T)) { ATTEND(TASK(T, COUNT)); }
