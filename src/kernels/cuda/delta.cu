// How adapters change a projection, y = (y + (x * a^T) * b^T) * factor + shift, for rows of several adapters at once.
#include "tensor_cores.cuh"

/// Device addresses of what an adapter has at one site: a [rank, in] and b [out, rank], but of rank 0; factor [out] and
/// shift [out], f32 in every type, or 0.
struct Entry {
    unsigned long long a, b, factor, shift;
    int rank, unused;
};

/// Rows that belong to one adapter, at most 64 of them, and the address of its entries, one a site.
struct Tile {
    unsigned long long entries;
    int first, rows;
};

/// A site's columns of the projection's output.
struct Span {
    int site, first, columns, unused;
};

/// Rows and columns of a block's product.
constexpr int SIDE = 64;

/// Numbers of a row that are in a block's memory at once, and the memory of one side of a product.
template <typename T> constexpr int DEPTH = 128 / static_cast<int>(sizeof(T));
template <typename T> constexpr int SIZE = SIDE * PADDED<T, DEPTH<T>>;

/// A thread's part of a product of 64 rows and 64 columns; `row` and `column` say where a sum belongs.
template <typename T> struct Product {
    float sums[8][4] = {};

    __device__ static int row(int, int j) {
        return threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + j / 2 * 8;
    }

    __device__ static int column(int i, int j) { return i * 8 + threadIdx.x % 4 * 2 + j % 2; }

    /// Adds left * right^T of sides that lie in the block's memory: a warp has 16 rows. Only so many rows and columns
    /// are wanted, and behind `depth` there are zeros.
    __device__ void add(const T *left, const T *right, int rows, int columns, int depth) {
        constexpr int STRIDE = PADDED<T, DEPTH<T>>;
        int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * 16;
        if (first >= rows) return;
        // Copies let lanes go their own ways.
        warp_barrier();
        left += (first + lane % 16) * STRIDE + lane / 16 * 8;
        right += (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
        UNROLL for (int d = 0; d < DEPTH<T>; d += 16) {
            if (d >= depth) break;
            unsigned a[4], b[4];
            load_matrices(a, left + d);
            UNROLL for (int n = 0; n < SIDE / 16; n++) {
                if (n * 16 >= columns) break;
                load_matrices(b, right + n * 16 * STRIDE + d);
                multiply_add<T>(sums[2 * n], a, b[0], b[1]);
                multiply_add<T>(sums[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
};

template <> struct Product<float> {
    float sums[8][4] = {};

    __device__ static int row(int i, int) { return threadIdx.x / 16 * 8 + i; }
    __device__ static int column(int, int j) { return threadIdx.x % 16 + 16 * j; }

    __device__ void add(const float *left, const float *right, int rows, int, int depth) {
        constexpr int STRIDE = PADDED<float, DEPTH<float>>;
        if (row(0, 0) >= rows) return;
        left += row(0, 0) * STRIDE;
        right += column(0, 0) * STRIDE;
        for (int d = 0; d < depth; d += 4) {
            float4 b[4];
            UNROLL for (int j = 0; j < 4; j++) b[j] = *reinterpret_cast<const float4 *>(right + 16 * j * STRIDE + d);
            UNROLL for (int i = 0; i < 8; i++) {
                float4 a = *reinterpret_cast<const float4 *>(left + i * STRIDE + d);
                UNROLL for (int j = 0; j < 4; j++) {
                    sums[i][j] += a.x * b[j].x + a.y * b[j].y + a.z * b[j].z + a.w * b[j].w;
                }
            }
        }
    }
};

/// The row of an `a` that makes a column of the result, where the ranks of all spans stand side by side.
template <typename T>
__device__ inline const T *factor_of(const Entry *entries, const Span *spans, int count, int column, int in) {
    for (int i = 0; i < count; i++) {
        const Entry &entry = entries[spans[i].site];
        if (column < entry.rank) return reinterpret_cast<const T *>(entry.a) + static_cast<long long>(column) * in;
        column -= entry.rank;
    }
    return nullptr;
}

/// While one part of the depth is multiplied, the next arrives.
template <typename T>
__device__ inline void shrink(T *left, const T *x, const Tile *tiles, const Span *spans, int count, int in,
                              int x_stride, int left_width) {
    SHARED(const T *, factors, SIDE);
    SHARED(T, memory, 4 * SIZE<T>);
    Tile tile = tiles[blockIdx.x];
    const Entry *entries = reinterpret_cast<const Entry *>(tile.entries);
    int first = blockIdx.y * SIDE, ranks = 0;
    for (int i = 0; i < count; i++) ranks += entries[spans[i].site].rank;
    if (first >= ranks) return;
    if (threadIdx.x < SIDE) factors[threadIdx.x] = factor_of<T>(entries, spans, count, first + threadIdx.x, in);
    barrier();
    auto load = [&](int depth) {
        T *target = memory + depth / DEPTH<T> % 2 * 2 * SIZE<T>;
        auto row_at = [&](int i) {
            return i < tile.rows ? x + static_cast<long long>(tile.first + i) * x_stride : nullptr;
        };
        load_rows<SIDE, DEPTH<T>>(target, row_at, depth, in);
        load_rows<SIDE, DEPTH<T>>(target + SIZE<T>, [&](int i) { return factors[i]; }, depth, in);
    };
    Product<T> product;
    load(0);
    for (int depth = 0; depth < in; depth += DEPTH<T>) {
        wait_for_copies();
        barrier();
        if (depth + DEPTH<T> < in) load(depth + DEPTH<T>);
        const T *own = memory + depth / DEPTH<T> % 2 * 2 * SIZE<T>;
        product.add(own, own + SIZE<T>, tile.rows, ranks - first, min(DEPTH<T>, in - depth));
    }
    UNROLL for (int i = 0; i < 8; i++) {
        UNROLL for (int j = 0; j < 4; j++) {
            int row = product.row(i, j), column = first + product.column(i, j);
            if (row >= tile.rows || column >= ranks) continue;
            left[static_cast<long long>(tile.first + row) * left_width + column] = from_float<T>(product.sums[i][j]);
        }
    }
}

/// Adds to the product what one span gives to the columns from `first` on. `left` is its part of the first row.
template <typename T>
__device__ inline void add_span(Product<T> &product, T *memory, const T *left, const Tile &tile, const Entry &entry,
                                const Span &span, int first, int left_width) {
    const T *b = reinterpret_cast<const T *>(entry.b);
    auto row_at = [&](int i) {
        return i < tile.rows ? left + static_cast<long long>(tile.first + i) * left_width : nullptr;
    };
    auto factor_at = [&](int i) {
        int column = first + i - span.first;
        return column >= 0 && column < span.columns ? b + static_cast<long long>(column) * entry.rank : nullptr;
    };
    for (int depth = 0; depth < entry.rank; depth += DEPTH<T>) {
        barrier();
        load_rows<SIDE, DEPTH<T>>(memory, row_at, depth, entry.rank);
        load_rows<SIDE, DEPTH<T>>(memory + SIZE<T>, factor_at, depth, entry.rank);
        wait_for_copies();
        barrier();
        product.add(memory, memory + SIZE<T>, tile.rows, SIDE, min(DEPTH<T>, entry.rank - depth));
    }
}

/// What becomes of a column after the product.
struct Column {
    float factor, shift;
    int is_touched;
};

/// The one at a place of a site's columns.
__device__ inline Column column_of(const Entry &entry, int place) {
    if (!entry.factor) return {1.0f, 0.0f, entry.rank > 0};
    return {reinterpret_cast<const float *>(entry.factor)[place], reinterpret_cast<const float *>(entry.shift)[place], 1};
}

/// Columns of the result that no span of the adapter changes stay as they are; of spans with columns in common it changes
/// one at most.
template <typename T>
__device__ inline void expand(T *y, const T *left, const Tile *tiles, const Span *spans, int count, int columns,
                              int y_stride, int left_width) {
    SHARED(T, memory, 2 * SIZE<T>);
    SHARED(Column, changes, SIDE);
    Tile tile = tiles[blockIdx.x];
    const Entry *entries = reinterpret_cast<const Entry *>(tile.entries);
    int first = blockIdx.y * SIDE, offset = 0;
    Column own = {1.0f, 0.0f, 0};
    Product<T> product;
    for (int i = 0; i < count; i++) {
        Span span = spans[i];
        Entry entry = entries[span.site];
        if (span.first < first + SIDE && first < span.first + span.columns && (entry.rank > 0 || entry.factor)) {
            add_span(product, memory, left + offset, tile, entry, span, first, left_width);
            int place = first + static_cast<int>(threadIdx.x) - span.first;
            if (threadIdx.x < SIDE && place >= 0 && place < span.columns) own = column_of(entry, place);
        }
        offset += entry.rank;
    }
    if (threadIdx.x < SIDE) changes[threadIdx.x] = own;
    barrier();
    UNROLL for (int i = 0; i < 8; i++) {
        UNROLL for (int j = 0; j < 4; j++) {
            int row = product.row(i, j), column = product.column(i, j);
            Column change = changes[column];
            if (row >= tile.rows || first + column >= columns || !change.is_touched) continue;
            T &target = y[static_cast<long long>(tile.first + row) * y_stride + first + column];
            target = from_float<T>((to_float(target) + product.sums[i][j]) * change.factor + change.shift);
        }
    }
}

#define DELTA(NAME, T)                                                                                                 \
    KERNEL(shrink_##NAME, T *left, const T *x, const Tile *tiles, const Span *spans, int count, int in, int x_stride,  \
           int left_width) {                                                                                           \
        shrink(left, x, tiles, spans, count, in, x_stride, left_width);                                                \
    }                                                                                                                  \
    KERNEL(expand_##NAME, T *y, const T *left, const Tile *tiles, const Span *spans, int count, int columns,           \
           int y_stride, int left_width) {                                                                             \
        expand(y, left, tiles, spans, count, columns, y_stride, left_width);                                           \
    }

DELTA(f32, float)
DELTA(bf16, bf16)
DELTA(f16, f16)
