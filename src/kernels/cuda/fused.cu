// A projection in one launch: y = f(((x * w^T + bias) + (x * a^T) * b^T) * factor + shift), with x * a^T as shrink left it;
// or f of one half of the columns times the other half.
//
// A block has columns of y, and keeps the whole rows of w that they are made of. The rows of x come by, 64 at a time: four
// warps bring them, and of the other eight, which go by fours, some multiply while the others do what follows a product
// with the rows before. So tensor cores need not wait for an activation, and every number of y is written once.
#include "activation.cuh"
#include "delta.cuh"
#include "warpgroup.cuh"
#include "wide.cuh"

namespace {

/// One warpgroup brings rows, the others multiply.
constexpr int MULTIPLYING = 2;
constexpr int BLOCK = (1 + MULTIPLYING) * WARPGROUP;

/// Stages of rows that nobody is told of when the next is asked for.
constexpr int ON_THEIR_WAY = 2;

/// Neighbouring columns of y that a thread has, of so many in a row; four times, of two rows.
constexpr int OWN = 8, PART = 32, PARTS = RIGHT_ROWS / PART;

/// Columns of a block, of each half where one gates the other, and sums of a thread of them.
constexpr int HALF = RIGHT_ROWS / 2, HALF_SUMS = SUMS / 2;

/// Rows of which a table says where their tiles begin.
constexpr int ROWS_OF_WARP = 16;

/// Numbers of a stage.
constexpr int STAGE = LEFT_ROWS * DEPTH;

/// Which column of the block's the sums i of a thread are of, so that every thread has OWN neighbouring ones: products do
/// not care which row of w stands where. Eight after eight they are of the lanes' numbers modulo 4, two of each.
__device__ inline int column_of(int place) {
    int eight = place / 8, lane = place % 8 / 2;
    return eight / 4 * PART + lane * OWN + eight % 4 * 2 + place % 2;
}

template <typename T> struct Fused {
    T *y;
    const T *x, *w;
    /// May be null.
    const T *bias;
    int activation, gate, rows, inputs, outputs, x_stride, w_stride, y_stride, stages;
};

/// Which of a product's columns a block has: some in a row, or half as many of each half where the one gates the other.
struct Columns {
    int first, end;
    /// What the second half of them adds to that, and how far it is from the first among the block's.
    int apart, back;

    template <typename T>
    __device__ explicit Columns(const Fused<T> &fused)
        : first(blockIdx.x * (fused.gate ? HALF : RIGHT_ROWS)), end(fused.gate ? fused.outputs / 2 : fused.outputs),
          apart(fused.gate ? fused.outputs / 2 - HALF : 0), back(fused.gate ? HALF : 0) {}

    /// The product's column of one of the block's.
    __device__ int at(int own) const { return first + own + (own >= HALF ? apart : 0); }

    /// Whether there is one.
    __device__ bool has(int own) const { return first + own - (own >= HALF ? back : 0) < end; }

    /// Whether some are a span's.
    __device__ bool meet(const Span &span) const { return meet(span, 0) || meet(span, HALF); }

