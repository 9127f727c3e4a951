// A block of attention_group.cu: what lies in its memory, and the warps that bring it and change what changes late.
//
// Queries and keys that change late are changed where they lie, between those who bring them and those who read them, who find
// the same as if they had been changed before: two of the four warps bring then, and two change. Values stay as they are, see
// late.cuh: their left factors are brought beside them, as more columns of the same products.
#pragma once

#include "attention_warp.cuh"
#include "warpgroup.cuh"

namespace {

constexpr int GROUPS = 2, BLOCK = (1 + GROUPS) * WARPGROUP;
/// Warps that read what the others bring.
constexpr int READERS = GROUPS * WARPGROUP / WARP;
/// Where something changes late, warps that change what those before them bring; and threads that bring.
constexpr int CHANGERS = 2;
template <bool IS_LATE> constexpr int BRINGERS = IS_LATE ? WARPGROUP - CHANGERS * WARP : WARPGROUP;
constexpr int KEYS = RIGHT_ROWS;
constexpr int STAGES = 4;

/// Parts of a tile's queries, 64 each, that lie in a block's memory: of so many items.
constexpr int PARTS = 2 * GROUPS, ITEMS = 2;

/// A block's memory: queries, then stages of keys and their values, and what they are counted by. Queries come with the
/// first keys. Once an item is read nobody reads its queries any more, nor, where something changes late, what is told of it.
template <typename T> struct Memory {
    T queries[ITEMS][PARTS][QUERIES * DEPTH];
    struct {
        T keys[KEYS * DEPTH], values[KEYS * DEPTH];
    } stages[STAGES];
    Counter there[STAGES], read[STAGES], are_items_read[ITEMS];
};

/// Beside it, where something changes late: of each item its tile, its changes, and what is a right side of them, a row of
/// columns each rank; and of each stage's values their left factors, one stage's columns beside the other's.
template <typename T> struct LateMemory {
    T right[ITEMS][READ][LATE_RANKS * DEPTH];
    Memory<T> all;
    alignas(1024) T factors[KEYS * DEPTH];
    Queries tiles[ITEMS];
    Changes<T> changes[ITEMS];
    /// Of items: tiles and changes are known, right sides lie here, and queries do. `changed` is of stages; an item's first one
    /// says it of the queries too.
    Counter are_known[ITEMS], are_laid_out[ITEMS], are_queries_there[ITEMS], changed[STAGES];

    /// An item's tile, once it is known.
    __device__ const Queries &known_tile(Turn place) {
        are_known[place.stage].wait(place.parity);
        return tiles[place.stage];
    }
};

/// What of a block's memory its launch must ask for.
static_assert(STAGES * LATE_RANKS == DEPTH && LATE_RANKS == BESIDE, "all stages' factors have a matrix");
static_assert(sizeof(Memory<bf16>) == 196688 && sizeof(LateMemory<bf16>) == 227328,
              "attention.rs asks for something else");
static_assert(sizeof(LateMemory<bf16>::right) % 1024 == 0, "matrices begin at multiples of 1024 bytes");

/// The items of a block: tiles, of no more than so many queries, of every head. Where nothing changes late there is no
/// memory for it.
template <typename T> struct Items {
    const Call<T> &call;
    int heads, tiles, queries;
    AllChanges<T> all;
    LateMemory<T> *late;

    /// Calls f for the task of each, of the tile that `tile_of` gives. Blocks side by side have tiles of the same head, whose keys
    /// are then near, and every other time in the opposite order, so that none always has those that see the most.
    template <typename G, typename F> __device__ __forceinline__ void each(G tile_of, F f) const {
        int blocks = gridDim.x, block = blockIdx.x, step = 2 * (blocks - block) - 1;
        ROLLED for (int item = block; item < heads * tiles; item += step, step = 2 * blocks - step) {
            f(call.task(tile_of(item), queries, item / tiles, heads));
        }
    }

    /// An item's. Of a sequence's tiles the last may see the most, and is first.
    __device__ const Queries &tile(int item) const { return call.tiles[tiles - 1 - item % tiles]; }
};

/// Where the keys begin and end that a task's queries see.
template <typename T> __device__ inline int first_key(const Task<T> &task) { return task.sight.first(task.first); }
template <typename T> __device__ inline int past_key(const Task<T> &task) { return task.sight.past(task.past - 1); }

/// Asks for rows of a head, from `first` on, and zeros from `past` on; by those who bring. A thread's rows are so far apart that
/// their pieces lie alike, which takes few registers.
template <int ROWS, bool IS_LATE, typename T>
__device__ inline void copy_rows(T *matrix, const Head<T> &head, int first, int past) {
    constexpr int OWN = 16 / sizeof(T), PIECES = DEPTH / OWN, STEP = BRINGERS<IS_LATE> / PIECES;
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

/// Asks for the left factors of a stage's values, and zeros from `past` on; by those who bring.
template <typename T> __device__ inline void copy_factors(T *matrix, int stage, const Late<T> &change, int first, int past) {
    constexpr int SHARING = BRINGERS<true>;
    UNROLL for (int i = 0; i < KEYS / SHARING; i++) {
        int row = i * SHARING + hidden(threadIdx.x);
        auto place = [=](int piece) { return reinterpret_cast<char *>(matrix) + place_of(row, 2 * stage + piece); };
        change.copy_left(first + row, first + row < past, place);
    }
}

/// Brings what all items need; by the first threads of the block. One of them finds what changes.
template <bool IS_LATE, typename T> __device__ __forceinline__ void bring(Memory<T> &memory, const Items<T> &items) {
    Turn place, next;
    auto tile_of = [&](int item) -> const Queries & { return items.tile(item); };
    items.each(tile_of, [&](const Task<T> &task) {
        int start = first_key(task), end = past_key(task);
        unsigned long long owner = IS_LATE ? items.all.owners[task.sequence] : 0;
        memory.are_items_read[place.stage].wait(place.parity ^ 1);
        ROLLED for (int part = 0; task.first + part * QUERIES < task.past; part++) {
            T *queries = memory.queries[place.stage][part];
            copy_rows<QUERIES, IS_LATE>(queries, task.q, task.first + part * QUERIES, task.past);
        }
        if (IS_LATE) {
            // Counted and told on their own, so that queries are changed before there is room for their keys.
            items.late->are_queries_there[place.stage].arrive_with_copies();
            if (threadIdx.x == 0) {
                items.late->tiles[place.stage] = {task.first, task.sight.start, task.sight.end, task.sequence};
                items.late->changes[place.stage] = changes_of(task, items.all, owner);
                items.late->are_known[place.stage].arrive();
            }
        }
        ROLLED for (int key = start; key < end; key += KEYS) {
            memory.read[next.stage].wait(next.parity ^ 1);
            copy_rows<KEYS, IS_LATE>(memory.stages[next.stage].keys, task.k, key, end);
            copy_rows<KEYS, IS_LATE>(memory.stages[next.stage].values, task.v, key, end);
            if (IS_LATE) {
                LateMemory<T> &late = *items.late;
                late.are_known[place.stage].wait(place.parity);
                copy_factors(late.factors, next.stage, late.changes[place.stage].of[VALUE], key, end);
            }
            memory.there[next.stage].arrive_with_copies();
            next.advance(STAGES);
        }
        place.advance(ITEMS);
    });
    // Copies outlive no thread.
    wait_for_copies();
}

/// A warp's number among those that change.
__device__ inline int changer() { return threadIdx.x / WARP - (WARPGROUP / WARP - CHANGERS); }

/// Eight by 16 numbers of a right side in a block's memory, of columns from one on, and those of the next eight.
template <typename T> __device__ inline void load_laid_out(unsigned (&both)[4], const T *right, int column) {
    int lane = hidden(threadIdx.x % WARP);
    load_transposed(both, reinterpret_cast<const char *>(right) + place_of(lane % 16, column / 8 + lane / 16));
}

/// Lays out the right sides of an item's changes, of a lane two columns. One warp has those of queries and of keys, the other those
/// of values: most adapters change queries and values, and each warp waits for one of them.
template <typename T> __device__ inline void lay_out(LateMemory<T> &late, int place) {
    static_assert(CHANGERS == 2, "one of them has values");
    int column = threadIdx.x % WARP * 2, first = changer() == 0 ? QUERY : VALUE, past = changer() == 0 ? VALUE : READ;
    ROLLED for (int part = first; part < past; part++) {
        const Late<T> &change = late.changes[place].of[part];
        if (change.rank == 0) continue;
        unsigned ranks[2][LATE_RANKS / 2];
        change.load_columns(ranks, column);
        char *rows = reinterpret_cast<char *>(late.right[place][part]);
        UNROLL for (int i = 0; i < LATE_RANKS; i++) {
            unsigned pair = bytes_of(ranks[0][i / 2], ranks[1][i / 2], i % 2 == 0 ? 0x5410 : 0x7632);
            // Left sides of values are products, whose ranks stand in order.
            int row = part == VALUE ? i : Late<T>::row_of(i);
            reinterpret_cast<unsigned *>(rows + place_of(row, column / 8))[column % 8 / 2] = pair;
        }
    }
    arrive(late.are_laid_out[place]);
}

/// Rows that were brought, from `first` on of what is packed: an item's queries, or a stage's keys. They are there once `there`
/// is past a round of this parity.
template <typename T> struct Brought {
    T *rows;
    int first, past;
    Counter &there;
    int parity;
};

/// Changes them as an item's changes of one part of what attention reads say.
template <typename T>
__device__ inline void change_brought(LateMemory<T> &late, Turn place, int part, const Brought<T> &brought) {
    // Each warp has so many times 16 of 64 rows.
    constexpr int TIMES = QUERIES / 16 / CHANGERS;
    const Late<T> &change = late.changes[place.stage].of[part];
    int own = changer() * TIMES * 16, first = brought.first, past = brought.past;
    auto load = [&](unsigned(&left)[TIMES][4], int row) {
        UNROLL for (int time = 0; time < TIMES; time++) change.load_left(left[time], row + own + time * 16, past);
    };
    unsigned left[TIMES][4], coming[TIMES][4] = {};
    bool is_any = change.rank > 0;
    if (is_any) load(left, first);
    late.are_laid_out[place.stage].wait(place.parity);
    brought.there.wait(brought.parity);
    ROLLED for (int row = first; is_any && row < past; row += QUERIES) {
        // While these are changed.
        if (row + QUERIES < past) load(coming, row + QUERIES);
        int lane = hidden(threadIdx.x % WARP);
        char *from = reinterpret_cast<char *>(brought.rows + (row - first + own) * DEPTH);
        auto row_at = [=](int time, int n) { return from + time * 16 * 128 + place_of(lane % 16, n + lane / 16); };
        auto load_right = [&](unsigned(&both)[4], int n) { load_laid_out(both, late.right[place.stage][part], n * 8); };
        change_rows<T, DEPTH / 8>(left, load_right, row_at, store_for_products);
        UNROLL for (int i = 0; i < 4 * TIMES; i++) left[i / 4][i % 4] = coming[i / 4][i % 4];
    }
}

/// Changes what others bring, and shows it to those who read.
template <typename T> __device__ __forceinline__ void change(LateMemory<T> &late, const Items<T> &items) {
    Memory<T> &memory = late.all;
    Turn place, next;
    items.each([&](int) -> const Queries & { return late.known_tile(place); }, [&](const Task<T> &task) {
        int start = first_key(task), end = past_key(task);
        // Nobody reads what lay there any more: those who bring have waited for it.
        lay_out(late, place.stage);
        T *queries = memory.queries[place.stage][0];
        Counter &are_there = late.are_queries_there[place.stage];
        change_brought(late, place, QUERY, Brought<T>{queries, task.first, task.past, are_there, place.parity});
        ROLLED for (int key = start; key < end; key += KEYS) {
            T *keys = memory.stages[next.stage].keys;
            int past = min(key + KEYS, end);
            change_brought(late, place, KEY, Brought<T>{keys, key, past, memory.there[next.stage], next.parity});
            show_to_products();
            arrive(late.changed[next.stage]);
            next.advance(STAGES);
        }
        place.advance(ITEMS);
    });
}

} // namespace
