// Attention by warpgroups, for heads of DEPTH columns of which every row begins at 16 bytes. A block goes through items,
// a head of a tile each: four of its warps bring queries, keys and values, those of the next item while this one is being
// computed, and the others, which go by fours, have up to twice 64 queries of the tile. While one weighs its scores the
// other's are multiplied, and so are its own weights of the keys before.
//
// What changes late is changed where it lies, between those who bring it and those who read it, by the warps that bring: they
// have the time, and those who read find the same as if it had been changed before. All four of them: products of a warp take
// turns with the readers' on its own quarter of the tensor cores, while one of all four would wait for all that these have asked
// for.
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

/// Beside it, where something changes late: of each item its changes, and what is a right side of them, a row of columns each
/// rank.
template <typename T> struct LateMemory {
    T right[ITEMS][READ][LATE_RANKS * DEPTH];
    Memory<T> all;
    Changes<T> changes[ITEMS];
    /// The last one is of stages, and of the queries that come with them.
    Counter are_changes_there[ITEMS], changed[STAGES];
};

/// What of a block's memory its launch must ask for.
static_assert(sizeof(Memory<bf16>) == 196688 && sizeof(LateMemory<bf16>) == 209168,
              "attention.rs asks for something else");
static_assert(sizeof(LateMemory<bf16>::right) % 1024 == 0, "matrices begin at multiples of 1024 bytes");

/// The items of a block: tiles, of no more than so many queries, of every head. Where nothing changes late there is no
/// memory for it.
template <typename T> struct Items {
    const Call<T> &call;
    int heads, tiles, queries;
    AllChanges<T> all;
    LateMemory<T> *late;

    /// Calls f for the task of each. Blocks side by side have tiles of the same head, whose keys are then near, and every
    /// other time in the opposite order, so that none always has those that see the most.
    template <typename F> __device__ __forceinline__ void each(F f) const {
        int blocks = gridDim.x, block = blockIdx.x, step = 2 * (blocks - block) - 1;
        ROLLED for (int item = block; item < heads * tiles; item += step, step = 2 * blocks - step) {
            // Of a sequence's tiles the last may see the most, and is first.
            f(call.task(call.tiles[tiles - 1 - item % tiles], queries, item / tiles, heads));
        }
    }

    /// What changes of what one reads.
    __device__ Changes<T> changes(const Task<T> &task) const {
        return changes_of(task, all, all.owners[task.sequence]);
    }
};

/// Where the keys begin and end that a task's queries see.
template <typename T> __device__ inline int first_key(const Task<T> &task) { return task.sight.first(task.first); }
template <typename T> __device__ inline int past_key(const Task<T> &task) { return task.sight.past(task.past - 1); }

/// Asks for rows of a head, from `first` on, and zeros from `past` on; by a warpgroup. A thread's rows are so far apart that their
/// pieces lie alike, which takes few registers.
template <int ROWS, typename T>
__device__ inline void copy_rows(T *matrix, const Head<T> &head, int first, int past) {
    constexpr int OWN = 16 / sizeof(T), PIECES = DEPTH / OWN, STEP = WARPGROUP / PIECES;
    static_assert(STEP % 8 == 0, "see place_of");
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES, count = past - first - row;
    char *place = reinterpret_cast<char *>(matrix) + place_of(row, piece);
    const T *x = head.x + static_cast<long long>(first) * head.stride + piece * OWN, *source = x + row * head.stride;
    UNROLL for (int i = 0; i < ROWS / STEP; i++) {
        bool is_there = i * STEP < count;
        copy_later_or_zeros(place + i * STEP * 128, is_there ? source : x, is_there);
        source += STEP * head.stride;
    }
}