    __device__ bool meet(const Span &span, int own) const {
        return span.first < at(own) + HALF && span.first + span.columns > at(own);
    }
};

/// The changes of a batch; without any there are no tiles.
template <typename T> struct Changes {
    const T *left;
    const Tile *tiles;
    /// For every ROWS_OF_WARP rows the number of the first tile that has one of them or of later ones.
    const unsigned *starts;
    const Span *spans;
    int tile_count, start_count, touched, left_width;
};

/// Counters of the block: of a stage's rows that they are there, and that they are no longer needed; of a warpgroup that
/// the next rows are its. Without the last it would wait for what comes rounds later, and rounds are told apart by their
/// parity alone.
struct Counters {
    Counter *there, *read, *next;
};

/// The block's rows of w, DEPTH columns after DEPTH columns; rows beyond the last are zeros.
template <typename T> __device__ inline void load_weights(T *weights, const Fused<T> &fused, const Columns &columns) {
    int pieces = fused.inputs / OWN;
    for (int i = threadIdx.x; i < RIGHT_ROWS * pieces; i += BLOCK) {
        int place = i / pieces, piece = i % pieces, own = column_of(place);
        bool is_there = columns.has(own);
        long long row = is_there ? columns.at(own) : 0;
        const T *source = fused.w + row * fused.w_stride + piece * OWN;
        char *part = reinterpret_cast<char *>(weights + piece / (DEPTH / OWN) * RIGHT_ROWS * DEPTH);
        copy_later_or_zeros(part + place_of(place, piece % (DEPTH / OWN)), source, is_there);
    }
}

/// Brings the rows of every tile of the block's.
template <typename T> __device__ inline void bring(T *stages, const Counters &counters, const Fused<T> &fused) {
    Bringer<ON_THEIR_WAY> bringer(counters.there, counters.read, fused.stages);
    for (int first = blockIdx.y * LEFT_ROWS; first < fused.rows; first += gridDim.y * LEFT_ROWS) {
        for (int column = 0; column < fused.inputs; column += DEPTH) {
            const T *x = fused.x + static_cast<long long>(first) * fused.x_stride + column;
            bringer.bring([&](int stage) {
                copy_matrix<LEFT_ROWS>(stages + stage * STAGE, x, fused.x_stride, fused.rows - first);
            });
        }
    }
    bringer.end();
}

/// The product of the rows whose turn it is and the block's rows of w; who has the next rows may begin with them as soon as
/// all of these are there.
template <typename T>
__device__ inline void multiply(float (&sums)[SUMS], const T *weights, const T *stages, const Counters &counters,
                                const Fused<T> &fused, Turn turn, Counter &next) {
    int before = 0;
    for (int column = 0; column < fused.inputs; column += DEPTH) {
        counters.there[turn.stage].wait(turn.parity);
        multiply_depth(sums, stages + turn.stage * STAGE, weights + column * RIGHT_ROWS, column > 0);
        if (column > 0) {
            wait_for_older_products<1>();
            arrive(counters.read[before]);
        }
        before = turn.stage;
        turn.advance(1, fused.stages);
    }
    arrive(next);
    wait_for_older_products<0>();
    arrive(counters.read[before]);
}

/// A sum's row among its warp's, of the sums 4 * i to 4 * i + 3 the last two being 8 rows further.
__device__ inline int row_of(int sum) { return threadIdx.x % WARP / 4 + sum / 2 % 2 * 8; }

/// A sum's column among the block's.
__device__ inline int column_of_sum(int sum) { return column_of(sum / 4 * 8 + threadIdx.x % 4 * 2 + sum % 2); }

/// The first tile that has rows of a warp's, and what it changes of the block's first span that is changed at all. It is
/// read before the rows' product is made: memory takes as long as that.
struct Known {
    int number;
    Tile tile;
    Entry entry;
    /// Ranks of the spans before.
    int before;
};

/// What a tile's adapter has at a span's site, and the ranks that it has at those before.
template <typename T>
__device__ inline void look(Known &known, const Changes<T> &changes, int number) {
    const Entry *entries = reinterpret_cast<const Entry *>(known.tile.entries);
    known.before = 0;
    ROLLED for (int i = 0; i < number; i++) known.before += entries[changes.spans[i].site].rank;
    known.entry = entries[changes.spans[number].site];
}

/// No tile where there is no change of these rows, or of these columns.
template <typename T>
__device__ inline Known look_ahead(const Changes<T> &changes, int first_row, int first_span) {
    Known known = {};
    int block = first_row / ROWS_OF_WARP;
    known.number = changes.tile_count;
    if (changes.touched >> first_span == 0 || block >= changes.start_count) return known;
    known.number = changes.starts[block];
    known.tile = changes.tiles[known.number];
    look(known, changes, first_span);
    return known;
}

/// Adds a change of low rank to the rows of a warp that it is of, and to the columns of a span.
template <typename T, bool IS_WIDE>
__device__ inline void add_update(float (&sums)[SUMS], const T *left, int left_width, const Known &known, int first_row,
                                  const Span &span, const Columns &columns) {
    constexpr int RANKS = 16, EACH = 4;
    const Tile &tile = known.tile;
    const Entry &entry = known.entry;
    const T *b = reinterpret_cast<const T *>(entry.b);
    ROLLED for (int rank = 0; rank < entry.rank; rank += RANKS) {
        int place = rank + threadIdx.x % 4 * EACH;
        Piece<EACH, T> rows[2];
        UNROLL for (int i = 0; i < 2; i++) {
            int row = first_row + row_of(2 * i);
            bool is_own = row >= tile.first && row < tile.first + tile.rows;
            const T *source = left + static_cast<long long>(is_own ? row : tile.first) * left_width;
            rows[i] = piece_of<EACH, IS_WIDE>(source, place, is_own ? entry.rank : 0);
        }
        unsigned a[4] = {rows[0].words[0], rows[1].words[0], rows[0].words[1], rows[1].words[1]};
        UNROLL for (int eight = 0; eight < RIGHT_ROWS / 8; eight++) {
            int column = columns.at(column_of(eight * 8 + threadIdx.x % WARP / 4)) - span.first;
            bool is_own = column >= 0 && column < span.columns;
            const T *source = b + static_cast<long long>(is_own ? column : 0) * entry.rank;
            Piece<EACH, T> piece = piece_of<EACH, IS_WIDE>(source, place, is_own ? entry.rank : 0);
            warp_barrier();
            float(&four)[4] = *reinterpret_cast<float(*)[4]>(sums + 4 * eight);
            multiply_add<T>(four, a, piece.words[0], piece.words[1]);
        }
    }
}

/// Multiplies and shifts the columns of a span, of the rows of a tile.
__device__ inline void change_columns(float (&sums)[SUMS], const Known &known, int first_row, const Span &span,
                                      const Columns &columns) {
    const Tile &tile = known.tile;
    const Entry &entry = known.entry;
    const float *factor = reinterpret_cast<const float *>(entry.factor);
    const float *shift = reinterpret_cast<const float *>(entry.shift);
    UNROLL for (int i = 0; i < SUMS; i++) {
        int row = first_row + row_of(i), column = columns.at(column_of_sum(i)) - span.first;
        bool is_own = row >= tile.first && row < tile.first + tile.rows && column >= 0 && column < span.columns;
        if (is_own) sums[i] = sums[i] * factor[column] + shift[column];
    }
}

/// Whether a span is changed and has columns of the block's.
template <typename T> __device__ inline bool is_here(const Changes<T> &changes, int number, const Columns &columns) {
    return changes.touched >> number & 1 && columns.meet(changes.spans[number]);
}

/// What the adapters of a warp's rows make of its sums, to which the bias is added already.
template <typename T>
__device__ inline void change(float (&sums)[SUMS], const Changes<T> &changes, Known known, int first_row,
                              int first_span, const Columns &columns) {
    ROLLED for (int i = known.number; i < changes.tile_count; i++) {
        if (i > known.number) known.tile = changes.tiles[i];
        if (known.tile.first >= first_row + ROWS_OF_WARP) break;
        ROLLED for (int number = first_span; changes.touched >> number > 0; number++) {
            if (!is_here(changes, number, columns)) continue;
            Span span = changes.spans[number];
            if (i > known.number || number > first_span) look(known, changes, number);
            const T *left = changes.left + known.before;
            if (known.entry.rank > 0) {
                bool is_wide = (address_of(left) | known.entry.b) % (4 * sizeof(T)) == 0 &&
                               (changes.left_width | known.entry.rank) % 4 == 0;
                if (is_wide) {
                    add_update<T, true>(sums, left, changes.left_width, known, first_row, span, columns);
                } else {
                    add_update<T, false>(sums, left, changes.left_width, known, first_row, span, columns);
                }
            }
            if (known.entry.factor) change_columns(sums, known, first_row, span, columns);
        }
    }
}

/// The first of the neighbouring columns that a thread has in a part of the block's.
__device__ inline int own_column(int part) { return part * PART + threadIdx.x % 4 * OWN; }

/// A thread's sum of one of these, of the first row or the second.
__device__ inline int sum_of(int part, int i, int half) { return part * 16 + i / 2 * 4 + half * 2 + i % 2; }

/// Adds the bias to a thread's sums, where there is one.
template <typename T>
__device__ inline void add_bias(float (&sums)[SUMS], const Fused<T> &fused, const Columns &columns) {
    if (!fused.bias) return;
    UNROLL for (int part = 0; part < PARTS; part++) {
        float values[OWN] = {};
        if (columns.has(own_column(part))) read_columns(values, fused.bias + columns.at(own_column(part)));
        UNROLL for (int i = 0; i < OWN; i++) {
            UNROLL for (int half = 0; half < 2; half++) sums[sum_of(part, i, half)] += values[i];
        }
    }
}

/// The activations that are worth their code.
template <int COUNT> __device__ inline void apply_some(float (&sums)[COUNT], int activation) {
    switch (activation) {
    case GELU: return map(sums, gelu);
    case GELU_TANH: return map(sums, gelu_tanh);
    case SILU: return map(sums, [](float x) { return x * sigmoid(x); });
    default: return map(sums, [](float x) { return x < 0.0f ? 0.0f : x; });
    }
}

/// An activation of sums as they would have been written without it, of all or of one half, which the other multiplies: the
/// first half then has the results.
template <typename T> __device__ inline void activate(float (&sums)[SUMS], int activation, int gate) {
    if (activation < 0) return;
    map(sums, [](float x) { return to_float(from_float<T>(x)); });
    if (!gate) return apply_some(sums, activation);
    float active[HALF_SUMS];
    UNROLL for (int i = 0; i < HALF_SUMS; i++) active[i] = gate == OF_FIRST ? sums[i] : sums[HALF_SUMS + i];
    apply_some(active, activation);
    UNROLL for (int i = 0; i < HALF_SUMS; i++) sums[i] = active[i] * (gate == OF_FIRST ? sums[HALF_SUMS + i] : sums[i]);
}

/// Columns from a place on, of the rows that are there.
template <typename T>
__device__ inline void write(const float (&sums)[SUMS], const Fused<T> &fused, int first_row, const Columns &columns) {
    UNROLL for (int half = 0; half < 2; half++) {
        int row = first_row + row_of(2 * half);
        UNROLL for (int part = 0; part < PARTS; part++) {
            if (fused.gate && part >= PARTS / 2) break;
            float values[OWN];
            UNROLL for (int i = 0; i < OWN; i++) values[i] = sums[sum_of(part, i, half)];
            if (row < fused.rows && columns.has(own_column(part))) {
                T *y = fused.y + static_cast<long long>(row) * fused.y_stride;
                write_columns(y + columns.first + own_column(part), values);
            }
        }
    }
}

template <typename T> __device__ inline void project(const Fused<T> &fused, const Changes<T> &changes) {
    ALL_SHARED(memory);
    T *weights = reinterpret_cast<T *>(memory), *stages = weights + fused.inputs * RIGHT_ROWS;
    Counter *there = reinterpret_cast<Counter *>(stages + fused.stages * STAGE);
    Counters counters = {there, there + fused.stages, there + 2 * fused.stages};
    int group = threadIdx.x / WARPGROUP;
    Columns columns(fused);
    if (threadIdx.x < 2 * fused.stages + MULTIPLYING) there[threadIdx.x].begin(WARPGROUP / WARP);
    load_weights(weights, fused, columns);
    wait_for_copies();
    show_to_products();
    barrier();
    if (group == 0) {
        keep_registers<40>();
        bring(stages, counters, fused);
        return;
    }
    take_registers<232>();
    // The rows of a multiplying warpgroup are those of every second tile of the block's.
    int number = group - 1, depths = fused.inputs / DEPTH, step = gridDim.y * LEFT_ROWS;
    Turn turn;
    turn.advance(number * depths, fused.stages);
    int first_span = 0;
    while (changes.touched >> first_span > 0 && !is_here(changes, first_span, columns)) first_span++;
    // The first rows are the first's without a word.
    int parity = number == 0 ? 1 : 0;
    for (int first = blockIdx.y * LEFT_ROWS + number * step; first < fused.rows; first += MULTIPLYING * step) {
        int first_row = first + threadIdx.x % WARPGROUP / WARP * ROWS_OF_WARP;
        Known known = look_ahead(changes, first_row, first_span);
        float sums[SUMS];
        counters.next[number].wait(parity);
        parity ^= 1;
        multiply(sums, weights, stages, counters, fused, turn, counters.next[(number + 1) % MULTIPLYING]);
        turn.advance(MULTIPLYING * depths, fused.stages);
        add_bias(sums, fused, columns);
        change(sums, changes, known, first_row, first_span, columns);
        activate<T>(sums, fused.activation, fused.gate);
        write(sums, fused, first_row, columns);
    }
}

} // namespace

#define FUSED(NAME, T)                                                                                                 \
    LONE_KERNEL(BLOCK, NAME, T *y, const T *x, const T *w, const T *bias, int activation, int gate, int rows,          \
                int inputs, int outputs, int x_stride, int w_stride, int y_stride, int stages, const T *left,          \
                const Tile *tiles, const unsigned *starts, const Span *spans, int tile_count, int start_count,         \
                int touched, int left_width) {                                                                         \
        Fused<T> fused = {y,      x,       w,        bias,     activation, gate,  rows,                                \
                          inputs, outputs, x_stride, w_stride, y_stride,   stages};                                    \
        Changes<T> changes = {left, tiles, starts, spans, tile_count, start_count, touched, left_width};               \
        project(fused, changes);                                                                                       \
    }

FUSED(fused_bf16, bf16)
FUSED(fused_f16, f16)
