// Softmax attention within each sequence of packed rows, in one pass over the keys (arXiv:2205.14135): each query keeps
// its highest score so far and the sum of its powers, and what it has gathered shrinks when a higher score comes.
#include "tensor_cores.cuh"

/// Queries first .. first + 64, or to the end, of the sequence of rows start .. end.
struct Queries {
    int first, start, end, unused;
};

constexpr int QUERIES = 64;
constexpr float LOG2_E = 1.44269504f;

/// The rows of one head.
template <typename T> struct Head {
    const T *x;
    int stride;

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

/// What a block works on: some queries of one head.
template <typename T> struct Task {
    Head<T> q, k, v;
    Sight sight;
    /// Queries.
    int first, past;
    int width;
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

/// One query's scores, two of each four of its lane, become weights; `y` shrinks with them.
template <int N, int M>
__device__ inline void soften(float (&scores)[N][4], float (&y)[M][4], Row &row, int half) {
    float top = -INFINITY, shrink;
    UNROLL for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    // The four lanes of a group hold the same rows.
    top = fmaxf(top, exchanged(top, 1));
    top = fmaxf(top, exchanged(top, 2));
    float base = row.rise(top, shrink);
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
            scores[n][i] = power_of_two(scores[n][i] - base);
            row.total += scores[n][i];
        }
    }
    UNROLL for (int m = 0; m < M; m++) {
        y[m][2 * half] *= shrink;
        y[m][2 * half + 1] *= shrink;
    }
}

/// Plain scores of 16 queries, in registers, with keys that lie row by row.
template <typename T, int D, int KEYS>
__device__ inline void multiply_keys(float (&scores)[KEYS / 8][4], const unsigned (&q)[D / 16][4], const T *keys) {
    // Copies and scores let lanes go their own ways.
    warp_barrier();
    int lane = threadIdx.x % WARP;
    const T *own = keys + (lane / 16 * 8 + lane % 8) * PADDED<T, D> + lane / 8 % 2 * 8;
    UNROLL for (int n = 0; n < KEYS / 16; n++) {
        UNROLL for (int i = 0; i < 4; i++) scores[2 * n][i] = scores[2 * n + 1][i] = 0.0f;
        UNROLL for (int d = 0; d < D / 16; d++) {
            unsigned k[4];
            load_matrices(k, own + n * 16 * PADDED<T, D> + d * 16);
            multiply_add<T>(scores[2 * n], q[d], k[0], k[1]);
            multiply_add<T>(scores[2 * n + 1], q[d], k[2], k[3]);
        }
    }
}

/// y += the values by weights.
template <typename T, int D, int KEYS>
__device__ inline void multiply_values(float (&y)[D / 8][4], const float (&weights)[KEYS / 8][4], const T *values) {
    warp_barrier();
    int lane = threadIdx.x % WARP;
    const T *own = values + lane % 16 * PADDED<T, D> + lane / 16 * 8;
    UNROLL for (int n = 0; n < KEYS / 16; n++) {
        // A product's lanes hold what the next one wants as its left side.
        unsigned left[4];
        UNROLL for (int i = 0; i < 4; i++) {
            const float *pair = &weights[2 * n + i / 2][i % 2 * 2];
            left[i] = packed<T>(pair[0], pair[1]);
        }
        UNROLL for (int d = 0; d < D / 16; d++) {
            unsigned v[4];
            load_transposed(v, own + n * 16 * PADDED<T, D> + d * 16);
            multiply_add<T>(y[2 * d], left, v[0], v[1]);
            multiply_add<T>(y[2 * d + 1], left, v[2], v[3]);
        }
    }
}

/// Products become scores.
template <typename T, int KEYS>
__device__ inline void score_all(float (&scores)[KEYS / 8][4], const Task<T> &task, const int (&queries)[2], int key) {
    int own = key + threadIdx.x % 4 * 2;
    if (task.is_plain(key, KEYS)) {
        UNROLL for (int n = 0; n < KEYS / 8; n++) {
            UNROLL for (int i = 0; i < 4; i++) scores[n][i] *= task.scale;
        }
        return;
    }
    UNROLL for (int n = 0; n < KEYS / 8; n++) {
        UNROLL for (int i = 0; i < 4; i++) {
            scores[n][i] = task.score(scores[n][i], queries[i / 2], own + n * 8 + i % 2);
        }
    }
}

template <typename T, int D>
__device__ inline void write_rows(const Task<T> &task, const float (&y)[D / 8][4], const Row (&rows)[2], int first) {
    UNROLL for (int half = 0; half < 2; half++) {
        float total = rows[half].total;
        total += exchanged(total, 1);
        total += exchanged(total, 2);
        float share = 1.0f / total;
        int row = task.first + first + half * 8;
        if (row >= task.past) continue;
        T *target = task.y + static_cast<long long>(row) * task.y_stride;
        UNROLL for (int n = 0; n < D / 8; n++) {
            int column = n * 8 + threadIdx.x % 4 * 2;
            float one = y[n][2 * half] * share, other = y[n][2 * half + 1] * share;
            if (column + 1 < task.width && task.width % 2 == 0) {
                write_pair(target + column, one, other);
            } else {
                if (column < task.width) target[column] = from_float<T>(one);
                if (column + 1 < task.width) target[column + 1] = from_float<T>(other);
            }
        }
    }
}

