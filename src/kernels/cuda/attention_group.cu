// Attention by warpgroups, for heads of DEPTH columns of which every row begins at 16 bytes. A block goes through items,
// a head of a tile each: four of its warps bring queries, keys and values, those of the next item while this one is being
// computed, and the others, which go by fours, have up to twice 64 queries of the tile. While one weighs its scores the
// other's are multiplied, and so are its own weights of the keys before.
#include "attention_bring.cuh"
// To be compiled for the GPUs that have these.
#include "warpgroup.cuh"

namespace {

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

/// What one warpgroup is told of an item.
template <typename T> struct Item {
    Memory<T> &memory;
    const Task<T> &task;
    /// Of its first part.
    T *queries;
    Counter &are_items_read;
    /// Of each stage: its keys and values can be read, and with the first of them the queries.
    Counter *are_ready;
    /// Null where nothing changes late; and which of ITEMS it is.
    LateMemory<T> *late;
    int place;
};

/// What one warpgroup knows of TIMES parts of a tile, a stage's keys and values at a time.
template <typename T, int TIMES, bool IS_LATE> struct Parts {
    static constexpr int COLUMNS = GATHERED<DEPTH, IS_LATE>;
    const Item<T> &item;
    /// What is gathered of left factors stands behind what is gathered of values.
    float scores[KEYS / 8][4], y[TIMES][COLUMNS / 8][4] = {};
    unsigned left[KEYS / 16][4];
    Row rows[TIMES][2];

    __device__ explicit Parts(const Item<T> &item) : item(item) {}

    /// Of a lane's two queries of each part the first, among the part's; the other is 8 behind it.
    __device__ static int own() { return threadIdx.x % WARPGROUP / WARP * 16 + threadIdx.x % WARP / 4; }

    /// The task of one part.
    __device__ Task<T> part(int time) const {
        Task<T> part = item.task;
        part.first = hidden(item.task.first) + (threadIdx.x / WARPGROUP - 1 + time * GROUPS) * QUERIES;
        part.past = min(part.first + QUERIES, item.task.past);
        return part;
    }

    /// Asks for a part's scores of a stage's keys.
    __device__ __forceinline__ void multiply_keys(int time, int stage) {
        const T *own = item.queries + hidden(time * GROUPS * QUERIES * DEPTH);
        float(&sums)[SUMS] = reinterpret_cast<float(&)[SUMS]>(scores);
        multiply_depth<T>(sums, own, item.memory.stages[stage].keys);
    }

    /// Asks for a part's y += a stage's values by its weights, which are there.
    __device__ __forceinline__ void multiply_values(int time, int stage) {
        const T *values = item.memory.stages[stage].values;
        begin_products();
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            // 16 rows of 128 bytes further.
            auto rows = matrix_at(values) + n * (16 * 128 >> 4);
            if constexpr (IS_LATE) {
                // Of a stage two pieces of each row.
                multiply_rows<T>(sums(time), left[n], rows, matrix_at(item.late->factors) + n * (16 * 128 >> 4) + 2 * stage);
            } else {
                multiply_rows<T>(sums(time), left[n], rows);
            }
        }
        end_group_of_products();
    }

    /// Waits for all products, of which this part's y is one.
    __device__ void wait_for(int time) {
        wait_for_older_products<0>();
        hold(sums(time));
    }

    __device__ float (&sums(int time))[COLUMNS / 2] { return reinterpret_cast<float(&)[COLUMNS / 2]>(y[time]); }

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

    /// Changes what was gathered of values.
    __device__ void change_values() {
        const T *laid_out = item.late->right[item.place][VALUE];
        change_gathered<T, DEPTH>(y, [&](unsigned(&both)[4], int n) { load_laid_out(both, laid_out, n * 8); });
    }

