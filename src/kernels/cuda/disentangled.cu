// DeBERTa's disentangled attention (arXiv:2006.03654, section 3.1) on tensor cores. Of the relative positions a tile of
// queries and keys meets neighbours only: a band, whose products with the tile's queries, and with its keys, lie in the
// block's memory where the band was, and are added to scores by distance.
#include "attention_warp.cuh"
#include "wide.cuh"

namespace {

constexpr int KEYS = 32;
/// Rows of a band: distances that a tile has, and one so that they are even.
constexpr int BAND = QUERIES + KEYS;
/// Of a band, what 16 queries or keys are multiplied with at once: 16 queries meet no more with a tile's keys.
constexpr int PART = 48;
/// Rows of a band that 16 keys meet.
constexpr int PART_OF_KEYS = QUERIES + 16;
/// Numbers from one row of products to the next, such that pairs of neighbouring rows lie in different banks.
constexpr int BY_QUERY = PART + 8, BY_KEY = BAND + 8;

/// Relative positions of one head.
template <typename T> struct Relative {
    /// Rows of relative positions, which may be null.
    Head<T> keys, queries;
    int rows;
    /// Of distance 0; as many distances lie on either side.
    const unsigned *places;
    int span_middle;

    /// Row of a distance, or of the farthest there is.
    __device__ int place(int distance) const {
        return static_cast<int>(places[max(-span_middle, min(distance, span_middle))]);
    }
};

/// A block's memory.
template <typename T> struct Memory {
    T *k, *v;
    /// Rows of both tables.
    T *key_band, *query_band;
    /// In their place: products of each query from the first row on that its warp meets, and of each key from the
    /// band's first row on.
    float *by_query, *by_key;
    /// Row in the band by distance, from the least on.
    int *steps;

    /// First row that 16 queries or keys meet, by the least distance of theirs. Even, so that pairs are aligned.
    __device__ int first_step(int distance) const { return steps[distance] / 2 * 2; }

    /// First row of the band that a warp's queries meet.
    __device__ int first_of_warp() const { return first_step(threadIdx.x / WARP * 16); }
};

/// What relative positions add to the scores of one query and those of a tile's keys that a lane has.
struct Added {
    const float *by_query, *by_key;
    /// Of the query and the first of the keys.
    const int *step;
    float scale;

