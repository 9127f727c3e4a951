// Changes that are made late: of low rank, of queries, keys and values, by the attention that reads these, where it has them
// in its block's memory. Nobody goes through them only to change them then.
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

    /// Those of all columns, eight by eight; beyond the ranks they are zeros.
    template <int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        if (is_wide()) load_right<true>(words);
        else load_right<false>(words);
    }

    /// Ranks that a lane has of a row.
    static constexpr int OWN = LATE_RANKS / 4;

    /// Of one column the ranks that a lane of a place among four has of every left side, and zeros beyond the last one.
    __device__ Piece<OWN, T> right_of(int column, int place) const {
        return is_wide() ? right_of<true>(column, place) : right_of<false>(column, place);
    }

    /// Where products look for the i-th of these ranks in a right side that has a row each.
    __device__ static int row_of(int place, int i) { return place * 2 + i % 2 + i / 2 * 8; }

  private:
    __device__ bool is_wide() const {
        return reinterpret_cast<unsigned long long>(right) % sizeof(Piece<OWN, T>) == 0 && rank % OWN == 0;
    }

    template <bool IS_WIDE> __device__ Piece<OWN, T> right_of(int column, int place) const {
        return piece_of<OWN, IS_WIDE>(right + column * rank, place * OWN, rank);
    }

    template <bool IS_WIDE, int N> __device__ void load_right(unsigned (&words)[N][2]) const {
        UNROLL for (int n = 0; n < N; n++) {
            Piece<OWN, T> piece = right_of<IS_WIDE>(threadIdx.x % WARP / 4 + n * 8, threadIdx.x % 4);
            UNROLL for (int half = 0; half < 2; half++) words[n][half] = piece.words[half];
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

    __device__ bool is_any() const { return of[QUERY].rank > 0 || are_keys_or_values(); }
    __device__ bool are_keys_or_values() const { return of[KEY].rank > 0 || of[VALUE].rank > 0; }
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