    __device__ void write() const {
        UNROLL for (int time = 0; time < TIMES; time++) {
            UNROLL for (int half = 0; half < 2; half++) {
                unsigned words[DEPTH / 8];
                UNROLL for (int n = 0; n < DEPTH / 8; n++) {
                    words[n] = packed<T>(y[time][n][2 * half], y[time][n][2 * half + 1]);
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
template <int TIMES, bool IS_LATE, typename T>
__device__ __forceinline__ void attend(const Item<T> &item, Turn &turn) {
    Parts<T, TIMES, IS_LATE> parts(item);
    constexpr int LAST = TIMES - 1;
    Memory<T> &memory = item.memory;
    float shrink[2];
    int key = first_key(item.task), end = past_key(item.task), stage = turn.stage;
    wait_for_stage(item.are_ready[stage], turn.parity);
    parts.multiply_keys(0, stage);
    parts.template weigh<0>(0, key, shrink);
    parts.pack_all(0, shrink);
    while (true) {
        UNROLL for (int time = 1; time < TIMES; time++) {
            parts.multiply_keys(time, stage);
            parts.multiply_values(time - 1, stage);
            parts.template weigh<1>(time, key, shrink);
            parts.wait_for(time - 1);
            parts.pack_all(time, shrink);
        }
        turn.advance(STAGES);
        key += KEYS;
        if (key >= end) break;
        wait_for_stage(item.are_ready[turn.stage], turn.parity);
        parts.multiply_keys(0, turn.stage);
        parts.multiply_values(LAST, stage);
        parts.template weigh<1>(0, key, shrink);
        parts.wait_for(LAST);
        arrive(memory.read[stage]);
        parts.pack_all(0, shrink);
        stage = turn.stage;
    }
    // Where something changes late, its right sides are still to be read.
    if (!IS_LATE) arrive(item.are_items_read);
    parts.multiply_values(LAST, stage);
    parts.wait_for(LAST);
    arrive(memory.read[stage]);
    divide_gathered(parts.y, parts.rows);
    if constexpr (IS_LATE) {
        if (item.late->changes[item.place].is(VALUE)) parts.change_values();
        arrive(item.are_items_read);
    }
    parts.write();
}

/// One that has no queries of a tile lets its keys and values go by.
template <typename T> __device__ __forceinline__ void pass(const Item<T> &item, Turn &turn) {
    ROLLED for (int key = first_key(item.task); key < past_key(item.task); key += KEYS) {
        item.are_ready[turn.stage].wait(turn.parity);
        arrive(item.memory.read[turn.stage]);
        turn.advance(STAGES);
    }
    arrive(item.are_items_read);
}

/// Before anything else, by all threads.
template <bool IS_LATE, typename T> __device__ inline void begin(Memory<T> &memory, LateMemory<T> *late) {
    int i = threadIdx.x;
    if (i < STAGES) {
        memory.there[i].begin(BRINGERS<IS_LATE>);
        memory.read[i].begin(READERS);
        if (IS_LATE) late->changed[i].begin(CHANGERS);
    }
    if (i < ITEMS) memory.are_items_read[i].begin(READERS);
    if (IS_LATE && i < ITEMS) {
        late->are_known[i].begin(1);
        late->are_laid_out[i].begin(CHANGERS);
        late->are_queries_there[i].begin(BRINGERS<true>);
    }
    barrier();
}

/// Everything, once for each kernel: a function of which there are two callers would be none of either's, and products do not
/// run on beyond a call. Those that only bring take few registers, and those that change as many as readers can do without.
template <bool IS_LATE, typename T>
__device__ __forceinline__ void attend(Memory<T> &memory, const Items<T> &items) {
    begin<IS_LATE>(memory, items.late);
    if (threadIdx.x < WARPGROUP) {
        keep_registers<IS_LATE ? 56 : 24>();
        if (threadIdx.x < BRINGERS<IS_LATE>) return bring<IS_LATE>(memory, items);
        return change(*items.late, items);
    }
    take_registers<IS_LATE ? 224 : 240>();
    int group = threadIdx.x / WARPGROUP - 1;
    Turn turn, place;
    auto tile_of = [&](int item) -> const Queries & {
        if constexpr (IS_LATE) return items.late->known_tile(place);
        else return items.tile(item);
    };
    items.each(tile_of, [&](const Task<T> &task) __attribute__((always_inline)) {
        T *queries = memory.queries[place.stage][group];
        Counter *are_ready = IS_LATE ? items.late->changed : memory.there;
        Item<T> item = {memory, task, queries, memory.are_items_read[place.stage], are_ready, items.late, place.stage};
        int own = task.past - task.first - group * QUERIES;
        if (own > GROUPS * QUERIES) attend<2, IS_LATE>(item, turn);
        else if (own > 0) attend<1, IS_LATE>(item, turn);
        else pass(item, turn);
        place.advance(ITEMS);
    });
}

} // namespace

#define GROUP_ATTENTION(TYPE, T)                                                                                       \
    LONE_KERNEL(BLOCK, attention_group_##TYPE, CALL_PARAMETERS(T), int heads, int count, int queries) {                \
        Call<T> call = CALL(T);                                                                                        \
        call.width = DEPTH;                                                                                            \
        ALL_SHARED(launch);                                                                                            \
        attend<false>(*reinterpret_cast<Memory<T> *>(launch), Items<T>{call, heads, count, queries, {}, nullptr});     \
    }                                                                                                                  \
    LONE_KERNEL(BLOCK, attention_group_late_##TYPE, CALL_PARAMETERS(T), int heads, int count, int queries,             \
                LATE_PARAMETERS(T)) {                                                                                  \
        Call<T> call = CALL(T);                                                                                        \
        call.width = DEPTH;                                                                                            \
        ALL_SHARED(launch);                                                                                            \
        LateMemory<T> &late = *reinterpret_cast<LateMemory<T> *>(launch);                                              \
        attend<true>(late.all, Items<T>{call, heads, count, queries, LATE(T), &late});                                 \
    }

GROUP_ATTENTION(bf16, bf16)
GROUP_ATTENTION(f16, f16)
