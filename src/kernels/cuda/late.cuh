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

    /// A lane's numbers of 16 rows from `first` on, and zeros from `past` on.
    __device__ void load_left(unsigned (&words)[4], int first, int past) const {
        UNROLL for (int i = 0; i < 4; i++) {
            int row = first + threadIdx.x % WARP / 4 + i % 2 * 8;
            const T *numbers = left + static_cast<long long>(row) * stride;
            words[i] = piece_of<2, true>(numbers, place_of_lane(i / 2), row < past ? rank : 0).words[0];
        }
    }

    /// Asks for all numbers of a row, and zeros if it is not there and beyond the ranks, of pieces of 16 bytes; `place(piece)` is
    /// where one comes to.
    template <typename F> __device__ void copy_left(int row, bool is_there, F place) const {
        constexpr int PIECE = 16 / sizeof(T);
        const T *numbers = left + static_cast<long long>(row) * stride;
        UNROLL for (int piece = 0; piece < LATE_RANKS / PIECE; piece++) {
            bool is_read = is_there && piece * PIECE < rank;
            copy_later_or_zeros(place(piece), is_read ? numbers + piece * PIECE : left, is_read);
        }
    }

    /// A lane's right sides of all columns, eight by eight; beyond the ranks they are zeros.
    template <int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        if (is_wide()) load_right<true>(words);
        else load_right<false>(words);
    }

    /// All ranks of a few columns, two a word, and zeros beyond the last one.
    template <int N> __device__ void load_columns(unsigned (&words)[N][LATE_RANKS / 2], int first) const {
        if (is_wide()) load_columns<true>(words, first);
        else load_columns<false>(words, first);
    }

  private:
    /// The first of the two ranks that a lane has of each eight.
    __device__ static int place_of_lane(int half) { return threadIdx.x % 4 * 2 + half * 8; }

    __device__ bool is_wide() const { return reinterpret_cast<unsigned long long>(right) % 4 == 0 && rank % 2 == 0; }

    /// Two ranks of a column, from an even one on.
    template <bool IS_WIDE> __device__ unsigned right_of(int column, int place) const {
        return piece_of<2, IS_WIDE>(right + column * rank, place, rank).words[0];
    }

    template <bool IS_WIDE, int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        UNROLL for (int n = 0; n < N; n++) {
            int column = threadIdx.x % WARP / 4 + n * 8;
            UNROLL for (int half = 0; half < 2; half++) words[n][half] = right_of<IS_WIDE>(column, place_of_lane(half));
        }
    }

    template <bool IS_WIDE, int N>
    __device__ void load_columns(unsigned (&words)[N][LATE_RANKS / 2], int first) const {
        UNROLL for (int n = 0; n < N; n++) {
            UNROLL for (int i = 0; i < LATE_RANKS / 2; i++) words[n][i] = right_of<IS_WIDE>(first + n, 2 * i);
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
