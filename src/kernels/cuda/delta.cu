// How adapters change a projection, y = (y + (x * a^T) * b^T) * factor + shift, for rows of several adapters at once.
// There is little to multiply: what takes time is to wait for memory, so a warp asks for much of it at once, and goes
// through no block's memory where it need not.
#include "delta_product.cuh"

/// What a warp multiplies, of the right side the rows that the lane reads. It is wide where every piece is aligned.
template <typename T> struct Sides {
    Rows<T> left;
    const T *right[Product<T>::RIGHT];
    int width;
    bool is_wide;
};

/// Adds every `step`th part of the depth, from `first` on.
template <int N, int DEPTH, typename T>
__device__ inline void multiply(Product<T> &product, const Sides<T> &sides, int first, int step) {
    if (sides.is_wide) {
        ROLLED for (int depth = first; depth < sides.width; depth += step) {
            product.template add<N, DEPTH, true>(sides.left, sides.right, depth, sides.width);
        }
    } else {
        // The same terms in the same order, by fewer registers.
        ROLLED for (int depth = first; depth < sides.width; depth += step) {
            ROLLED for (int part = depth; part < depth + DEPTH; part += 4 * N) {
                product.template add<N, 4 * N, false>(sides.left, sides.right, part, sides.width);
            }
        }
    }
}

/// A block has a tile.
template <typename T>
__device__ inline void shrink(T *left, const T *x, const Tile *tiles, const Spans &spans, int count, int in,
                              int x_stride, int left_width) {
    constexpr int PIECE = 16 / sizeof(T);
    SHARED(Sums, sums, 1);
    Tile tile = tiles[blockIdx.x];
    int first = blockIdx.y * SIDE, warp = threadIdx.x / WARP;
    Sides<T> sides = {rows_of(x, x_stride, tile), {}, in, false};
    unsigned long long addresses = find_ranks(sides.right, tile, Found(tile, spans, count), spans, count, first, in);
    if (!addresses) return;
    sides.is_wide = (addresses | address_of(x)) % 16 == 0 && (in | x_stride) % PIECE == 0;
    Product<T> product;
    multiply<PIECE, TURN>(product, sides, warp * TURN, WARPS * TURN);
    sums->put(product);
    barrier();
    sums->write(left, tile, first, left_width);
}

/// What becomes of the numbers of a row of the result, of which so many are there.
template <int N> struct Change {
    float factors[N], shifts[N];
    int count;

    /// By an entry's numbers from a column on.
    __device__ Change(const Entry &entry, int column, int columns) : count(columns - column) {
        UNROLL for (int n = 0; n < N; n++) {
            bool is_there = entry.factor && n < count;
            factors[n] = is_there ? reinterpret_cast<const float *>(entry.factor)[column + n] : 1.0f;
            shifts[n] = is_there ? reinterpret_cast<const float *>(entry.shift)[column + n] : 0.0f;
        }
    }

    __device__ float changed(float y, float sum, int n) const { return (y + sum) * factors[n] + shifts[n]; }
};

/// The factors of some rows of `left`, where their ranks begin, and of columns from `first` on.
template <typename T>
__device__ inline Sides<T> sides_of(const T *left, int left_width, const Tile &tile, const Entry &entry, int first,
                                    int columns) {
    const T *b = reinterpret_cast<const T *>(entry.b);
    Rows<T> rows = {left + static_cast<long long>(tile.first) * left_width, left_width, tile.rows - 1};
    bool is_wide = (address_of(left) | entry.b) % (4 * sizeof(T)) == 0 && (left_width | entry.rank) % 4 == 0;
    Sides<T> sides = {rows, {}, entry.rank, is_wide};
    UNROLL for (int j = 0; j < Product<T>::RIGHT; j++) {
        sides.right[j] = b + static_cast<long long>(min(first + Product<T>::right(j), columns - 1)) * entry.rank;
    }
    return sides;
}

/// A block has columns of one span: of spans with columns in common an adapter changes one at most. What is to be changed is
/// asked for before it is known by what.
template <typename T>
__device__ inline void expand(T *y, const T *left, const Tile *tiles, const Spans &spans, int y_stride,
                              int left_width) {
    typedef Product<T> P;
    constexpr int N = P::COLUMNS;
    // The last rows first: the base's product made them last, so they may lie in a cache yet.
    Tile tile = tiles[gridDim.x - 1 - blockIdx.x];
    const Entry *entries = reinterpret_cast<const Entry *>(tile.entries);
    int block = blockIdx.y, number = 0;
    while (block >= (spans.all[number].columns + THREADS - 1) / THREADS) {
        block -= (spans.all[number].columns + THREADS - 1) / THREADS;
        number++;
    }
    Span span = spans.all[number];
    int first = block * THREADS + threadIdx.x / WARP * SIDE, column = first + P::column();
    if (first >= span.columns) return;
    T *own = y + static_cast<long long>(tile.first) * y_stride + span.first;
    bool is_wide = address_of(y + span.first) % sizeof(Piece<N, T>) == 0 && (y_stride | span.columns) % N == 0;
    Piece<N, T> pieces[P::ROWS];
    UNROLL for (int i = 0; i < P::ROWS; i++) {
        const T *row = own + static_cast<long long>(min(P::row(i), tile.rows - 1)) * y_stride;
        pieces[i] = piece_of<N, true>(row, column, is_wide ? span.columns : 0);
    }
    Entry entry = entries[span.site];
    if ((entry.rank == 0 && !entry.factor) || (span.is_late && entry.is_late())) return;
    P product;
    if (entry.rank > 0) {
        multiply<4, 16>(product, sides_of(left + span.rank, left_width, tile, entry, first, span.columns), 0, 16);
    } else {
        // As products do: lanes without a row have read what is another one's to write.
        warp_barrier();
    }
    Change<N> change(entry, column, span.columns);
    UNROLL for (int i = 0; i < P::ROWS; i++) {
        int row = P::row(i);
        if (row >= tile.rows || column >= span.columns) continue;
        T *target = own + static_cast<long long>(row) * y_stride + column;
        if (is_wide) {
            float numbers[N];
            UNROLL for (int n = 0; n < N; n++) numbers[n] = change.changed(pieces[i][n], product.sum(i, n), n);
            write_columns(target, numbers);
        } else {
            UNROLL for (int n = 0; n < N; n++) {
                if (n >= change.count) break;
                target[n] = from_float<T>(change.changed(to_float(target[n]), product.sum(i, n), n));
            }
        }
    }
}

#define DELTA(NAME, T, SHRINKS, EXPANDS)                                                                               \
    CROWDED_KERNEL(SHRINKS, shrink_##NAME, T *left, const T *x, const Tile *tiles, PARAMETER(Spans) spans, int count,  \
                   int in, int x_stride, int left_width) {                                                             \
        shrink(left, x, tiles, spans, count, in, x_stride, left_width);                                                \
    }                                                                                                                  \
    CROWDED_KERNEL(EXPANDS, expand_##NAME, T *y, const T *left, const Tile *tiles, PARAMETER(Spans) spans,             \
                   int y_stride, int left_width) {                                                                     \
        expand(y, left, tiles, spans, y_stride, left_width);                                                           \
    }

DELTA(f32, float, 2, 2)
DELTA(bf16, bf16, 4, 5)
DELTA(f16, f16, 4, 5)
