// Changes that are made late: of low rank, of queries, keys and values, by the attention that reads these. Nobody goes through
// them only to change them then. Queries and keys change where attention has them. Values stay as they are: with v + l b^T in
// their place, what weights p gather is p v + (p l) b^T, so left factors l are gathered beside values, as more columns of them.
#pragma once

#include "delta.cuh"

/// A change of the rows of one sequence in a head's columns: += left * right^T, both as products on tensor cores take them.
template <typename T> struct Late {
    /// [tokens, stride], of which every row begins at 16 bytes. Beyond the ranks, up to a multiple of eight of them, there are
    /// numbers of which products want zero times: see shrink, which writes something finite there.
    const T *left;
    /// [columns, rank].
    const T *right;
    int stride;
    /// 0 where there is none.
    int rank;

    /// A lane's numbers of 16 rows from `first` on, and zeros from `past` on. Of a row it has four ranks side by side: products
    /// do not care in which order a sum's terms come if it is the same on both sides.
    __device__ void load_left(unsigned (&words)[4], int first, int past) const {
        UNROLL for (int i = 0; i < 2; i++) {
            int row = first + threadIdx.x % WARP / 4 + i * 8;
            const T *numbers = left + static_cast<long long>(row) * stride;
            Piece<OWN, T> piece = piece_of<OWN, true>(numbers, threadIdx.x % 4 * OWN, row < past ? rank : 0);
            UNROLL for (int half = 0; half < 2; half++) words[i + half * 2] = piece.words[half];
        }
    }

    /// Asks for a row's pieces of 16 bytes, and zeros if it is not there and where a piece has no rank; `place(piece)` is where
    /// one comes to.
    template <typename F> __device__ void copy_left(int row, bool is_there, F place) const {
        constexpr int PIECE = 16 / sizeof(T);
        const T *numbers = left + static_cast<long long>(row) * stride;
        UNROLL for (int piece = 0; piece < LATE_RANKS / PIECE; piece++) {
            bool is_read = is_there && piece * PIECE < rank;
            copy_later_or_zeros(place(piece), is_read ? numbers + piece * PIECE : left, is_read);
        }
    }

    /// What of right sides a lane multiplies these by, of all columns, eight by eight; beyond the ranks they are zeros.
    template <int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        if (is_wide<OWN>()) load_right<true>(words);
        else load_right<false>(words);
    }

    /// The same for left sides of which it has the ranks that products ask for, two by two.
    template <int N> __device__ void load_right_in_order(unsigned (&words)[N][2]) const {
        if (is_wide<2>()) load_right_in_order<true>(words);
        else load_right_in_order<false>(words);
    }

    /// All ranks of a few columns, two a word, and zeros beyond the last one.
    template <int N> __device__ void load_columns(unsigned (&words)[N][LATE_RANKS / 2], int first) const {
        if (is_wide<OWN>()) load_columns<true>(words, first);
        else load_columns<false>(words, first);
    }

    /// The row of a rank in a right side of a row each rank, in the order of load_left.
    __device__ static int row_of(int rank) { return rank / OWN * 2 + rank % 2 + rank % OWN / 2 * 8; }

  private:
    /// Ranks that a lane has of a row.
    static constexpr int OWN = LATE_RANKS / 4;

    template <int N> __device__ bool is_wide() const {
        return reinterpret_cast<unsigned long long>(right) % sizeof(Piece<N, T>) == 0 && rank % N == 0;
    }

    /// Of a column so many ranks from one on.
    template <int N, bool IS_WIDE> __device__ Piece<N, T> right_of(int column, int place) const {
        return piece_of<N, IS_WIDE>(right + column * rank, place, rank);
    }

    template <bool IS_WIDE, int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        UNROLL for (int n = 0; n < N; n++) {
            auto piece = right_of<OWN, IS_WIDE>(threadIdx.x % WARP / 4 + n * 8, threadIdx.x % 4 * OWN);
            UNROLL for (int half = 0; half < 2; half++) words[n][half] = piece.words[half];
        }
    }

    template <bool IS_WIDE, int N> __device__ void load_right_in_order(unsigned (&words)[N][2]) const {
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int half = 0; half < 2; half++) {
                int column = threadIdx.x % WARP / 4 + n * 8, place = threadIdx.x % 4 * 2 + half * 8;
                words[n][half] = right_of<2, IS_WIDE>(column, place).words[0];
            }
        }
    }

    template <bool IS_WIDE, int N>
    __device__ void load_columns(unsigned (&words)[N][LATE_RANKS / 2], int first) const {
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int i = 0; i < LATE_RANKS / 2; i += 2) {
                auto piece = right_of<OWN, IS_WIDE>(first + n, 2 * i);
                UNROLL for (int half = 0; half < 2; half++) words[n][i + half] = piece.words[half];
            }
        }
    }
};

/// A site, or -1, and where its ranks begin in rows of left factors.
struct LateSite {
    int site, rank;
};

/// What attention reads, and which of it changes.
constexpr int QUERY = 0, KEY = 1, VALUE = 2, READ = 3;

/// What a launch is told of sites, and how wide these rows are.
struct LateSites {
    int width;
    LateSite of[READ];
};

static_assert(sizeof(LateSites) == 4 * 7, "late.rs tells something else");

/// The changes of one sequence's queries, keys and values, of a head each.
template <typename T> struct Changes {
    Late<T> of[READ];

    __device__ bool is(int part) const { return of[part].rank > 0; }
};

/// What a launch is told of changes.
template <typename T> struct AllChanges {
    /// [tokens, sites.width].
    const T *left;
    /// Of each sequence the address of its adapter's entries, or 0.
    const unsigned long long *owners;
    LateSites sites;

    /// Of a sequence's owner; a head of queries begins at the one column, and its keys and values at the other.
    __device__ Changes<T> of(unsigned long long owner, int column, int shared) const {
        Late<T> none = {left, nullptr, sites.width, 0};
        if (!owner) return {none, none, none};
        return {at(owner, sites.of[QUERY], column), at(owner, sites.of[KEY], shared), at(owner, sites.of[VALUE], shared)};
    }

  private:
    /// Without a choice, which the others would wait for.
    __device__ Late<T> at(unsigned long long entries, const LateSite &site, int column) const {
        const Entry entry = reinterpret_cast<const Entry *>(entries)[max(site.site, 0)];
        const T *right = reinterpret_cast<const T *>(entry.b) + static_cast<long long>(column) * entry.rank;
        return {left + site.rank, right, sites.width, site.site >= 0 && entry.is_late() ? entry.rank : 0};
    }
};

#define LATE_PARAMETERS(T) const T *left, const unsigned long long *owners, PARAMETER(LateSites) sites

#define LATE(T)                                                                                                        \
    AllChanges<T> { left, owners, sites }
