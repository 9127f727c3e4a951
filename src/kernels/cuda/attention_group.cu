// Attention by warpgroups, for heads of DEPTH columns of which every row begins at 16 bytes. A block goes through items,
// a head of a tile each: four of its warps bring queries, keys and values, those of the next item while this one is being
// computed, and the others, which go by fours, have up to twice 64 queries of the tile. While one weighs its scores the
// other's are multiplied, and so are its own weights of the keys before.
#include "attention_warp.cuh"
#include "warpgroup.cuh"

namespace {

constexpr int GROUPS = 2, BLOCK = (1 + GROUPS) * WARPGROUP;
/// Warps that read what the others bring.
constexpr int READERS = GROUPS * WARPGROUP / WARP;
constexpr int KEYS = RIGHT_ROWS;
constexpr int STAGES = 4;

/// Parts of a tile's queries, 64 each, that lie in a block's memory: of so many items.
constexpr int PARTS = 2 * GROUPS, ITEMS = 2;

/// A block's memory: queries, then stages of keys and their values, and what they are counted by. Queries come with the
/// first keys.
template <typename T> struct Memory {
    T queries[ITEMS][PARTS][QUERIES * DEPTH];
    struct {
        T keys[KEYS * DEPTH], values[KEYS * DEPTH];
    } stages[STAGES];
    Counter there[STAGES], read[STAGES], are_queries_read[ITEMS];
};

/// What of a block's memory its launch must ask for.
static_assert(sizeof(Memory<bf16>) == 196688, "attention.rs asks for something else");

/// The items of a block: tiles, of no more than so many queries, of every head.
template <typename T> struct Items {
    const Call<T> &call;
    int heads, tiles, queries;

    /// Calls f for the task of each. Blocks side by side have tiles of the same head, whose keys are then near, and every
    /// other time in the opposite order, so that none always has those that see the most.
    template <typename F> __device__ void each(F f) const {
        int blocks = gridDim.x, block = blockIdx.x, step = 2 * (blocks - block) - 1;
        ROLLED for (int item = block; item < heads * tiles; item += step, step = 2 * blocks - step) {
            // Of a sequence's tiles the last may see the most, and is first.
            f(call.task(call.tiles[tiles - 1 - item % tiles], queries, item / tiles, heads));
        }
    }
};

/// Where the keys begin and end that a task's queries see.
template <typename T> __device__ inline int first_key(const Task<T> &task) { return task.sight.first(task.first); }
template <typename T> __device__ inline int past_key(const Task<T> &task) { return task.sight.past(task.past - 1); }

/// Asks for rows of a head, from `first` on, and zeros from `past` on; by one warpgroup. A thread's rows are so far apart that
/// their pieces lie alike, which takes few registers.
template <int ROWS, typename T> __device__ inline void copy_rows(T *matrix, const Head<T> &head, int first, int past) {
    constexpr int OWN = 16 / sizeof(T), PIECES = DEPTH / OWN, STEP = WARPGROUP / PIECES;
    static_assert(STEP % 8 == 0, "see place_of");
    int row = threadIdx.x % WARPGROUP / PIECES, piece = threadIdx.x % PIECES, count = past - first - row;
    char *place = reinterpret_cast<char *>(matrix) + place_of(row, piece);
    const T *x = head.x + static_cast<long long>(first) * head.stride + piece * OWN, *source = x + row * head.stride;
    UNROLL for (int i = 0; i < ROWS / STEP; i++) {
        bool is_there = i * STEP < count;
        copy_later_or_zeros(place + i * STEP * 128, is_there ? source : x, is_there);
        source += STEP * head.stride;
    }
}

/// Brings what all items need.
template <typename T> __device__ inline void bring(Memory<T> &memory, const Items<T> &items) {
    Turn turn, next;
    items.each([&](const Task<T> &task) {
        int start = first_key(task), end = past_key(task);
        memory.are_queries_read[turn.stage].wait(turn.parity ^ 1);
        ROLLED for (int part = 0; task.first + part * QUERIES < task.past; part++) {
            copy_rows<QUERIES>(memory.queries[turn.stage][part], task.q, task.first + part * QUERIES, task.past);
        }
        turn.advance(ITEMS);
        ROLLED for (int key = start; key < end; key += KEYS) {
            memory.read[next.stage].wait(next.parity ^ 1);
            copy_rows<KEYS>(memory.stages[next.stage].keys, task.k, key, end);
            copy_rows<KEYS>(memory.stages[next.stage].values, task.v, key, end);
            memory.there[next.stage].arrive_with_copies();
            next.advance(STAGES);
        }
    });
    // Copies outlive no thread.
    wait_for_copies();
}

/// Four lanes have two of every eight columns each, and get all of every fourth eight.
template <int N> __device__ inline void gather(unsigned (&words)[N]) {
    UNROLL for (int bit = 1; bit < 4; bit *= 2) {
        bool is_upper = threadIdx.x & bit;
        UNROLL for (int n = 0; n < N; n++) {
            if (n & bit) continue;
            unsigned got = bits_of(exchanged(of_bits(is_upper ? words[n] : words[n + bit]), bit));
            words[n] = is_upper ? got : words[n];
            words[n + bit] = is_upper ? words[n + bit] : got;
        }
    }
}

/// What one warpgroup knows of TIMES parts of a tile, a stage's keys and values at a time.
template <typename T, int TIMES> struct Parts {
    const Task<T> &task;
    /// Its first part's, of the block's memory.
    const T *queries;
    float scores[KEYS / 8][4], y[TIMES][DEPTH / 8][4] = {};
    unsigned left[KEYS / 16][4];
    Row rows[TIMES][2];

    __device__ Parts(const Task<T> &task, const T *queries) : task(task), queries(queries) {}

    /// Of a lane's two queries of each part the first, among the part's; the other is 8 behind it.
    __device__ static int own() { return threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4; }

    /// The task of one part.
    __device__ Task<T> part(int time) const {
        Task<T> part = task;
        part.first = hidden(task.first) + (threadIdx.x / WARPGROUP - 1 + time * GROUPS) * QUERIES;
        part.past = min(part.first + QUERIES, task.past);
        return part;
    }

    /// Asks for a part's scores.
    __device__ void multiply_keys(int time, const T *keys) {
        const T *own = queries + hidden(time * GROUPS * QUERIES * DEPTH);
        multiply_depth<T>(reinterpret_cast<float(&)[SUMS]>(scores), own, keys);
    }

    /// Asks for a part's y += the values by its weights, which are there.
    __device__ void multiply_values(int time, const T *values) {
        begin_products();
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            // 16 rows of 128 bytes further.
            multiply_rows<T>(sums(time), left[n], matrix_at(values) + n * (16 * 128 >> 4));
        }
        end_group_of_products();
    }

