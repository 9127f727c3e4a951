// Attention by warpgroups, for heads of DEPTH columns of which every row begins at 16 bytes: four warps of a block bring
// keys and values, and the others have 64 queries each. While one weighs its scores the other's are multiplied.
#include "attention_warp.cuh"
#include "warpgroup.cuh"

namespace {

constexpr int GROUPS = 2, BLOCK = (1 + GROUPS) * WARPGROUP;
constexpr int KEYS = RIGHT_ROWS;
constexpr int STAGES = 4;

/// A block's memory: queries, then stages of keys and their values, and what they are counted by.
template <typename T> struct Memory {
    T queries[GROUPS][QUERIES * DEPTH];
    struct {
        T keys[KEYS * DEPTH], values[KEYS * DEPTH];
    } stages[STAGES];
    Counter are_queries_there, there[STAGES], read[STAGES];
};

/// What of a block's memory its launch must ask for.
static_assert(sizeof(Memory<bf16>) == 147528, "attention.rs asks for something else");

/// Brings queries, and the keys from `start` on with their values.
template <typename T> __device__ inline void bring(Memory<T> &memory, const Task<T> &task, int start, int end) {
    for (int group = 0; group < GROUPS; group++) {
        int first = min(task.first + group * QUERIES, task.past);
        Source<QUERIES, T>(task.q.row(first, task.past + 1), task.q.stride, task.past - first)
            .copy(memory.queries[group], 0);
    }
    memory.are_queries_there.arrive_with_copies();
    Bringer bringer(memory.there, memory.read, STAGES);
    for (int key = start; key < end; key += KEYS) {
        bringer.bring([&](int stage) {
            Source<KEYS, T>(task.k.row(key, end), task.k.stride, end - key).copy(memory.stages[stage].keys, 0);
            Source<KEYS, T>(task.v.row(key, end), task.v.stride, end - key).copy(memory.stages[stage].values, 0);
        });
    }
    // Copies outlive no thread.
    wait_for_copies();
}

/// The queries of one warpgroup.
template <typename T>
__device__ inline void attend(Memory<T> &memory, const T *queries, const Task<T> &task, int start, int end) {
    Warp<T, DEPTH, 1, KEYS, QUERIES> warp;
    unsigned left[KEYS / 16][4];
    auto &scores = reinterpret_cast<float(&)[SUMS]>(warp.scores);
    auto &y = reinterpret_cast<float(&)[ROW_SUMS]>(warp.y);
    Turn turn;
    wait_for_stage(memory.are_queries_there, 0);
    for (int key = start; key < end; key += KEYS) {
        auto &stage = memory.stages[turn.stage];
        wait_for_stage(memory.there[turn.stage], turn.parity);
        multiply_depth<T>(scores, queries, stage.keys, false);
        wait_for_older_products<0>();
        auto biases = [&](int query, int key) { return task.biases(query, key); };
        warp.weigh(task, key, task.is_plain(key, KEYS), biases);
        UNROLL for (int n = 0; n < KEYS / 16; n++) warp.pack(left[n], 0, n);
        begin_products();
        UNROLL for (int n = 0; n < KEYS / 16; n++) {
            // 16 rows of 128 bytes further.
            multiply_rows<T>(y, left[n], matrix_at(stage.values) + n * (16 * 128 >> 4));
        }
        end_group_of_products();
        wait_for_older_products<0>();
        arrive(memory.read[turn.stage]);
        turn.advance(1, STAGES);
    }
    warp.write(task);
}

template <typename T> __device__ inline void attend(const Task<T> &task) {
    ALL_SHARED(launch);
    Memory<T> &memory = *reinterpret_cast<Memory<T> *>(launch);
    int start = task.sight.first(task.first), end = task.sight.past(task.past - 1), group = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) memory.are_queries_there.begin(WARPGROUP);
    if (threadIdx.x < STAGES) {
        memory.there[threadIdx.x].begin(WARPGROUP);
        memory.read[threadIdx.x].begin(GROUPS * WARPGROUP / WARP);
    }
    barrier();
    if (group == 0) {
        keep_registers<56>();
        bring(memory, task, start, end);
        return;
    }
    take_registers<224>();
    attend(memory, memory.queries[group - 1], task, start, end);
}

} // namespace

#define GROUP_KERNEL(name, ...) LONE_KERNEL(BLOCK, name, __VA_ARGS__)

ATTENTION_IN(GROUP_KERNEL, attention_group_bf16, bf16, 2 * QUERIES, attend)
ATTENTION_IN(GROUP_KERNEL, attention_group_f16, f16, 2 * QUERIES, attend)
