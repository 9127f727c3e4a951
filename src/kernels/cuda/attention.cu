// Attention on tensor cores. A warp has 16 queries of a head, or twice as many, which halves what it reads of a block's
// memory and how often keys and values come there.
#include "attention.cuh"

/// One query's scores, two of each four of its lane, times `scale` become weights; `y` shrinks with them.
template <int N, int M>
__device__ inline void soften(float (&scores)[N][4], float (&y)[M][4], Row &row, float scale, int half) {
    float top = -INFINITY, shrink;
    UNROLL for (int n = 0; n < N; n++) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    // The four lanes of a group hold the same rows.
    top = fmaxf(top, exchanged(top, 1));
    top = fmaxf(top, exchanged(top, 2));
    float base = row.rise(top * scale, shrink);
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int i = 2 * half; i < 2 * half + 2; i++) {
            scores[n][i] = power_of_two(scores[n][i] * scale - base);
            row.total += scores[n][i];
        }
    }
    UNROLL for (int m = 0; m < M; m++) {
        y[m][2 * half] *= shrink;
        y[m][2 * half + 1] *= shrink;
    }
}

/// One query's result, of which each of its four lanes has two of every eight columns.
template <typename T, int D>
__device__ inline void write_row(const Task<T> &task, const float (&y)[D / 8][4], float total, int row, int half) {
    total += exchanged(total, 1);
    total += exchanged(total, 2);
    if (row >= task.past) return;
    float share = 1.0f / total;
    T *target = task.y + static_cast<long long>(row) * task.y_stride;
    bool is_even = task.width % 2 == 0;
    UNROLL for (int n = 0; n < D / 8; n++) {
        int column = n * 8 + threadIdx.x % 4 * 2;
        float one = y[n][2 * half] * share, other = y[n][2 * half + 1] * share;
        if (is_even && column < task.width) write_pair(target + column, one, other);
        if (!is_even && column < task.width) target[column] = from_float<T>(one);
        if (!is_even && column + 1 < task.width) target[column + 1] = from_float<T>(other);
    }
}

/// Of a warp: so many times 16 queries, heads of up to D columns, and so many keys at once.
template <typename T, int D, int TIMES, int KEYS> struct Warp {
    unsigned q[TIMES][D / 16][4];
    float y[TIMES][D / 8][4] = {};
    float scores[TIMES][KEYS / 8][4];
    Row rows[TIMES][2];

    /// The first of its queries, of the block's.
    __device__ static int first() { return threadIdx.x / WARP * 16 * TIMES; }

    /// Of a lane's two queries of each 16 the first; the other is 8 behind it.
    __device__ static int own(int time) { return first() + time * 16 + threadIdx.x % WARP / 4; }

    /// The queries, as left sides of products.
    __device__ void load(const T *memory) {
        warp_barrier();
        int lane = threadIdx.x % WARP;
        UNROLL for (int time = 0; time < TIMES; time++) {
            const T *row = memory + (first() + time * 16 + lane % 16) * PADDED<T, D> + lane / 16 * 8;
            UNROLL for (int d = 0; d < D / 16; d++) load_matrices(q[time][d], row + d * 16);
        }
    }

    /// Plain scores, with keys that lie row by row.
    __device__ void multiply_keys(const T *keys) {
        // Copies and scores let lanes go their own ways.
        warp_barrier();
        int lane = threadIdx.x % WARP;
        const T *row = keys + (lane / 16 * 8 + lane % 8) * PADDED<T, D> + lane / 8 % 2 * 8;
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            UNROLL for (int time = 0; time < TIMES; time++) {
                UNROLL for (int i = 0; i < 4; i++) scores[time][2 * n][i] = scores[time][2 * n + 1][i] = 0.0f;
            }
            UNROLL for (int d = 0; d < D / 16; d++) {
                unsigned k[4];
                load_matrices(k, row + n * 16 * PADDED<T, D> + d * 16);
                UNROLL for (int time = 0; time < TIMES; time++) {
                    multiply_add<T>(scores[time][2 * n], q[time][d], k[0], k[1]);
                    multiply_add<T>(scores[time][2 * n + 1], q[time][d], k[2], k[3]);
                }
            }
        }
    }

    /// Scores become weights.
    __device__ void weigh(const Task<T> &task, int key) {
        float scale = task.scale;
        if (!task.is_plain(key, KEYS)) {
            score_all(task, key);
            scale = 1.0f;
        }
        warp_barrier();
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                soften(scores[time], y[time], rows[time][half], scale, half);
            }
        }
    }

    /// Not every query sees every key, or something is added.
    __device__ void score_all(const Task<T> &task, int key) {
        key += threadIdx.x % 4 * 2;
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                int query = task.query(own(time) + half * 8);
                int first = task.sight.first(query) - key, past = task.sight.past(query) - key;
                const float *bias = task.bias ? task.bias + (key - query) : nullptr;
                UNROLL for (int n = 0; n < KEYS / 8; n++) {
                    UNROLL for (int i = 0; i < 2; i++) {
                        int place = n * 8 + i;
                        float &score = scores[time][n][2 * half + i];
                        score *= task.scale;
                        if (bias) score += bias[max(first, min(place, past - 1))] * LOG2_E;
                        score = place >= first && place < past ? score : -INFINITY;
                    }
                }
            }
        }
    }

    /// y += the values by weights.
    __device__ void multiply_values(const T *values) {
        warp_barrier();
        int lane = threadIdx.x % WARP;
        const T *row = values + lane % 16 * PADDED<T, D> + lane / 16 * 8;
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            // A product's lanes hold what the next one wants as its left side.
            unsigned left[TIMES][4];
            UNROLL for (int time = 0; time < TIMES; time++) {
                UNROLL for (int i = 0; i < 4; i++) {
                    const float *pair = &scores[time][2 * n + i / 2][i % 2 * 2];
                    left[time][i] = packed<T>(pair[0], pair[1]);
                }
            }
            UNROLL for (int d = 0; d < D / 16; d++) {
                unsigned v[4];
                load_transposed(v, row + n * 16 * PADDED<T, D> + d * 16);
                UNROLL for (int time = 0; time < TIMES; time++) {
                    multiply_add<T>(y[time][2 * d], left[time], v[0], v[1]);
                    multiply_add<T>(y[time][2 * d + 1], left[time], v[2], v[3]);
                }
            }
        }
    }

    __device__ void write(const Task<T> &task) const {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                write_row<T, D>(task, y[time], rows[time][half].total, task.first + own(time) + half * 8, half);
            }
        }
    }
};

