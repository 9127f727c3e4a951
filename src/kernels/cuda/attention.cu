// Attention on tensor cores, in blocks of four warps.
#include "attention_warp.cuh"

/// Asks for the left factors of so many rows' values, from `first` on, and zeros from `past` on.
template <int ROWS, typename T>
__device__ inline void copy_factors(T *memory, const Late<T> &change, int first, int past) {
    int row = threadIdx.x;
    auto place = [=](int piece) { return memory + row * PADDED<T, LATE_RANKS> + piece * 16 / sizeof(T); };
    if (row < ROWS) change.copy_left(first + row, first + row < past, place);
}

/// Where a block's memory has room for two stages, of keys and their values, the next stage arrives while one is
/// multiplied; else keys arrive while values are multiplied, and values while keys are. Where something changes late, there are
/// two stages; each warp changes 16 rows of keys where they lie, and a barrier later all read them.
template <typename T, int D, int TIMES, bool IS_LATE>
__device__ inline void attend(const Task<T> &task, const AllChanges<T> &all = {}) {
    constexpr int KEYS = D <= 128 ? 64 : 32, STAGES = D <= 64 ? 2 : 1, SIZE = KEYS * PADDED<T, D>, ROWS = QUERIES * TIMES;
    constexpr int FACTORS = IS_LATE ? KEYS * PADDED<T, LATE_RANKS> : 0;
    SHARED(T, memory, 2 * SIZE * STAGES + FACTORS * STAGES);
    static_assert(2 * KEYS >= ROWS, "queries pass through the memory of a stage");
    static_assert(!IS_LATE || (STAGES == 2 && KEYS == THREADS / WARP * 16), "a warp changes 16 rows of a stage");
    Warp<T, D, TIMES, KEYS, IS_LATE> warp;
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1), own = threadIdx.x / WARP * 16;
    auto load = [&](int stage, bool is_value, int key) {
        T *target = memory + (2 * stage + is_value) * SIZE;
        load_head<T, D, TIMES, KEYS>(target, task, is_value ? task.v : task.k, key, end);
    };
    unsigned long long owner = IS_LATE ? all.owners[task.sequence] : 0;
    load_head<T, D, TIMES, ROWS>(memory, task, task.q, task.first, task.past);
    if (STAGES == 2) {
        load(1, false, start);
        load(1, true, start);
    }
    // While these are on their way.
    Changes<T> changes = {};
    const Late<T> &late_q = changes.of[QUERY], &late_k = changes.of[KEY], &late_v = changes.of[VALUE];
    unsigned left_of_queries[TIMES][4], left_of_keys[1][4], right[D / 8][2];
    T *factors = memory + 2 * SIZE * STAGES;
    if (IS_LATE) {
        changes = changes_of(task, all, owner);
        copy_factors<KEYS>(factors + FACTORS, late_v, start, end);
        UNROLL for (int time = 0; time < TIMES; time++) {
            late_q.load_left(left_of_queries[time], task.first + warp.first() + time * 16, task.past);
        }
        late_q.load_right(right);
        late_k.load_left(left_of_keys[0], start + own, end);
    }
    wait_for_copies();
    barrier();
    warp.load(memory);
    if (IS_LATE && changes.is(QUERY)) warp.change_queries(left_of_queries, right);
    if (STAGES == 1) {
        barrier();
        load(0, false, start);
    }
    int stage = STAGES - 1, first = task.first + warp.first(), last = min(first + 16 * TIMES, task.past) - 1;
    for (int key = start; key < end; key += KEYS) {
        bool is_more = key + KEYS < end;
        bool is_seen = first <= last && key < task.sight.past(last) && key + KEYS > task.sight.first(first);
        T *keys = memory + 2 * stage * SIZE, *values = keys + SIZE;
        // Every time: to keep them would take registers from the products.
        if (IS_LATE) late_k.load_right(right);
        wait_for_copies();
        barrier();
        if (STAGES == 1) load(0, true, key);
        if (STAGES == 2 && is_more) {
            load(1 - stage, false, key + KEYS);
            load(1 - stage, true, key + KEYS);
            if (IS_LATE) copy_factors<KEYS>(factors + (1 - stage) * FACTORS, late_v, key + KEYS, end);
        }
        if (IS_LATE && changes.is(KEY)) {
            change_rows<D>(keys + own * PADDED<T, D>, left_of_keys, right);
            if (is_more) late_k.load_left(left_of_keys[0], key + KEYS + own, end);
            barrier();
        }
        if (is_seen) warp.multiply_keys(keys);
        if (STAGES == 1) {
            wait_for_copies();
            barrier();
            if (is_more) load(0, false, key + KEYS);
        }
        if (is_seen) {
            auto biases = [&](int query, int key) { return task.biases(query, key); };
            warp.weigh(task, key, task.is_plain(key, KEYS), biases);
            warp.multiply_values(values, factors + stage * FACTORS);
        }
        stage = STAGES - 1 - stage;
    }
    // Not in the loop, where it would take registers from the products.
    if (IS_LATE) late_v.load_right_in_order(right);
    warp.divide();
    if (IS_LATE && changes.is(VALUE)) warp.change_values(right);
    warp.write(task);
}

/// Of a sequence of no more than FEW tokens a block has two heads, each half of it one.
constexpr int FEW = QUERIES / 2;

