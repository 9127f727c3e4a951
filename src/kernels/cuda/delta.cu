// How adapters change a projection, y = (y + (x * a^T) * b^T) * factor + shift, for rows of several adapters at once.
// There is little to multiply: what takes time is to wait for memory, so a warp asks for much of it at once, and goes
// through no block's memory where it need not.
#include "delta.cuh"
#include "wide.cuh"

/// Rows that belong to one adapter, at most 32 of them, and the address of its entries, one a site.
struct Tile {
    unsigned long long entries;
    int first, rows;
};

/// A site's columns of the projection's output, where its ranks stand among those of all, as many as any adapter of the batch
/// has there, and whether what can be changed late is.
struct Span {
    int site, first, columns, rank, is_late;
};

/// Sites that a launch is told of. They come with it: to read them from memory would be to wait for them before anything
/// else is known.
struct Spans {
    Span all[8];
};

/// What a launch tells.
static_assert(sizeof(Spans) == 4 * 8 * 5, "delta.rs tells something else");

__device__ inline unsigned long long address_of(const void *x) { return reinterpret_cast<unsigned long long>(x); }

/// Rows and columns of a warp's product.
constexpr int SIDE = 32;
constexpr int WARPS = THREADS / WARP;

/// Rows at equal distances. What is asked for behind the last one is the last one: its sums are not wanted.
template <typename T> struct Rows {
    const T *first;
    long long stride;
    int last;

    __device__ const T *operator[](int i) const { return first + min(i, last) * stride; }
};

/// A lane's part of a product of 32 rows and 32 columns. It reads its numbers where they lie, as many in a row as it can:
/// tensor cores do not care in which order a sum's terms come if it is the same on both sides, nor in which the columns.
template <typename T> struct Product {
    /// Rows of the lane's sums, neighbouring columns of each, and columns that it reads the right side of.
    static constexpr int ROWS = 4, COLUMNS = 8, RIGHT = 4;
    float sums[ROWS / 2][RIGHT][4] = {};

    __device__ static int row(int i) { return threadIdx.x % WARP / 4 + 8 * i; }
    __device__ static int column() { return threadIdx.x % 4 * COLUMNS; }
    __device__ static int right(int i) { return threadIdx.x % WARP / 8 * 8 + 2 * i + threadIdx.x / 4 % 2; }
    __device__ float sum(int i, int n) const { return sums[i / 2][n / 2][i % 2 * 2 + n % 2]; }

    /// Adds what a part of the depth gives, N numbers of a row a lane.
    template <int N, int DEPTH, bool IS_WIDE>
    __device__ void add(const Rows<T> &left, const T *const (&right)[RIGHT], int depth, int width) {
        constexpr int STEPS = DEPTH / (4 * N);
        Piece<N, T> a[STEPS][ROWS], b[STEPS][RIGHT];
        UNROLL for (int s = 0; s < STEPS; s++) {
            int place = depth + (4 * s + threadIdx.x % 4) * N;
            UNROLL for (int i = 0; i < ROWS; i++) a[s][i] = piece_of<N, IS_WIDE>(left[row(i)], place, width);
            UNROLL for (int i = 0; i < RIGHT; i++) b[s][i] = piece_of<N, IS_WIDE>(right[i], place, width);
        }
        // The end of a row lets lanes go their own ways.
        warp_barrier();
        UNROLL for (int s = 0; s < STEPS; s++) {
            UNROLL for (int w = 0; w < N / 2; w += 2) {
                UNROLL for (int i = 0; i < ROWS / 2; i++) {
                    const Piece<N, T> &upper = a[s][2 * i], &lower = a[s][2 * i + 1];
                    unsigned both[4] = {upper.words[w], lower.words[w], upper.words[w + 1], lower.words[w + 1]};
                    UNROLL for (int j = 0; j < RIGHT; j++) {
                        multiply_add<T>(sums[i][j], both, b[s][j].words[w], b[s][j].words[w + 1]);
                    }
                }
            }
        }
    }
};