/// The queries of a warp, as left sides of products.
template <typename T, int D>
__device__ inline void load_queries(unsigned (&q)[D / 16][4], T *memory, const Task<T> &task) {
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    load_rows<QUERIES, D>(memory, [&](int row) { return task.q.row(task.first + row, task.past); }, 0, task.width);
    wait_for_copies();
    barrier();
    const T *own = memory + (warp * 16 + lane % 16) * PADDED<T, D> + lane / 16 * 8;
    UNROLL for (int d = 0; d < D / 16; d++) load_matrices(q[d], own + d * 16);
    barrier();
}

/// A warp has 16 queries. Keys arrive while values are multiplied, and values while keys are.
template <typename T, int D> __device__ inline void attend(const Task<T> &task) {
    constexpr int KEYS = D <= 128 ? 64 : 32, SIZE = KEYS * PADDED<T, D>;
    SHARED(T, memory, 2 * SIZE);
    static_assert(2 * KEYS >= QUERIES, "queries pass through the memory of keys and values");
    T *keys = memory, *values = memory + SIZE;
    unsigned q[D / 16][4];
    load_queries<T, D>(q, memory, task);
    int first = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
    int queries[2] = {task.query(first), task.query(first + 8)};
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1);
    Row rows[2];
    float y[D / 8][4] = {};
    auto load = [&](T *target, const Head<T> &head, int key) {
        load_rows<KEYS, D>(target, [&](int row) { return head.row(key + row, end); }, 0, task.width);
    };
    load(keys, task.k, start);
    for (int key = start; key < end; key += KEYS) {
        float scores[KEYS / 8][4];
        wait_for_copies();
        barrier();
        load(values, task.v, key);
        multiply_keys<T, D, KEYS>(scores, q, keys);
        wait_for_copies();
        barrier();
        if (key + KEYS < end) load(keys, task.k, key + KEYS);
        score_all<T, KEYS>(scores, task, queries, key);
        warp_barrier();
        soften(scores, y, rows[0], 0);
        soften(scores, y, rows[1], 1);
        multiply_values<T, D, KEYS>(y, scores, values);
    }
    write_rows<T, D>(task, y, rows, first);
}

constexpr int PLAIN_KEYS = 32;
/// Columns that are in a block's memory at once.
constexpr int PART = 32;
constexpr int PART_STRIDE = PADDED<float, PART>, WEIGHTS_STRIDE = PADDED<float, QUERIES>;

/// Products of the four queries from `row` on with every eighth key from `key` on.
__device__ inline void multiply_part(float (&y)[4][4], const float *q, const float *k, int row, int key) {
    for (int c = 0; c < PART; c += 4) {
        float4 a[4], b[4];
        UNROLL for (int i = 0; i < 4; i++) {
            a[i] = *reinterpret_cast<const float4 *>(q + (row + i) * PART_STRIDE + c);
            b[i] = *reinterpret_cast<const float4 *>(k + (key + 8 * i) * PART_STRIDE + c);
        }
        UNROLL for (int i = 0; i < 4; i++) {
            UNROLL for (int j = 0; j < 4; j++) {
                y[i][j] += a[i].x * b[j].x + a[i].y * b[j].y + a[i].z * b[j].z + a[i].w * b[j].w;
            }
        }
    }
}

/// y += values, from a column on four of them, by the weights of four queries, which lie key by key.
__device__ inline void weigh_part(float (&y)[4][4], const float *weights, const float *v, int row, int column) {
    UNROLL for (int key = 0; key < PLAIN_KEYS; key++) {
        float4 w = *reinterpret_cast<const float4 *>(weights + key * WEIGHTS_STRIDE + row);
        float4 x = *reinterpret_cast<const float4 *>(v + key * PART_STRIDE + column);
        float by_row[4] = {w.x, w.y, w.z, w.w}, by_column[4] = {x.x, x.y, x.z, x.w};
        UNROLL for (int i = 0; i < 4; i++) {
            UNROLL for (int j = 0; j < 4; j++) y[i][j] += by_row[i] * by_column[j];
        }
    }
}

/// Products become weights in `weights`; what the queries have gathered shrinks with them.
template <int N>
__device__ inline void soften_plain(const float (&products)[4][4], float (&y)[N][4][4], Row (&rows)[4], float *weights,
                                    const Task<float> &task, int first_key, int row, int lane) {
    UNROLL for (int i = 0; i < 4; i++) {
        float scores[4], top = -INFINITY, shrink;
        UNROLL for (int j = 0; j < 4; j++) {
            scores[j] = task.score(products[i][j], task.query(row + i), first_key + lane + 8 * j);
            top = fmaxf(top, scores[j]);
        }
        for (int bits = 4; bits > 0; bits /= 2) top = fmaxf(top, exchanged(top, bits));
        float base = rows[i].rise(top, shrink);
        UNROLL for (int j = 0; j < 4; j++) {
            float weight = power_of_two(scores[j] - base);
            rows[i].total += weight;
            weights[(lane + 8 * j) * WEIGHTS_STRIDE + row + i] = weight;
        }
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int j = 0; j < 4; j++) y[n][i][j] *= shrink;
        }
    }
}

