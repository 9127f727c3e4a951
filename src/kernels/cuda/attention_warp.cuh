// What a warp does in attention on tensor cores: it has 16 queries of a head, or twice as many, which halves what it
// reads of a block's memory and how often keys and values come there.
#pragma once

#include "attention.cuh"
#include "late.cuh"

/// What changes of what a task reads, whose sequence has an owner.
template <typename T>
__device__ inline Changes<T> changes_of(const Task<T> &task, const AllChanges<T> &all, unsigned long long owner) {
    return all.of(owner, task.head * task.width, task.shared * task.width);
}

/// The scores that a lane has of two queries, times `scale`, become weights; what was gathered before is to shrink with
/// them. Both queries in turns, and of each every other number, so that none waits for the one just before it.
template <int N>
__device__ inline void soften(float (&scores)[N][4], Row (&rows)[2], float (&shrink)[2], float scale) {
    float sums[4], tops[4], base[2];
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int i = 0; i < 4; i++) tops[i] = n == 0 ? scores[n][i] : fmaxf(tops[i], scores[n][i]);
    }
    UNROLL for (int half = 0; half < 2; half++) {
        float top = fmaxf(tops[2 * half], tops[2 * half + 1]);
        // The four lanes of a group hold the same rows.
        top = fmaxf(top, exchanged(top, 1));
        top = fmaxf(top, exchanged(top, 2));
        base[half] = rows[half].rise(top * scale, shrink[half]);
    }
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int i = 0; i < 4; i++) {
            float &score = scores[n][i];
            score = power_of_two(score * scale - base[i / 2]);
            sums[i] = n == 0 ? score : sums[i] + score;
        }
    }
    UNROLL for (int half = 0; half < 2; half++) rows[half].total += sums[2 * half] + sums[2 * half + 1];
}

/// What two queries have gathered shrinks.
template <int N> __device__ inline void shrink_all(float (&y)[N][4], const float (&shrink)[2]) {
    UNROLL for (int n = 0; n < N; n++) {
        UNROLL for (int i = 0; i < 4; i++) y[n][i] *= shrink[i / 2];
    }
}

/// Where not every query sees every key, or something is added, of the scores that a lane has of a query and the one 8
/// behind it: `added(query, key)` makes what adds to the score of the key so many places on.
template <typename T, int N, typename F>
__device__ inline void score_all(float (&scores)[N][4], const Task<T> &task, int row, int key, F added) {
    key += threadIdx.x % 4 * 2;
    UNROLL for (int half = 0; half < 2; half++) {
        int query = task.query(row + half * 8);
        int first = task.sight.first(query) - key, past = task.sight.past(query) - key;
        auto add = added(query, key);
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int i = 0; i < 2; i++) {
                int place = n * 8 + i;
                float &score = scores[n][2 * half + i];
                score *= task.scale;
                add(score, max(first, min(place, past - 1)));
                score = place >= first && place < past ? score : -INFINITY;
            }
        }
    }
}

/// Weights of 16 keys as the left side of a product: a product's lanes hold what the next one wants there.
template <typename T, int N> __device__ inline void pack(unsigned (&left)[4], const float (&weights)[N][4], int n) {
    UNROLL for (int i = 0; i < 4; i++) {
        const float *pair = &weights[2 * n + i / 2][i % 2 * 2];
        left[i] = packed<T>(pair[0], pair[1]);
    }
}

/// Divides what so many times 16 queries have gathered among all weights of their rows, which four lanes have counted.
template <int TIMES, int N>
__device__ inline void divide_gathered(float (&y)[TIMES][N][4], const Row (&rows)[TIMES][2]) {
    UNROLL for (int time = 0; time < TIMES; time++) {
        UNROLL for (int half = 0; half < 2; half++) {
            float total = rows[time][half].total;
            total += exchanged(total, 1);
            float share = reciprocal(total + exchanged(total, 2));
            UNROLL for (int n = 0; n < N; n++) {
                UNROLL for (int i = 0; i < 2; i++) y[time][n][2 * half + i] *= share;
            }
        }
    }
}

