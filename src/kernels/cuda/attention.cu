// Attention on tensor cores, in blocks of four warps.
#include "attention_warp.cuh"

/// Where a block's memory has room for two stages, of keys and their values, the next stage arrives while one is
/// multiplied; else keys arrive while values are multiplied, and values while keys are. Late changes need two stages.
template <typename T, int D, int TIMES, bool IS_LATE>
__device__ inline void attend(const Task<T> &task, const AllChanges<T> &all = {}) {
    constexpr int KEYS = D <= 128 ? 64 : 32, STAGES = D <= 64 ? 2 : 1, SIZE = KEYS * PADDED<T, D>;
    constexpr int ROWS = QUERIES * TIMES, FACTORS = IS_LATE ? KEYS * PADDED<T, LATE_RANKS> : 0;
    static_assert(!IS_LATE || STAGES == 2, "factors arrive with keys and values");
    SHARED(T, memory, 2 * (SIZE + FACTORS) * STAGES);
    static_assert(2 * KEYS >= ROWS, "queries pass through the memory of a stage");
    Warp<T, D, TIMES, KEYS> warp;
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1);
    Changes<T> changes = {};
    auto factors_of = [&](int stage, bool is_value) -> T * {
        bool is_any = IS_LATE && (is_value ? changes.v : changes.k).rank > 0;
        return is_any ? memory + 2 * SIZE * STAGES + (2 * stage + is_value) * FACTORS : nullptr;
    };
    auto load = [&](int stage, bool is_value, int key) {
        T *target = memory + (2 * stage + is_value) * SIZE;
        load_head<T, D, TIMES, KEYS>(target, task, is_value ? task.v : task.k, key, end);
        if (T *factors = factors_of(stage, is_value)) {
            load_factors<T, KEYS>(factors, is_value ? changes.v : changes.k, key, end);
        }
    };
    load_head<T, D, TIMES, ROWS>(memory, task, task.q, task.first, task.past);
    // While queries are on their way.
    if (IS_LATE) changes = changes_of(task, all);
    if (STAGES == 2) {
        load(1, false, start);
        load(1, true, start);
    }
    wait_for_copies();
    barrier();
    warp.load(memory);
    if (IS_LATE && changes.q.rank > 0) warp.change(task, changes.q);
    if (IS_LATE && changes.k.rank > 0) warp.rank(changes.k);
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
        if (is_seen) warp.multiply_keys(keys, factors_of(stage, false));
        if (STAGES == 1) {
            wait_for_copies();
            barrier();
            if (is_more) load(0, false, key + KEYS);
        }
        if (is_seen) {
            auto biases = [&](int query, int key) { return task.biases(query, key); };
            warp.weigh(task, key, task.is_plain(key, KEYS), biases);
            warp.multiply_values(values, factors_of(stage, true));
        }
        stage = STAGES - 1 - stage;
    }
    warp.write(task, changes.v);
}

/// Of a sequence of no more than FEW tokens a block has two heads, each half of it one.
constexpr int FEW = QUERIES / 2;

template <typename T, int D, bool IS_LATE>
__device__ inline void attend_two(const Call<T> &call, int heads, const AllChanges<T> &all) {
    constexpr int HALF = THREADS / 2, SIZE = FEW * PADDED<T, D>, FACTORS = FEW * PADDED<T, LATE_RANKS>;
    SHARED(T, memory, 2 * (3 * SIZE + (IS_LATE ? FACTORS : 0)));
    int half = threadIdx.x / HALF, head = 2 * blockIdx.y + half;
    Task<T> task = call.task(call.tiles[gridDim.x - 1 - blockIdx.x], FEW, min(head, heads - 1), heads);
    T *queries = memory + half * 3 * SIZE, *keys = queries + SIZE, *values = keys + SIZE;
    int start = task.sight.start, end = task.sight.end;
    load_wide<T, D, FEW, HALF>(queries, task, task.q, start, end);
    load_wide<T, D, FEW, HALF>(keys, task, task.k, start, end);
    load_wide<T, D, FEW, HALF>(values, task, task.v, start, end);
    Changes<T> changes = {};
    if (IS_LATE) changes = changes_of(task, all);
    // Of both heads the same.
    T *factors_of_keys = changes.k.rank > 0 ? memory + 2 * 3 * SIZE : nullptr;
    T *factors_of_values = changes.v.rank > 0 ? memory + 2 * 3 * SIZE + FACTORS : nullptr;
    if (factors_of_keys) load_factors<T, FEW>(factors_of_keys, changes.k, start, end);
    if (factors_of_values) load_factors<T, FEW>(factors_of_values, changes.v, start, end);
    wait_for_copies();
    barrier();
    Warp<T, D, 1, FEW, HALF / WARP> warp;
    if (head >= heads || warp.first() >= end - start) return;
    warp.load(queries);
    if (changes.q.rank > 0) warp.change(task, changes.q);
    if (changes.k.rank > 0) warp.rank(changes.k);
    warp.multiply_keys(keys, factors_of_keys);
    auto biases = [&](int query, int key) { return task.biases(query, key); };
    warp.weigh(task, start, task.is_plain(start, FEW), biases);
    warp.multiply_values(values, factors_of_values);
    warp.write(task, changes.v);
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
    KERNEL(attention_two_##TYPE##_##D, CALL_PARAMETERS(T), int heads) { attend_two<T, D, false>(CALL(T), heads, {}); }

// The same three of what changes late.
#define LATE_ATTENTION(NAME, T, COUNT, ATTEND)                                                                         \
    KERNEL(NAME, CALL_PARAMETERS(T), LATE_PARAMETERS(T)) {                                                             \
        ATTEND(TASK(T, COUNT), LATE(T));                                                                               \
    }

#define LATE_ATTENTION_OF(D, TYPE, T)                                                                                  \
    LATE_ATTENTION(attention_late_##TYPE##_##D, T, QUERIES, (attend<T, D, 1, true>))                                   \
    LATE_ATTENTION(attention_many_late_##TYPE##_##D, T, 2 * QUERIES, (attend<T, D, 2, true>))                          \
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