template <int N>
__device__ inline void write_plain(const Task<float> &task, const float (&y)[N][4][4], const Row (&rows)[4], int row,
                                   int lane) {
    UNROLL for (int i = 0; i < 4; i++) {
        float total = rows[i].total;
        for (int bits = 4; bits > 0; bits /= 2) total += exchanged(total, bits);
        if (task.first + row + i >= task.past) continue;
        float *target = task.y + static_cast<long long>(task.first + row + i) * task.y_stride;
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int j = 0; j < 4; j++) {
                int column = n * PART + lane * 4 + j;
                if (column < task.width) target[column] = y[n][i][j] / total;
            }
        }
    }
}

struct Memory {
    float *q, *k, *weights;
};

/// Eight lanes have four queries, of each of up to N parts of the width four columns a lane.
template <int N> __device__ inline void attend_plain(const Task<float> &task, const Memory &memory) {
    int row = threadIdx.x / 8 * 4, lane = threadIdx.x % 8;
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1);
    Row rows[4];
    float y[N][4][4] = {};
    for (int key = start; key < end; key += PLAIN_KEYS) {
        auto load = [&](const Head<float> &head, int column) {
            auto row_at = [&](int i) { return head.row(key + i, end); };
            load_rows<PLAIN_KEYS, PART>(memory.k, row_at, column, task.width);
        };
        float products[4][4] = {};
        for (int column = 0; column < task.width; column += PART) {
            auto query_at = [&](int i) { return task.q.row(task.first + i, task.past); };
            barrier();
            load_rows<QUERIES, PART>(memory.q, query_at, column, task.width);
            load(task.k, column);
            wait_for_copies();
            barrier();
            multiply_part(products, memory.q, memory.k, row, lane);
        }
        soften_plain(products, y, rows, memory.weights, task, key, row, lane);
        UNROLL for (int n = 0; n < N; n++) {
            if (n * PART >= task.width) break;
            barrier();
            load(task.v, n * PART);
            wait_for_copies();
            barrier();
            weigh_part(y[n], memory.weights, memory.k, row, lane * 4);
        }
    }
    write_plain(task, y, rows, row, lane);
}

/// By width: the narrower, the more blocks have room on a processor.
__device__ inline void attend_by_width(const Task<float> &task) {
    SHARED(float, q, QUERIES * PART_STRIDE);
    SHARED(float, k, PLAIN_KEYS * PART_STRIDE);
    SHARED(float, weights, PLAIN_KEYS * WEIGHTS_STRIDE);
    Memory memory = {q, k, weights};
    if (task.width <= 2 * PART) attend_plain<2>(task, memory);
    else if (task.width <= 4 * PART) attend_plain<4>(task, memory);
    else attend_plain<8>(task, memory);
}

#define ATTENTION(NAME, T, ATTEND)                                                                                     \
    KERNEL(NAME, T *y, const T *q, const T *k, const T *v, const Queries *tiles, const float *bias, int group,         \
           int width, int q_outer, int q_inner, int k_outer, int k_inner, int v_outer, int v_inner, float scale,       \
           int causal, int window, int span) {                                                                         \
        Queries tile = tiles[blockIdx.x];                                                                              \
        long long head = blockIdx.y, shared = head / group;                                                            \
        Task<T> task;                                                                                                  \
        task.q = {q + head * q_inner, q_outer};                                                                        \
        task.k = {k + shared * k_inner, k_outer};                                                                      \
        task.v = {v + shared * v_inner, v_outer};                                                                      \
        task.sight = {tile.start, tile.end, window, causal != 0};                                                      \
        task.first = tile.first;                                                                                       \
        task.past = min(tile.first + QUERIES, tile.end);                                                               \
        task.width = width;                                                                                            \
        task.scale = scale * LOG2_E;                                                                                   \
        task.bias = bias ? bias + head * (2 * span - 1) + span - 1 : nullptr;                                          \
        task.y = y + head * width;                                                                                     \
        task.y_stride = static_cast<int>(gridDim.y) * width;                                                           \
        ATTEND(task);                                                                                                  \
    }

#define ATTENTION_OF_WIDTH(D)                                                                                          \
    ATTENTION(attention_bf16_##D, bf16, (attend<bf16, D>))                                                             \
    ATTENTION(attention_f16_##D, f16, (attend<f16, D>))

ATTENTION_OF_WIDTH(32)
ATTENTION_OF_WIDTH(64)
ATTENTION_OF_WIDTH(96)
ATTENTION_OF_WIDTH(128)
ATTENTION_OF_WIDTH(192)
ATTENTION_OF_WIDTH(256)
ATTENTION(attention_f32, float, attend_by_width)