/// Says what changes of an item, whose place in the block's memory nobody reads any more; by a warpgroup. A warp lays out the four
/// ranks that a lane of that number among four has of left sides, and a lane two columns of them.
template <typename T> __device__ inline void tell(LateMemory<T> &late, int place, const Changes<T> &changes) {
    if (threadIdx.x == 0) late.changes[place] = changes;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    UNROLL for (int part = 0; part < READ; part++) {
        if (changes.of[part].rank == 0) continue;
        auto left = changes.of[part].right_of(2 * lane, warp), right = changes.of[part].right_of(2 * lane + 1, warp);
        char *rows = reinterpret_cast<char *>(late.right[place][part]);
        UNROLL for (int i = 0; i < 4; i++) {
            int row = Late<T>::row_of(warp, i);
            unsigned pair = bytes_of(left.words[i / 2], right.words[i / 2], i % 2 == 0 ? 0x5410 : 0x7632);
            char *piece = rows + place_of(row, lane / 4);
            reinterpret_cast<unsigned *>(piece)[lane % 4] = pair;
        }
    }
    arrive(late.are_changes_there[place]);
}

/// A part of what was brought: rows that a warpgroup changes at once, of which each warp has 16.
template <typename T> struct Part {
    T *rows;
    int first, past;
    /// What changes of them, and its right side in the block's memory.
    const Late<T> &change;
    const T *right;

    __device__ bool is_any() const { return first < past && change.rank > 0; }

    __device__ void load_left(unsigned (&left)[4]) const {
        change.load_left(left, first + threadIdx.x / WARP * 16, past);
    }

    __device__ void make(const unsigned (&left)[1][4]) const {
        // Of 16 rows and columns from one on: a lane's row, and the first or the other eight columns.
        auto within = [](int n) { return place_of(threadIdx.x % 16, n + threadIdx.x % WARP / 16); };
        char *own = reinterpret_cast<char *>(rows) + threadIdx.x / WARP * 16 * 128;
        auto row_at = [=](int, int n) { return own + within(n); };
        auto load_right = [&](unsigned(&both)[4], int n) {
            load_transposed(both, reinterpret_cast<const char *>(right) + within(n));
        };
        change_rows<T, DEPTH / 8>(left, load_right, row_at, store_for_products);
    }
};

/// Changes a stage's keys and values, which were asked for, from one key on, and with an item's first ones its queries; shows
/// them to those who read.
template <typename T>
__device__ inline void change(LateMemory<T> &late, const Task<T> &task, Turn item, Turn stage, int key) {
    constexpr int OF_STAGE = KEYS / QUERIES;
    auto &brought = late.all.stages[stage.stage];
    int queries = key == first_key(task) ? (task.past - task.first + QUERIES - 1) / QUERIES : 0;
    auto part = [&](int number) {
        int own = number - 2 * OF_STAGE, row = number % OF_STAGE * QUERIES;
        int read = own >= 0 ? QUERY : number < OF_STAGE ? KEY : VALUE;
        T *rows = own >= 0 ? late.all.queries[item.stage][own] : (read == KEY ? brought.keys : brought.values) + row * DEPTH;
        int first = own >= 0 ? task.first + own * QUERIES : key + row, past = own >= 0 ? task.past : past_key(task);
        return Part<T>{rows, first, past, late.changes[item.stage].of[read], late.right[item.stage][read]};
    };
    int parts = 2 * OF_STAGE + queries;
    auto next_from = [&](int number) {
        while (number < parts && !part(number).is_any()) number++;
        return number;
    };
    late.are_changes_there[item.stage].wait(item.parity);
    int number = next_from(0);
    unsigned left[1][4], coming[4] = {};
    if (number < parts) part(number).load_left(left[0]);
    late.all.there[stage.stage].wait(stage.parity);
    // One after the other by the same instructions, which takes the fewest registers.
    ROLLED while (number < parts) {
        int next = next_from(number + 1);
        // While this one is changed.
        if (next < parts) part(next).load_left(coming);
        part(number).make(left);
        UNROLL for (int i = 0; i < 4; i++) left[0][i] = coming[i];
        number = next;
    }
    show_to_products();
    arrive(late.changed[stage.stage]);
}