template <typename T, int D, bool IS_LATE>
__device__ inline void attend_two(const Call<T> &call, int heads, const AllChanges<T> &all) {
    constexpr int HALF = THREADS / 2, SIZE = FEW * PADDED<T, D>, FACTORS = IS_LATE ? FEW * PADDED<T, LATE_RANKS> : 0;
    static_assert(HALF / WARP * 16 == FEW, "a warp changes 16 rows");
    // Left factors are the same for all heads.
    SHARED(T, memory, 2 * 3 * SIZE + FACTORS);
    int half = threadIdx.x / HALF, head = 2 * blockIdx.y + half, own = threadIdx.x % HALF / WARP * 16;
    Task<T> task = call.task(call.tiles[gridDim.x - 1 - blockIdx.x], FEW, min(head, heads - 1), heads);
    T *queries = memory + half * 3 * SIZE, *keys = queries + SIZE, *values = keys + SIZE, *factors = memory + 2 * 3 * SIZE;
    int start = task.sight.start, end = task.sight.end;
    unsigned long long owner = IS_LATE ? all.owners[task.sequence] : 0;
    load_wide<T, D, FEW, HALF>(queries, task, task.q, start, end);
    load_wide<T, D, FEW, HALF>(keys, task, task.k, start, end);
    load_wide<T, D, FEW, HALF>(values, task, task.v, start, end);
    Changes<T> changes = {};
    const Late<T> &late_q = changes.of[QUERY], &late_k = changes.of[KEY], &late_v = changes.of[VALUE];
    unsigned left_of_queries[1][4], left_of_keys[1][4], right_of_queries[D / 8][2], right[D / 8][2];
    if (IS_LATE) {
        changes = changes_of(task, all, owner);
        copy_factors<FEW>(factors, late_v, start, end);
        late_q.load_left(left_of_queries[0], start + own, end);
        late_q.load_right(right_of_queries);
        late_k.load_left(left_of_keys[0], start + own, end);
        late_k.load_right(right);
    }
    wait_for_copies();
    barrier();
    // Of both heads the same.
    if (IS_LATE && changes.is(KEY)) {
        change_rows<D>(keys + own * PADDED<T, D>, left_of_keys, right);
        barrier();
    }
    Warp<T, D, 1, FEW, IS_LATE, HALF / WARP> warp;
    if (head >= heads || warp.first() >= end - start) return;
    warp.load(queries);
    if (IS_LATE && changes.is(QUERY)) warp.change_queries(left_of_queries, right_of_queries);
    warp.multiply_keys(keys);
    if (IS_LATE) late_v.load_right_in_order(right);
    auto biases = [&](int query, int key) { return task.biases(query, key); };
    warp.weigh(task, start, task.is_plain(start, FEW), biases);
    warp.multiply_values(values, factors);
    warp.divide();
    if (IS_LATE && changes.is(VALUE)) warp.change_values(right);
    warp.write(task);
}

#define ATTENTION_OF(D, TYPE, T) ATTENTION(attention_##TYPE##_##D, T, QUERIES, (attend<T, D, 1, false>))

// Narrow heads, of which four blocks run at once if nobody takes a register too many.
#define ATTENTION_OF_NARROW(D, TYPE, T)                                                                                \
    CROWDED_KERNEL(4, attention_##TYPE##_##D, CALL_PARAMETERS(T)) { attend<T, D, 1, false>(TASK(T, QUERIES)); }

// Of twice as many queries a block; wider heads would not fit into registers.
#define ATTENTION_OF_MANY(D, TYPE, T)                                                                                  \
    ATTENTION(attention_many_##TYPE##_##D, T, 2 * QUERIES, (attend<T, D, 2, false>))

// Two heads a block.
#define ATTENTION_OF_TWO(D, TYPE, T)                                                                                   \
    CROWDED_KERNEL(D == 64 ? 7 : 10, attention_two_##TYPE##_##D, CALL_PARAMETERS(T), int heads) {                      \
        attend_two<T, D, false>(CALL(T), heads, {});                                                                   \
    }

// The same three of what changes late.
#define LATE_ATTENTION(BLOCKS, NAME, T, COUNT, ATTEND)                                                                 \
    CROWDED_KERNEL(BLOCKS, NAME, CALL_PARAMETERS(T), LATE_PARAMETERS(T)) { ATTEND(TASK(T, COUNT), LATE(T)); }

#define LATE_ATTENTION_OF(D, TYPE, T)                                                                                  \
    LATE_ATTENTION(D == 64 ? 3 : 4, attention_late_##TYPE##_##D, T, QUERIES, (attend<T, D, 1, true>))                  \
    LATE_ATTENTION(D == 64 ? 2 : 3, attention_many_late_##TYPE##_##D, T, 2 * QUERIES, (attend<T, D, 2, true>))         \
    CROWDED_KERNEL(D == 64 ? 6 : 8, attention_two_late_##TYPE##_##D, CALL_PARAMETERS(T), int heads,                    \
                   LATE_PARAMETERS(T)) {                                                                               \
        attend_two<T, D, true>(CALL(T), heads, LATE(T));                                                               \
    }

#define OF_BOTH_TYPES(KERNELS, D)                                                                                      \
    KERNELS(D, bf16, bf16)                                                                                             \
    KERNELS(D, f16, f16)

OF_BOTH_TYPES(ATTENTION_OF_NARROW, 32)
OF_BOTH_TYPES(ATTENTION_OF_NARROW, 64)
OF_BOTH_TYPES(ATTENTION_OF, 96)
OF_BOTH_TYPES(ATTENTION_OF, 128)
OF_BOTH_TYPES(ATTENTION_OF, 192)
OF_BOTH_TYPES(ATTENTION_OF, 256)
OF_BOTH_TYPES(ATTENTION_OF_MANY, 32)
OF_BOTH_TYPES(ATTENTION_OF_MANY, 64)
OF_BOTH_TYPES(ATTENTION_OF_TWO, 32)
OF_BOTH_TYPES(ATTENTION_OF_TWO, 64)
OF_BOTH_TYPES(LATE_ATTENTION_OF, 32)
OF_BOTH_TYPES(LATE_ATTENTION_OF, 64)
