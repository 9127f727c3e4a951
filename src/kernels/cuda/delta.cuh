// What an adapter changes, as kernels are told of it, and how they read it.
#pragma once

#include "tensor_cores.cuh"

/// Ranks of a change that is made late, at most.
constexpr int LATE_RANKS = 16;

/// Device addresses of what an adapter has at one site: a [rank, in] and b [out, rank], but of rank 0; factor [out] and
/// shift [out], f32 in every type, or 0.
struct Entry {
    unsigned long long a, b, factor, shift;
    int rank, unused;

    /// Whether it is one that attention makes itself, where it may; factors.rs knows it too. All is read at once, whatever the rank.
    __device__ bool is_late() const { return (rank > 0) & (rank <= LATE_RANKS) & !factor; }
};

/// The n-th number in 32 bits.
template <typename T> __device__ inline float number_of(unsigned word, int n) {
    unsigned bits = word >> n * 16;
    T number;
    memcpy(&number, &bits, sizeof number);
    return to_float(number);
}

/// Neighbouring numbers of a row. They are not parted before they are needed: that would be to wait for them.
template <int N, typename T> struct alignas(N * sizeof(T)) Piece {
    unsigned words[N * sizeof(T) / 4];

    __device__ float operator[](int n) const {
        constexpr int EACH = 4 / sizeof(T);
        return number_of<T>(words[n / EACH], n % EACH);
    }
};

/// Those of a row from a place on, and zeros behind its end. Wide, they are aligned, and the end is not among them.
template <int N, bool IS_WIDE, typename T> __device__ inline Piece<N, T> piece_of(const T *row, int place, int width) {
    Piece<N, T> piece = {};
    if (IS_WIDE) {
        if (place < width) piece = *reinterpret_cast<const Piece<N, T> *>(row + place);
    } else {
        T numbers[N];
        UNROLL for (int n = 0; n < N; n++) numbers[n] = place + n < width ? row[place + n] : from_float<T>(0.0f);
        memcpy(&piece, numbers, sizeof piece);
    }
    return piece;
}