/// Brings what all items need, and changes it, a stage once the next one was asked for; by the first warpgroup of the block.
template <bool IS_LATE, typename T> __device__ __forceinline__ void bring(Memory<T> &memory, const Items<T> &items) {
    Turn turn, next, changing;
    items.each([&](const Task<T> &task) {
        int start = first_key(task), end = past_key(task);
        memory.are_queries_read[turn.stage].wait(turn.parity ^ 1);
        ROLLED for (int part = 0; task.first + part * QUERIES < task.past; part++) {
            T *queries = memory.queries[turn.stage][part];
            copy_rows<QUERIES>(queries, task.q, task.first + part * QUERIES, task.past);
        }
        ROLLED for (int key = start; key < end + (IS_LATE ? KEYS : 0); key += KEYS) {
            if (key < end) {
                memory.read[next.stage].wait(next.parity ^ 1);
                copy_rows<KEYS>(memory.stages[next.stage].keys, task.k, key, end);
                copy_rows<KEYS>(memory.stages[next.stage].values, task.v, key, end);
                memory.there[next.stage].arrive_with_copies();
                next.advance(STAGES);
            }
            if (IS_LATE && key == start) tell(*items.late, turn.stage, items.changes(task));
            if (IS_LATE && key > start) {
                change(*items.late, task, turn, changing, key - KEYS);
                changing.advance(STAGES);
            }
        }
        turn.advance(ITEMS);
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

/// What one warpgroup is told of an item.
template <typename T> struct Item {
    Memory<T> &memory;
    const Task<T> &task;
    /// Of its first part.
    T *queries;
    Counter &are_queries_read;
    /// Of each stage: its keys and values can be read, and with the first of them the queries.
    Counter *are_ready;
};

/// What one warpgroup knows of TIMES parts of a tile, a stage's keys and values at a time.
template <typename T, int TIMES> struct Parts {
    const Item<T> &item;
    float scores[KEYS / 8][4], y[TIMES][DEPTH / 8][4] = {};
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
template <int TIMES, typename T> __device__ __forceinline__ void attend(const Item<T> &item, Turn &turn) {
    Parts<T, TIMES> parts(item);
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
    arrive(item.are_queries_read);
    parts.multiply_values(LAST, stage);
    parts.wait_for(LAST);
    arrive(memory.read[stage]);
    divide_gathered(parts.y, parts.rows);
    parts.write();
}

/// One that has no queries of a tile lets its keys and values go by.
template <typename T> __device__ __forceinline__ void pass(const Item<T> &item, Turn &turn) {
    ROLLED for (int key = first_key(item.task); key < past_key(item.task); key += KEYS) {
        item.are_ready[turn.stage].wait(turn.parity);
        arrive(item.memory.read[turn.stage]);
        turn.advance(STAGES);
    }
    arrive(item.are_queries_read);
}

/// Before anything else, by all threads.
template <typename T> __device__ inline void begin(Memory<T> &memory, LateMemory<T> *late) {
    int i = threadIdx.x;
    if (i < STAGES) {
        memory.there[i].begin(WARPGROUP);
        memory.read[i].begin(READERS);
        if (late) late->changed[i].begin(WARPGROUP / WARP);
    }
    if (i < ITEMS) memory.are_queries_read[i].begin(READERS);
    if (late && i < ITEMS) late->are_changes_there[i].begin(WARPGROUP / WARP);
    barrier();
}

/// Everything, once for each kernel: a function of which there are two callers would be none of either's, and products do not
/// run on beyond a call. Those that only bring take few registers, and those that change as many as readers can do without.
template <bool IS_LATE, typename T>
__device__ __forceinline__ void attend(Memory<T> &memory, const Items<T> &items) {
    begin(memory, items.late);
    if (threadIdx.x < WARPGROUP) {
        keep_registers<IS_LATE ? 40 : 24>();
        return bring<IS_LATE>(memory, items);
    }
    take_registers<IS_LATE ? 232 : 240>();
    int group = threadIdx.x / WARPGROUP - 1;
    Turn turn, place;
    items.each([&](const Task<T> &task) __attribute__((always_inline)) {
        T *queries = memory.queries[place.stage][group];
        Counter *are_ready = IS_LATE ? items.late->changed : memory.there;
        Item<T> item = {memory, task, queries, memory.are_queries_read[place.stage], are_ready};
        int own = task.past - task.first - group * QUERIES;
        if (own > GROUPS * QUERIES) attend<2>(item, turn);
        else if (own > 0) attend<1>(item, turn);
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