/// One query's result, of which each of its four lanes has two of every eight columns.
template <typename T, int D, int N>
__device__ inline void write_row(const Task<T> &task, const float (&y)[N][4], int row, int half) {
    if (row >= task.past) return;
    T *target = task.y + static_cast<long long>(row) * task.y_stride;
    bool is_even = task.width % 2 == 0;
    UNROLL for (int n = 0; n < D / 8; n++) {
        int column = n * 8 + threadIdx.x % 4 * 2;
        float one = y[n][2 * half], other = y[n][2 * half + 1];
        if (is_even && column < task.width) write_pair(target + column, one, other);
        if (!is_even && column < task.width) target[column] = from_float<T>(one);
        if (!is_even && column + 1 < task.width) target[column + 1] = from_float<T>(other);
    }
}

/// 16 rows of a block's memory, as the left side of products.
template <typename T, int D> __device__ inline void load_left(unsigned (&left)[D / 16][4], const T *rows) {
    int lane = threadIdx.x % WARP;
    const T *row = rows + lane % 16 * PADDED<T, D> + lane / 16 * 8;
    UNROLL for (int d = 0; d < D / 16; d++) load_matrices(left[d], row + d * 16);
}

/// Products of left sides with each of so many rows of a block's memory.
template <typename T, int D, int ROWS, int TIMES>
__device__ inline void multiply_rows(float (&y)[TIMES][ROWS / 8][4], const unsigned (&left)[TIMES][D / 16][4],
                                     const T *rows) {
    int lane = threadIdx.x % WARP;
    const T *row = rows + (lane / 16 * 8 + lane % 8) * PADDED<T, D> + lane / 8 % 2 * 8;
    UNROLL for (int n = 0; n < ROWS / 16; n++) {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int i = 0; i < 4; i++) y[time][2 * n][i] = y[time][2 * n + 1][i] = 0.0f;
        }
        UNROLL for (int d = 0; d < D / 16; d++) {
            unsigned right[4];
            load_matrices(right, row + n * 16 * PADDED<T, D> + d * 16);
            UNROLL for (int time = 0; time < TIMES; time++) {
                multiply_add<T>(y[time][2 * n], left[time][d], right[0], right[1]);
                multiply_add<T>(y[time][2 * n + 1], left[time][d], right[2], right[3]);
            }
        }
    }
}

/// What change_rows and change_gathered ask for right factors, of those that a lane has loaded.
template <int N> __device__ inline auto loaded_right(const unsigned (&right)[N][2]) {
    return [&](unsigned(&both)[4], int n) {
        UNROLL for (int i = 0; i < 4; i++) both[i] = right[n + i / 2][i % 2];
    };
}

/// Changes rows that lie in a block's memory, 16 a time, N times eight columns of them, by left factors that a lane has loaded.
/// `load_right(words, n)` gives those of 16 columns from eight times n on, a column's two after the other. `row_at(time, n)` is
/// where of as many a lane's eight of row lane % 16 lie: the first eight of the first 16 lanes, and of the others the other
/// ones. `store(row, pairs)` is store_matrices.
template <typename T, int N, int TIMES, typename F, typename R, typename S>
__device__ inline void change_rows(const unsigned (&left)[TIMES][4], F load_right, R row_at, S store) {
    // Columns go by twice eight, and the next are read before these are written: what is written may be what is read, for all a
    // compiler knows, and each would wait for the one before.
    constexpr int PAIRS = N / 2;
    unsigned words[4], right[4];
    // To load lets lanes go their own ways.
    warp_barrier();
    load_matrices(words, row_at(0, 0));
    UNROLL for (int step = 0; step < TIMES * PAIRS; step++) {
        int time = step % TIMES, n = step / TIMES * 2, next = step + 1;
        float sums[2][4];
        UNROLL for (int i = 0; i < 4; i++) {
            float2 pair = unpacked<T>(words[i]);
            sums[i / 2][i % 2 * 2] = pair.x;
            sums[i / 2][i % 2 * 2 + 1] = pair.y;
        }
        if (next < TIMES * PAIRS) load_matrices(words, row_at(next % TIMES, next / TIMES * 2));
        if (time == 0) load_right(right, n);
        unsigned changed[4];
        UNROLL for (int i = 0; i < 2; i++) multiply_add<T>(sums[i], left[time], right[2 * i], right[2 * i + 1]);
        UNROLL for (int i = 0; i < 4; i++) changed[i] = packed<T>(sums[i / 2][i % 2 * 2], sums[i / 2][i % 2 * 2 + 1]);
        store(row_at(time, n), changed);
    }
}