    __device__ void operator()(float &score, int key) const {
        int row = step[-key];
        float sum = by_query ? by_query[row] : 0.0f;
        if (by_key) sum += by_key[key * BY_KEY + row];
        score += sum * scale;
    }
};

/// Products of 16 rows, as a part of a warp's result, from a column on that is a multiple of eight: each of a lane's two rows has
/// two of every eight columns.
__device__ inline void write_products(float *y, int stride, const float (&products)[1][PART / 8][4], int first) {
    int lane = threadIdx.x % WARP;
    UNROLL for (int half = 0; half < 2; half++) {
        float *row = y + (lane / 4 + half * 8) * stride + lane % 4 * 2;
        UNROLL for (int n = 0; n < PART / 8; n++) {
            if (n * 8 < first) continue;
            float pair[2] = {products[0][n][2 * half], products[0][n][2 * half + 1]};
            write_columns(row + n * 8, pair);
        }
    }
}

/// Bands become products. Every warp has 16 queries, and of 16 keys a part of the band; of two parts the first writes what
/// they share. All threads, in step.
template <typename T, int D>
__device__ inline void multiply_bands(const Memory<T> &memory, const Relative<T> &relative,
                                      const Warp<T, D, 1, KEYS> &warp) {
    int number = threadIdx.x / WARP, first_key = number / 2 * 16;
    int first = memory.first_step(KEYS - 16 - first_key) + number % 2 * (PART_OF_KEYS - PART);
    float by_query[1][PART / 8][4], by_key[1][PART / 8][4];
    warp_barrier();
    // Keys first: their left side is needed no longer then.
    if (relative.queries.x) {
        unsigned left[1][D / 16][4];
        load_left<T, D>(left[0], memory.k + first_key * PADDED<T, D>);
        multiply_rows<T, D, PART>(by_key, left, memory.query_band + first * PADDED<T, D>);
    }
    if (relative.keys.x) {
        multiply_rows<T, D, PART>(by_query, warp.q, memory.key_band + memory.first_of_warp() * PADDED<T, D>);
    }
    barrier();
    if (relative.keys.x) write_products(memory.by_query + number * 16 * BY_QUERY, BY_QUERY, by_query, 0);
    int shared = number % 2 * (2 * PART - PART_OF_KEYS);
    if (relative.queries.x) write_products(memory.by_key + first_key * BY_KEY + first, BY_KEY, by_key, shared);
    barrier();
}

/// Keys and values from `key` on, and the bands that they meet.
template <typename T, int D>
__device__ inline void load_tile(const Memory<T> &memory, const Task<T> &task, const Relative<T> &relative, int key) {
    load_head<T, D, 1, KEYS>(memory.k, task, task.k, key, task.sight.end);
    load_head<T, D, 1, KEYS>(memory.v, task, task.v, key, task.sight.end);
    int least = task.first - (key + KEYS - 1), place = relative.place(least);
    // Rows that no distance of the sequence has may lie behind the table, and are zeros.
    if (relative.keys.x) load_head<T, D, 1, BAND>(memory.key_band, task, relative.keys, place, relative.rows);
    if (relative.queries.x) load_head<T, D, 1, BAND>(memory.query_band, task, relative.queries, place, relative.rows);
    if (threadIdx.x < BAND) memory.steps[threadIdx.x] = relative.place(least + threadIdx.x) - place;
    wait_for_copies();
}

template <typename T, int D> __device__ inline void attend(const Task<T> &task, const Relative<T> &relative) {
    constexpr int TILE = KEYS * PADDED<T, D>, ROWS = BAND * PADDED<T, D>;
    constexpr int PRODUCTS = (QUERIES * BY_QUERY + KEYS * BY_KEY) * sizeof(float) / sizeof(T);
    SHARED(T, tiles, 2 * TILE);
    SHARED(T, bands, 2 * ROWS > PRODUCTS ? 2 * ROWS : PRODUCTS);
    SHARED(int, steps, BAND);
    static_assert(2 * KEYS >= QUERIES, "queries pass through the memory of keys and values");
    float *products = reinterpret_cast<float *>(bands);
    Memory<T> memory = {tiles, tiles + TILE, bands, bands + ROWS, products, products + QUERIES * BY_QUERY, steps};
    Warp<T, D, 1, KEYS> warp;
    load_head<T, D, 1, QUERIES>(tiles, task, task.q, task.first, task.past);
    wait_for_copies();
    barrier();
    warp.load(tiles);
    for (int key = task.sight.start; key < task.sight.end; key += KEYS) {
        auto added = [&](int query, int lane_key) {
            int row = query - task.first, column = lane_key - key;
            const float *by_query = memory.by_query + row * BY_QUERY - memory.first_of_warp();
            const float *by_key = memory.by_key + column * BY_KEY;
            return Added{relative.keys.x ? by_query : nullptr, relative.queries.x ? by_key : nullptr,
                         steps + row - column + KEYS - 1, task.scale};
        };
        barrier();
        load_tile<T, D>(memory, task, relative, key);
        barrier();
        multiply_bands<T, D>(memory, relative, warp);
        if (task.first + warp.first() >= task.past) continue;
        warp.multiply_keys(memory.k);
        warp.weigh(task, key, false, added);
        warp.multiply_values(memory.v);
    }
    warp.divide();
    warp.write(task);
}

} // namespace

#define DISENTANGLED(NAME, T, D)                                                                                       \
    KERNEL(NAME, T *y, const T *q, const T *k, const T *v, const Queries *tiles, const T *keys, const T *queries,      \
           const unsigned *places, int heads, int width, int q_outer, int q_inner, int k_outer, int k_inner,           \
           int v_outer, int v_inner, float scale, int span_middle, int rows) {                                         \
        Queries tile = tiles[blockIdx.x];                                                                              \
        long long head = blockIdx.y;                                                                                   \
        Relative<T> relative = {{keys ? keys + head * width : nullptr, heads * width},                                 \
                                {queries ? queries + head * width : nullptr, heads * width},                           \
                                rows,                                                                                  \
                                places + span_middle,                                                                  \
                                span_middle};                                                                          \
        Head<T> own = {q + head * q_inner, q_outer}, of_keys = {k + head * k_inner, k_outer};                          \
        Head<T> values = {v + head * v_inner, v_outer};                                                                \
        Task<T> task = task_of(tile, QUERIES, own, of_keys, values, y, head, heads, width, scale);                     \
        task.is_wide = task.is_wide && relative.keys.is_wide() && relative.queries.is_wide();                          \
        attend<T, D>(task, relative);                                                                                  \
    }

DISENTANGLED(disentangled_bf16_32, bf16, 32)
DISENTANGLED(disentangled_bf16_64, bf16, 64)
DISENTANGLED(disentangled_f16_32, f16, 32)
DISENTANGLED(disentangled_f16_64, f16, 64)
