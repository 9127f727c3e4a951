// Attention on tensor cores, in blocks of four warps.
#include "attention_warp.cuh"

/// Where a block's memory has room for two stages, of keys and their values, the next stage arrives while one is
/// multiplied; else keys arrive while values are multiplied, and values while keys are.
template <typename T, int D, int TIMES> __device__ inline void attend(const Task<T> &task) {
    constexpr int KEYS = D <= 128 ? 64 : 32, STAGES = D <= 64 ? 2 : 1, SIZE = KEYS * PADDED<T, D>;
    constexpr int ROWS = QUERIES * TIMES;
    SHARED(T, memory, 2 * SIZE * STAGES);
    static_assert(2 * KEYS >= ROWS, "queries pass through the memory of a stage");
    Warp<T, D, TIMES, KEYS> warp;
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1);
    auto load = [&](int stage, bool is_value, int key) {
        T *target = memory + (2 * stage + is_value) * SIZE;
        load_head<T, D, TIMES, KEYS>(target, task, is_value ? task.v : task.k, key, end);
    };
    load_head<T, D, TIMES, ROWS>(memory, task, task.q, task.first, task.past);
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
            auto biases = [&](int query, int key) { return task.biases(query, key); };
            warp.weigh(task, key, task.is_plain(key, KEYS), biases);
            warp.multiply_values(values);
        }
        stage = STAGES - 1 - stage;
    }
    warp.write(task);
}

/// Of a sequence of no more than FEW tokens a block has two heads, each half of it one.
constexpr int FEW = QUERIES / 2;

template <typename T, int D> __device__ inline void attend_two(const Call<T> &call, int heads) {
    constexpr int HALF = THREADS / 2, SIZE = FEW * PADDED<T, D>;
    SHARED(T, memory, 2 * 3 * SIZE);
    int half = threadIdx.x / HALF, head = 2 * blockIdx.y + half;
    Task<T> task = call.task(call.tiles[gridDim.x - 1 - blockIdx.x], FEW, min(head, heads - 1), heads);
    T *queries = memory + half * 3 * SIZE, *keys = queries + SIZE, *values = keys + SIZE;
    int start = task.sight.start, end = task.sight.end;
    load_wide<T, D, FEW, HALF>(queries, task, task.q, start, end);
    load_wide<T, D, FEW, HALF>(keys, task, task.k, start, end);
    load_wide<T, D, FEW, HALF>(values, task, task.v, start, end);
    wait_for_copies();
    barrier();
    Warp<T, D, 1, FEW, HALF / WARP> warp;
    if (head >= heads || warp.first() >= end - start) return;
    warp.load(queries);
    warp.multiply_keys(keys);
    auto biases = [&](int query, int key) { return task.biases(query, key); };
    warp.weigh(task, start, task.is_plain(start, FEW), biases);
    warp.multiply_values(values);
    warp.write(task);
}

// Two heads a block.
#define ATTENTION_OF_TWO(NAME, T, D)                                                                                   \
    KERNEL(NAME, CALL_PARAMETERS(T), int heads) { attend_two<T, D>(CALL(T), heads); }

#define ATTENTION_OF_TWO_OF_WIDTH(D)                                                                                   \
    ATTENTION_OF_TWO(attention_two_bf16_##D, bf16, D)                                                                  \
    ATTENTION_OF_TWO(attention_two_f16_##D, f16, D)

#define ATTENTION_OF_WIDTH(D)                                                                                          \
    ATTENTION(attention_bf16_##D, bf16, QUERIES, (attend<bf16, D, 1>))                                                 \
    ATTENTION(attention_f16_##D, f16, QUERIES, (attend<f16, D, 1>))

// Of twice as many queries a block; wider heads would not fit into registers.
#define ATTENTION_OF_MANY(D)                                                                                           \
    ATTENTION(attention_many_bf16_##D, bf16, 2 * QUERIES, (attend<bf16, D, 2>))                                        \
    ATTENTION(attention_many_f16_##D, f16, 2 * QUERIES, (attend<f16, D, 2>))

ATTENTION_OF_WIDTH(32)
ATTENTION_OF_WIDTH(64)
ATTENTION_OF_WIDTH(96)
ATTENTION_OF_WIDTH(128)
ATTENTION_OF_WIDTH(192)
ATTENTION_OF_WIDTH(256)
ATTENTION_OF_MANY(32)
ATTENTION_OF_MANY(64)
ATTENTION_OF_TWO_OF_WIDTH(32)
ATTENTION_OF_TWO_OF_WIDTH(64)