    /// Waits for all products, of which this part's y is one.
    __device__ void wait_for(int time) {
        wait_for_older_products<0>();
        hold(sums(time));
    }

    __device__ float (&sums(int time))[ROW_SUMS] { return reinterpret_cast<float(&)[ROW_SUMS]>(y[time]); }

    /// A part's scores of the keys from one on, but for those of the last so many groups, become weights.
    template <int FEW> __device__ void weigh(int time, int key, float (&shrink)[2]) {
        wait_for_older_products<FEW>();
        hold(reinterpret_cast<float(&)[SUMS]>(scores));
        Task<T> part = this->part(time);
        float scale = part.scale;
        if (!part.is_plain(key, KEYS)) {
            score_all(scores, part, own(), key, [&](int query, int key) { return part.biases(query, key); });
            scale = 1.0f;
        }
        warp_barrier();
        soften(scores, rows[time], shrink, scale);
    }

    /// Weights are ready to be multiplied, once those before have been.
    __device__ void pack_all(int time, const float (&shrink)[2]) {
        shrink_all(y[time], shrink);
        UNROLL for (int n = 0; n < KEYS / 16; n++) pack<T>(left[n], scores, n);
    }

    __device__ void write() const {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                float share = 1.0f / total_of_row(rows[time][half].total);
                unsigned words[DEPTH / 8];
                UNROLL for (int n = 0; n < DEPTH / 8; n++) {
                    words[n] = packed<T>(y[time][n][2 * half] * share, y[time][n][2 * half + 1] * share);
                }
                gather(words);
                Task<T> part = this->part(time);
                int row = part.first + own() + half * 8;
                T *target = part.y + static_cast<long long>(row) * part.y_stride + threadIdx.x % 4 * 8;
                UNROLL for (int n = 0; n < DEPTH / 8; n += 4) {
                    uint4 piece = {words[n], words[n + 1], words[n + 2], words[n + 3]};
                    if (row < part.past) *reinterpret_cast<uint4 *>(target + n * 8) = piece;
                }
            }
        }
    }
};