/// The same where rows lie one after the other, by right factors that it has loaded too.
template <int D, typename T, int TIMES>
__device__ inline void change_rows(T *rows, const unsigned (&left)[TIMES][4], const unsigned (&right)[D / 8][2]) {
    T *own = rows + threadIdx.x % 16 * PADDED<T, D> + threadIdx.x % WARP / 16 * 8;
    auto row_at = [&](int time, int n) { return own + time * 16 * PADDED<T, D> + n * 8; };
    change_rows<T, D / 8>(left, loaded_right(right), row_at, [](T *row, const unsigned(&pairs)[4]) { store_matrices(row, pairs); });
}

/// Adds what was gathered of left factors, behind what was of values, times right ones: `load_right(words, n)` as above.
template <typename T, int D, int TIMES, int N, typename F>
__device__ inline void change_gathered(float (&y)[TIMES][N][4], F load_right) {
    static_assert(N == (D + LATE_RANKS) / 8, "both are there");
    // To load right factors lets lanes go their own ways.
    warp_barrier();
    UNROLL for (int n = 0; n < D / 8; n += 2) {
        unsigned right[4];
        load_right(right, n);
        UNROLL for (int time = 0; time < TIMES; time++) {
            unsigned left[4];
            pack<T>(left, y[time], D / 16);
            UNROLL for (int i = 0; i < 2; i++) multiply_add<T>(y[time][n + i], left, right[2 * i], right[2 * i + 1]);
        }
    }
}

/// Columns of what is gathered: of values, and where they change late of their left factors.
template <int D, bool IS_LATE> constexpr int GATHERED = D + (IS_LATE ? LATE_RANKS : 0);