/// A lane has a column.
template <> struct Product<float> {
    static constexpr int ROWS = SIDE, COLUMNS = 1, RIGHT = 1;
    float sums[ROWS] = {};

    __device__ static int row(int i) { return i; }
    __device__ static int column() { return threadIdx.x % WARP; }
    __device__ static int right(int) { return threadIdx.x % WARP; }
    __device__ float sum(int i, int) const { return sums[i]; }

    template <int N, int DEPTH, bool IS_WIDE>
    __device__ void add(const Rows<float> &left, const float *const (&right)[RIGHT], int depth, int width) {
        // A few rows at a time, so that there are registers for their addresses.
        constexpr int FEW = 8;
        int end = min(depth + DEPTH, width);
        UNROLL for (int first = 0; first < ROWS; first += FEW) {
            ROLLED for (int place = depth; place < end; place += N) {
                Piece<N, float> b = piece_of<N, IS_WIDE>(right[0], place, width);
                UNROLL for (int i = first; i < first + FEW; i++) {
                    Piece<N, float> a = piece_of<N, IS_WIDE>(left[i], place, width);
                    UNROLL for (int n = 0; n < N; n++) sums[i] += a[n] * b[n];
                }
            }
        }
    }
};

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

/// The warps share the depth, and how depends on nothing but the depth.
template <typename T>
__device__ inline void shrink(T *left, const T *x, const Tile *tiles, const Spans &spans, int count, int in,
                              int x_stride, int left_width) {
    constexpr int PIECE = 16 / sizeof(T), DEPTH = 64, STRIDE = SIDE + 1;
    SHARED(float, sums, WARPS * SIDE * STRIDE);
    Tile tile = tiles[blockIdx.x];
    const Entry *entries = reinterpret_cast<const Entry *>(tile.entries);
    int first = blockIdx.y * SIDE, warp = threadIdx.x / WARP;
    Sides<T> sides = {{x + static_cast<long long>(tile.first) * x_stride, x_stride, tile.rows - 1}, {}, in, false};
    unsigned long long addresses = address_of(x);
    bool is_any = false;
    ROLLED for (int i = 0; i < count; i++) {
        int place = first - spans.all[i].rank;
        Entry entry = entries[spans.all[i].site];
        if (entry.rank == 0 || place + SIDE <= 0 || place >= entry.rank) continue;
        const T *a = reinterpret_cast<const T *>(entry.a);
        UNROLL for (int j = 0; j < Product<T>::RIGHT; j++) {
            int rank = place + Product<T>::right(j);
            const T *row = a + static_cast<long long>(min(max(rank, 0), entry.rank - 1)) * in;
            // What is no rank of any site is not wanted, but read all the same.
            sides.right[j] = rank >= 0 || !is_any ? row : sides.right[j];
        }
        addresses |= entry.a;
        is_any = true;
    }
    if (!is_any) return;
    sides.is_wide = addresses % 16 == 0 && (in | x_stride) % PIECE == 0;
    Product<T> product;
    multiply<PIECE, DEPTH>(product, sides, warp * DEPTH, WARPS * DEPTH);
    UNROLL for (int i = 0; i < product.ROWS; i++) {
        float *row = sums + (warp * SIDE + product.row(i)) * STRIDE + product.column();
        UNROLL for (int n = 0; n < product.COLUMNS; n++) row[n] = product.sum(i, n);
    }
    barrier();
    for (int i = threadIdx.x; i < SIDE * SIDE / WIDE; i += THREADS) {
        int row = i / (SIDE / WIDE), column = i % (SIDE / WIDE) * WIDE;
        if (row >= tile.rows || first + column >= left_width) continue;
        float values[WIDE] = {};
        UNROLL for (int j = 0; j < WARPS; j++) {
            UNROLL for (int n = 0; n < WIDE; n++) values[n] += sums[(j * SIDE + row) * STRIDE + column + n];
        }
        // Every site's ranks are a multiple of eight. What is beyond an adapter's own is multiplied by zeros, see late.cuh, or
        // not at all; it is a rank's number once more, so that nothing comes of it.
        write_columns(left + static_cast<long long>(tile.first + row) * left_width + first + column, values);
    }
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
