// Attention of f32, without tensor cores.
#include "attention.cuh"

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

ATTENTION(attention_f32, float, QUERIES, attend_by_width)