/// Of a warp, of so many that have queries of one head: so many times 16 queries, heads of up to D columns, and so many keys
/// at once.
template <typename T, int D, int TIMES, int KEYS, bool IS_LATE = false, int WARPS = THREADS / WARP> struct Warp {
    unsigned q[TIMES][D / 16][4];
    float y[TIMES][GATHERED<D, IS_LATE> / 8][4] = {};
    float scores[TIMES][KEYS / 8][4];
    Row rows[TIMES][2];

    /// The first of its queries, of the block's.
    __device__ static int first() { return threadIdx.x / WARP % WARPS * 16 * TIMES; }

    /// Of a lane's two queries of each 16 the first; the other is 8 behind it.
    __device__ static int own(int time) { return first() + time * 16 + threadIdx.x % WARP / 4; }

    /// The queries, as left sides of products.
    __device__ void load(const T *memory) {
        warp_barrier();
        UNROLL for (int time = 0; time < TIMES; time++) {
            load_left<T, D>(q[time], memory + (first() + time * 16) * PADDED<T, D>);
        }
    }

    /// Changes them, by factors that a lane has loaded.
    __device__ void change_queries(const unsigned (&left)[TIMES][4], const unsigned (&right)[D / 8][2]) {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int n = 0; n < D / 8; n++) {
                // A left side has the rows of these columns side by side, and a product has them one by one.
                unsigned *pairs = &q[time][n / 2][n % 2 * 2];
                float2 upper = unpacked<T>(pairs[0]), lower = unpacked<T>(pairs[1]);
                float sums[4] = {upper.x, upper.y, lower.x, lower.y};
                multiply_add<T>(sums, left[time], right[n][0], right[n][1]);
                pairs[0] = packed<T>(sums[0], sums[1]);
                pairs[1] = packed<T>(sums[2], sums[3]);
            }
        }
    }

    /// Plain scores, with keys that lie row by row.
    __device__ void multiply_keys(const T *keys) {
        // Copies and scores let lanes go their own ways.
        warp_barrier();
        multiply_rows<T, D, KEYS>(scores, q, keys);
    }

    /// Scores become weights. To those of plain keys nothing is added, see `score_all`.
    template <typename F> __device__ void weigh(const Task<T> &task, int key, bool is_plain, F added) {
        float scale = is_plain ? task.scale : 1.0f;
        UNROLL for (int time = 0; time < TIMES; time++) {
            if (!is_plain) score_all(scores[time], task, own(time), key, added);
        }
        warp_barrier();
        UNROLL for (int time = 0; time < TIMES; time++) {
            float shrink[2];
            soften(scores[time], rows[time], shrink, scale);
            shrink_all(y[time], shrink);
        }
    }

    /// y += the values by weights, and where they change late their left factors too.
    __device__ void multiply_values(const T *values, const T *factors = nullptr) {
        warp_barrier();
        int lane = threadIdx.x % WARP;
        const T *row = values + lane % 16 * PADDED<T, D> + lane / 16 * 8;
        const T *row_of_factors = IS_LATE ? factors + lane % 16 * PADDED<T, LATE_RANKS> + lane / 16 * 8 : nullptr;
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            unsigned left[TIMES][4];
            UNROLL for (int time = 0; time < TIMES; time++) pack<T>(left[time], scores[time], n);
            UNROLL for (int d = 0; d < GATHERED<D, IS_LATE> / 16; d++) {
                unsigned v[4];
                if (d < D / 16) load_transposed(v, row + n * 16 * PADDED<T, D> + d * 16);
                else load_transposed(v, row_of_factors + n * 16 * PADDED<T, LATE_RANKS>);
                UNROLL for (int time = 0; time < TIMES; time++) {
                    multiply_add<T>(y[time][2 * d], left[time], v[0], v[1]);
                    multiply_add<T>(y[time][2 * d + 1], left[time], v[2], v[3]);
                }
            }
        }
    }

    /// Divides what was gathered among its weights.
    __device__ void divide() { divide_gathered(y, rows); }

    /// After that, where something changes late, changes what was gathered of values, by right factors that a lane has loaded.
    __device__ void change_values(const unsigned (&right)[D / 8][2]) {
        if constexpr (IS_LATE) change_gathered<T, D>(y, loaded_right(right));
    }

    __device__ void write(const Task<T> &task) const {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                write_row<T, D>(task, y[time], task.first + own(time) + half * 8, half);
            }
        }
    }
};

/// Copies wide rows of a head, and zeros from `past` on; so many threads.
template <typename T, int D, int ROWS, int SHARING = THREADS>
__device__ inline void load_wide(T *memory, const Task<T> &task, const Head<T> &head, int first, int past) {
    constexpr int PIECE = 16 / sizeof(T), PIECES = D / PIECE;
    const T *x = head.row(first, past);
    int thread = SHARING == THREADS ? threadIdx.x : threadIdx.x % SHARING;
    UNROLL for (int i = 0; i < ROWS * PIECES / SHARING; i++) {
        int piece = i * SHARING + thread, row = piece / PIECES, column = piece % PIECES * PIECE;
        bool is_there = row < past - first && column < task.width;
        // Of what is not there nothing is read; its address is one of the head's all the same.
        const T *source = x + (is_there ? row * head.stride + column : 0);
        copy_later_or_zeros(memory + row * PADDED<T, D> + column, source, is_there);
    }
}

/// The same of any rows; all threads. With twice the queries a warp, rows are wide.
template <typename T, int D, int TIMES, int ROWS>
__device__ inline void load_head(T *memory, const Task<T> &task, const Head<T> &head, int first, int past) {
    if (TIMES == 1 && !task.is_wide) {
        load_rows<ROWS, D>(memory, [&](int row) { return head.row(first + row, past); }, 0, task.width);
    } else {
        load_wide<T, D, ROWS>(memory, task, head, first, past);
    }
}
