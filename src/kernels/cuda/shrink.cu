// The left factors of updates where a block has the memory to ask for rows long before it multiplies them, and to keep what an
// adapter multiplies them by: rows go by once, at the rate of the device's memory, if enough of them is on the way always.
// The sums are those of delta.cu, to the bit.
#include "delta_product.cuh"
// For the memory of a launch, and to be compiled for the GPUs that have so much.
#include "warpgroup.cuh"

namespace {

/// Numbers that a thread copies at once, of a turn's columns as a lane has them: those of every row in so many steps.
constexpr int PIECE = 8, STEPS = TURN / (4 * PIECE);

/// Numbers of one turn of every warp. A warp copies what it multiplies itself, so no warp waits for others; neighbours' pieces
/// lie side by side, so that no two of them fall on the same bank.
template <typename T> struct Slot {
    Piece<PIECE, T> pieces[STEPS][4][THREADS];

    /// Where a piece of a row begins, of those that a warp has in a turn.
    __device__ static int column(int turn, int piece) {
        return (turn * WARPS + threadIdx.x / WARP) * TURN + piece * PIECE;
    }

    /// Where the thread of this warp that multiplies a piece of a row finds it.
    __device__ T *place(int row, int piece) {
        int lane = row % 8 * 4 + piece % 4;
        return reinterpret_cast<T *>(&pieces[piece / 4][row / 8][threadIdx.x / WARP * WARP + lane]);
    }

    /// Adds the product of two, which are there.
    __device__ void add_to(Product<T> &product, const Slot &right) const {
        Piece<PIECE, T> a[STEPS][4], b[STEPS][4];
        UNROLL for (int step = 0; step < STEPS; step++) {
            UNROLL for (int i = 0; i < 4; i++) {
                a[step][i] = pieces[step][i][threadIdx.x];
                b[step][i] = right.pieces[step][i][threadIdx.x];
            }
        }
        product.add(a, b);
    }
};

static_assert(sizeof(Slot<bf16>) == 16 << 10 && sizeof(Sums) == 4 * 4 * 32 * 33, "delta.rs gives other memory");

/// What the rows are of, and which tiles' a block has: neighbours, which are mostly of one adapter.
template <typename T> struct Given {
    const T *x;
    int in, stride;
    const Tile *tiles;
    int first, past;

    /// A tile, long before it is looked at: it would be waited for. Past the last one, the last one.
    __device__ Tile tile(int number) const { return tiles[min(number, past - 1)]; }

    /// Turns of a warp at a tile.
    __device__ int turns() const {
        return (in - static_cast<int>(threadIdx.x) / WARP * TURN + (WARPS - 1) * TURN + TURN - 1) / (WARPS * TURN);
    }
};

/// What a thread asks for next: turn after turn of tile after tile.
template <typename T> struct Ahead {
    const Given<T> &given;
    Rows<T> rows;
    Tile next;
    int number, turn, turns;

    __device__ explicit Ahead(const Given<T> &given) : given(given), turns(given.turns()) {
        next = given.tile(given.first);
        begin(given.first);
    }

    /// Asks for a turn, which is a group of copies; none is left where no turn is. Neighbouring lanes have all of a row's pieces,
    /// and memory is asked for whole lines.
    __device__ void ask(Slot<T> &target) {
        if (number < given.past && turns > 0) {
            constexpr int PIECES = TURN / PIECE, ROWS = WARP / PIECES;
            int piece = threadIdx.x % PIECES, column = target.column(turn, piece);
            bool is_there = column < given.in;
            UNROLL for (int i = 0; i < SIDE / ROWS; i++) {
                int row = i * ROWS + threadIdx.x % WARP / PIECES;
                // Of what is not there nothing is read; its address is one of the row's all the same.
                copy_later_or_zeros(target.place(row, piece), rows[row] + (is_there ? column : 0), is_there);
            }
            if (++turn == turns) begin(number + 1);
        }
        end_group_of_copies();
    }

  private:
    __device__ void begin(int tile) {
        number = tile;
        turn = 0;
        rows = rows_of<T>(given.x, given.stride, next);
        next = given.tile(tile + 1);
    }
};

/// Asks for all turns of the rows that a lane reads of an adapter's matrices.
template <bool ARE_ALIGNED, typename T>
__device__ inline void keep(Slot<T> *kept, const T *const (&rows)[4], int turns, int in) {
    ROLLED for (int turn = 0; turn < turns; turn++) {
        UNROLL for (int step = 0; step < STEPS; step++) {
            int piece = step * 4 + threadIdx.x % 4, column = kept->column(turn, piece);
            UNROLL for (int j = 0; j < 4; j++) {
                T *place = kept[turn].place(Product<T>::row(j), piece);
                if (!ARE_ALIGNED) copy_piece(place, rows[j] + column, in - column);
                else copy_later_or_zeros(place, rows[j] + (column < in ? column : 0), column < in);
            }
        }
    }
}

/// So many turns are on the way; the memory of a launch has room for these, for the sums, and for an adapter's turns.
template <int AHEAD, typename T>
__device__ inline void shrink_ahead(char *memory, T *left, const Given<T> &given, const Spans &spans, int count,
                                    int left_width) {
    Sums &sums = *reinterpret_cast<Sums *>(memory);
    Slot<T> *coming = reinterpret_cast<Slot<T> *>(memory + sizeof sums), *kept = coming + AHEAD;
    // What the first tile's adapter has is asked for before its rows are; of every other one while the tile before is multiplied.
    Tile following = given.tile(given.first), coming_after = given.tile(given.first + 1);
    Found found(following, spans, count);
    Ahead<T> ahead(given);
    UNROLL for (int i = 0; i < AHEAD; i++) ahead.ask(coming[i]);
    unsigned long long entries = 0, addresses = 0;
    int next = 0;
    ROLLED for (int number = given.first; number < given.past; number++) {
        Tile tile = following;
        following = coming_after;
        coming_after = given.tile(number + 2);
        if (tile.entries != entries) {
            const T *rows[4];
            entries = tile.entries;
            addresses = find_ranks(rows, tile, found, spans, count, blockIdx.y * SIDE, given.in);
            if (addresses) {
                // Rows have as many numbers as fill such pieces.
                bool are_aligned = addresses % sizeof(Piece<PIECE, T>) == 0;
                if (are_aligned) keep<true>(kept, rows, ahead.turns, given.in);
                else keep<false>(kept, rows, ahead.turns, given.in);
            }
            wait_for_copies();
        }
        found = Found(following, spans, count);
        // What was kept and written lets lanes go their own ways.
        warp_barrier();
        Product<T> product;
        ROLLED for (int turn = 0; turn < ahead.turns; turn++) {
            wait_for_older_copies<AHEAD - 1>();
            // Every lane's copies are there, and then every lane has read them.
            warp_barrier();
            coming[next].add_to(product, kept[turn]);
            warp_barrier();
            ahead.ask(coming[next]);
            next = next + 1 == AHEAD ? 0 : next + 1;
        }
        // Sums of the tile before are written.
        barrier();
        sums.put(product);
        barrier();
        // What an adapter without any of these ranks was multiplied by is not wanted.
        if (addresses) sums.write(left, tile, blockIdx.y * SIDE, left_width);
    }
}

/// The first tile of a block, or of one so many behind it: the first blocks have one more where they cannot all have as many.
__device__ inline int first_of_block(int tile_count, int behind = 0) {
    int blocks = gridDim.x, block = blockIdx.x + behind;
    return tile_count / blocks * block + min(block, tile_count % blocks);
}

} // namespace

#define SHRINK_AHEAD(NAME, T)                                                                                          \
    CROWDED_KERNEL(2, shrink_ahead_##NAME, T *left, const T *x, const Tile *tiles, PARAMETER(Spans) spans, int count,  \
                   int in, int x_stride, int left_width, int tile_count) {                                             \
        ALL_SHARED(memory);                                                                                            \
        Given<T> given = {x, in, x_stride, tiles, first_of_block(tile_count), first_of_block(tile_count, 1)};          \
        /* delta.rs knows it too. */                                                                                   \
        if (in <= 3 * WARPS * TURN) shrink_ahead<3>(memory, left, given, spans, count, left_width);                    \
        else shrink_ahead<2>(memory, left, given, spans, count, left_width);                                           \
    }

SHRINK_AHEAD(bf16, bf16)
SHRINK_AHEAD(f16, f16)
