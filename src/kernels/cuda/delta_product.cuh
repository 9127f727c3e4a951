// What the kernels of delta.cu and shrink.cu share: the rows and sites they are told of, and products of a few rows with what
// an adapter has.
#pragma once

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

/// Where the warps of a block share the depth they take turns by so much: how depends on nothing but the depth.
constexpr int TURN = 64;

/// Rows at equal distances. What is asked for behind the last one is the last one: its sums are not wanted.
template <typename T> struct Rows {
    const T *first;
    long long stride;
    int last;

    __device__ const T *operator[](int i) const { return first + min(i, last) * stride; }
};

/// A tile's of a matrix.
template <typename T> __device__ inline Rows<T> rows_of(const T *x, long long stride, const Tile &tile) {
    return {x + tile.first * stride, stride, tile.rows - 1};
}

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
        add(a, b);
    }

    /// Adds what pieces of the lane's rows give, of so many steps.
    template <int N, int STEPS>
    __device__ void add(const Piece<N, T> (&left)[STEPS][ROWS], const Piece<N, T> (&right)[STEPS][RIGHT]) {
        UNROLL for (int s = 0; s < STEPS; s++) {
            UNROLL for (int w = 0; w < N / 2; w += 2) {
                UNROLL for (int i = 0; i < ROWS / 2; i++) {
                    const Piece<N, T> &upper = left[s][2 * i], &lower = left[s][2 * i + 1];
                    unsigned both[4] = {upper.words[w], lower.words[w], upper.words[w + 1], lower.words[w + 1]};
                    UNROLL for (int j = 0; j < RIGHT; j++) {
                        multiply_add<T>(sums[i][j], both, right[s][j].words[w], right[s][j].words[w + 1]);
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

/// What a tile's adapter has at a few of a launch's sites, from one on: all are asked for at once, and without a choice, which the
/// next ones would wait for. Behind the last one it is the last.
struct Found {
    static constexpr int FEW = 2;
    unsigned long long a[FEW];
    int ranks[FEW];

    __device__ Found(const Tile &tile, const Spans &spans, int count, int begin = 0) {
        UNROLL for (int i = 0; i < FEW; i++) {
            const Entry &entry = reinterpret_cast<const Entry *>(tile.entries)[spans.all[min(begin + i, count - 1)].site];
            a[i] = entry.a;
            ranks[i] = entry.rank;
        }
    }
};

/// Points to the rows of matrices `a` of a tile's adapter whose ranks stand from `first` on, those that a lane reads. What it has at
/// the first sites was asked for before. Gives the matrices' addresses, all bits of them in one; 0 where there are none.
template <typename T, int N>
__device__ inline unsigned long long find_ranks(const T *(&rows)[N], const Tile &tile, Found found, const Spans &spans,
                                                int count, int first, int in) {
    unsigned long long addresses = 0;
    ROLLED for (int begin = 0; begin < count; begin += Found::FEW) {
        if (begin > 0) found = Found(tile, spans, count, begin);
        UNROLL for (int i = 0; i < Found::FEW; i++) {
            int place = first - spans.all[min(begin + i, count - 1)].rank, ranks = found.ranks[i];
            bool is_among = begin + i < count && ranks > 0 && place + SIDE > 0 && place < ranks;
            UNROLL for (int j = 0; j < N; j++) {
                int rank = place + Product<T>::right(j);
                long long row = min(max(rank, 0), ranks - 1);
                // What is no rank of any site is not wanted, but read all the same.
                bool is_read = is_among && (rank >= 0 || !addresses);
                rows[j] = is_read ? reinterpret_cast<const T *>(found.a[i]) + row * in : rows[j];
            }
            addresses |= is_among ? found.a[i] : 0;
        }
    }
    return addresses;
}

/// What the warps of a block make of a tile, each of its part of the depth.
struct Sums {
    float all[WARPS][SIDE][SIDE + 1];

    template <typename T> __device__ void put(const Product<T> &product) {
        UNROLL for (int i = 0; i < product.ROWS; i++) {
            float *row = all[threadIdx.x / WARP][product.row(i)] + product.column();
            UNROLL for (int n = 0; n < product.COLUMNS; n++) row[n] = product.sum(i, n);
        }
    }

    /// Adds and writes those of the tile's rows, of ranks from `first` on. After a barrier.
    template <typename T> __device__ void write(T *left, const Tile &tile, int first, int left_width) const {
        for (int i = threadIdx.x; i < SIDE * SIDE / WIDE; i += THREADS) {
            int row = i / (SIDE / WIDE), column = i % (SIDE / WIDE) * WIDE;
            if (row >= tile.rows || first + column >= left_width) continue;
            float values[WIDE] = {};
            UNROLL for (int j = 0; j < WARPS; j++) {
                UNROLL for (int n = 0; n < WIDE; n++) values[n] += all[j][row][column + n];
            }
            // Every site's ranks are a multiple of eight. What is beyond an adapter's own is multiplied by zeros, see
            // late.cuh, or not at all; it is a rank's number once more, so that nothing comes of it.
            write_columns(left + static_cast<long long>(tile.first + row) * left_width + first + column, values);
        }
    }
};