/// One warpgroup's parts of a tile, so many. While scores are weighed the weights before are multiplied.
template <int TIMES, typename T>
__device__ inline void attend(Memory<T> &memory, const T *queries, Counter &are_queries_read, const Task<T> &task,
                              Turn &turn) {
    Parts<T, TIMES> parts(task, queries);
    constexpr int LAST = TIMES - 1;
    float shrink[2];
    int key = first_key(task), end = past_key(task), stage = turn.stage;
    wait_for_stage(memory.there[stage], turn.parity);
    parts.multiply_keys(0, memory.stages[stage].keys);
    parts.template weigh<0>(0, key, shrink);
    parts.pack_all(0, shrink);
    while (true) {
        UNROLL for (int time = 1; time < TIMES; time++) {
            parts.multiply_keys(time, memory.stages[stage].keys);
            parts.multiply_values(time - 1, memory.stages[stage].values);
            parts.template weigh<1>(time, key, shrink);
            parts.wait_for(time - 1);
            parts.pack_all(time, shrink);
        }
        turn.advance(STAGES);
        key += KEYS;
        if (key >= end) break;
        wait_for_stage(memory.there[turn.stage], turn.parity);
        parts.multiply_keys(0, memory.stages[turn.stage].keys);
        parts.multiply_values(LAST, memory.stages[stage].values);
        parts.template weigh<1>(0, key, shrink);
        parts.wait_for(LAST);
        arrive(memory.read[stage]);
        parts.pack_all(0, shrink);
        stage = turn.stage;
    }
    arrive(are_queries_read);
    parts.multiply_values(LAST, memory.stages[stage].values);
    parts.wait_for(LAST);
    arrive(memory.read[stage]);
    parts.write();
}

/// One that has no queries of a tile lets its keys and values go by.
template <typename T>
__device__ inline void pass(Memory<T> &memory, Counter &are_queries_read, const Task<T> &task, Turn &turn) {
    ROLLED for (int key = first_key(task); key < past_key(task); key += KEYS) {
        memory.there[turn.stage].wait(turn.parity);
        arrive(memory.read[turn.stage]);
        turn.advance(STAGES);
    }
    arrive(are_queries_read);
}

template <typename T> __device__ inline void attend(const Items<T> &items) {
    ALL_SHARED(launch);
    Memory<T> &memory = *reinterpret_cast<Memory<T> *>(launch);
    if (threadIdx.x < STAGES) {
        memory.there[threadIdx.x].begin(WARPGROUP);
        memory.read[threadIdx.x].begin(READERS);
    }
    if (threadIdx.x < ITEMS) memory.are_queries_read[threadIdx.x].begin(READERS);
    barrier();
    if (threadIdx.x < WARPGROUP) {
        keep_registers<24>();
        bring(memory, items);
        return;
    }
    take_registers<240>();
    int group = threadIdx.x / WARPGROUP - 1;
    Turn turn, item;
    items.each([&](const Task<T> &task) {
        const T *queries = memory.queries[item.stage][group];
        Counter &are_queries_read = memory.are_queries_read[item.stage];
        int own = task.past - task.first - group * QUERIES;
        if (own > GROUPS * QUERIES) attend<2>(memory, queries, are_queries_read, task, turn);
        else if (own > 0) attend<1>(memory, queries, are_queries_read, task, turn);
        else pass(memory, are_queries_read, task, turn);
        item.advance(ITEMS);
    });
}

} // namespace

#define GROUP_ATTENTION(NAME, T)                                                                                       \
    LONE_KERNEL(BLOCK, NAME, CALL_PARAMETERS(T), int heads, int count, int queries) {                                  \
        Call<T> call = CALL(T);                                                                                        \
        call.width = DEPTH;                                                                                            \
        attend(Items<T>{call, heads, count, queries});                                                                 \
    }

GROUP_ATTENTION(attention_group_bf16, bf16)
GROUP_ATTENTION(attention_group_f16, f16)