/// Copies rows of a head, and zeros from `past` on; all threads. With twice the queries a warp, rows are wide.
template <typename T, int D, int TIMES, int ROWS>
__device__ inline void load_head(T *memory, const Task<T> &task, const Head<T> &head, int first, int past) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = D / PIECE;
    if (TIMES == 1 && !task.is_wide) {
        load_rows<ROWS, D>(memory, [&](int row) { return head.row(first + row, past); }, 0, task.width);
        return;
    }
    const T *x = head.row(first, past);
    UNROLL for (int i = 0; i < ROWS * PIECES / THREADS; i++) {
        int piece = i * THREADS + threadIdx.x, row = piece / PIECES, column = piece % PIECES * PIECE;
        bool is_there = row < past - first && column < task.width;
        // Of what is not there nothing is read; its address is one of the head's all the same.
        copy_later(memory + row * PADDED<T, D> + column, x + (is_there ? row * head.stride + column : 0), is_there ? 16 : 0);
    }
}

/// Where a block's memory has room for two stages, of keys and their values, the next stage arrives while one is
/// multiplied; else keys arrive while values are multiplied, and values while keys are.
template <typename T, int D, int TIMES> __device__ inline void attend(const Task<T> &task) {
    constexpr int KEYS = D <= 128 ? 64 : 32, STAGES = D <= 64 ? 2 : 1, SIZE = KEYS * PADDED<T, D>;
    constexpr int QUERIES = 64 * TIMES;
    SHARED(T, memory, 2 * SIZE * STAGES);
    static_assert(2 * KEYS >= QUERIES, "queries pass through the memory of a stage");
    Warp<T, D, TIMES, KEYS> warp;
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1);
    auto load = [&](int stage, bool is_value, int key) {
        T *target = memory + (2 * stage + is_value) * SIZE;
        load_head<T, D, TIMES, KEYS>(target, task, is_value ? task.v : task.k, key, end);
    };
    load_head<T, D, TIMES, QUERIES>(memory, task, task.q, task.first, task.past);
    if (STAGES == 2) {
        load(1, false, start);
        load(1, true, start);
    }
    wait_for_copies();
    barrier();
    warp.load(memory);
    if (STAGES == 1) {
        barrier();
        load(0, false, start);
    }
    int stage = STAGES - 1, first = task.first + warp.first(), last = min(first + 16 * TIMES, task.past) - 1;
    for (int key = start; key < end; key += KEYS) {
        bool is_more = key + KEYS < end;
        bool is_seen = first <= last && key < task.sight.past(last) && key + KEYS > task.sight.first(first);
        const T *keys = memory + 2 * stage * SIZE, *values = keys + SIZE;
        wait_for_copies();
        barrier();
        if (STAGES == 1) load(0, true, key);
        if (STAGES == 2 && is_more) {
            load(1 - stage, false, key + KEYS);
            load(1 - stage, true, key + KEYS);
        }
        if (is_seen) warp.multiply_keys(keys);
        if (STAGES == 1) {
            wait_for_copies();
            barrier();
            if (is_more) load(0, false, key + KEYS);
        }
        if (is_seen) {
            warp.weigh(task, key);
            warp.multiply_values(values);
        }
        stage = STAGES - 1 - stage;
    }
    warp.write(task);
}

#define ATTENTION_OF_WIDTH(D)                                                                                          \
    ATTENTION(attention_bf16_##D, bf16, 64, (attend<bf16, D, 1>))                                                      \
    ATTENTION(attention_f16_##D, f16, 64, (attend<f16, D, 1>))

// Of 128 queries a block; wider heads would not fit into registers.
#define ATTENTION_OF_MANY(D)                                                                                           \
    ATTENTION(attention_many_bf16_##D, bf16, 128, (attend<bf16, D, 2>))                                                \
    ATTENTION(attention_many_f16_##D, f16, 128, (attend<f16, D, 2>))

ATTENTION_OF_WIDTH(32)
ATTENTION_OF_WIDTH(64)
ATTENTION_OF_WIDTH(96)
ATTENTION_OF_WIDTH(128)
ATTENTION_OF_WIDTH(192)
ATTENTION_OF_WIDTH(256)
ATTENTION_OF_MANY(32)
ATTENTION_OF_MANY(64)
