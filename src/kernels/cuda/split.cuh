// Numbers in 24 bits: one of 16 bits, which is what products take, and how far the number's bits are from those of that
// one, in 256ths of the distance to the next one: less than 128 of them, so that the two together round to the one again.
// So what layers pass on is read and written in three bytes and not in four, by integers: a GPU converts them slowly.
#pragma once

#include "wide.cuh"

/// Bits of an f32 that neither a number of T has nor its rest.
template <typename T> constexpr int BEYOND = 5;
template <> constexpr int BEYOND<bf16> = 8;

template <typename T> __device__ inline float joined(T high, signed char rest) {
    return of_bits(bits_of(to_float(high)) + static_cast<unsigned>(rest * (1 << BEYOND<T>)));
}

/// One less than half of the distance at most, which a number that is as far, or next to no number of T, is too. What is
/// beyond all numbers of T has no rest, and stays so.
template <typename T> __device__ inline signed char rest_of(float x, T high) {
    constexpr unsigned BEYOND_ALL = 0x7f800000u;
    if ((bits_of(to_float(high)) & BEYOND_ALL) == BEYOND_ALL) return 0;
    int distance = static_cast<int>(bits_of(x) - bits_of(to_float(high)) + (1u << (BEYOND<T> - 1)));
    return static_cast<signed char>(min(max(distance >> BEYOND<T>, -127), 127));
}

/// Where such numbers are read from.
template <typename T> struct SplitSource {
    const T *high;
    const signed char *rest;

    __device__ SplitSource operator+(long long count) const { return {high + count, rest + count}; }
    __device__ explicit operator bool() const { return high; }
};

template <int N, typename T> __device__ inline void read_columns(float (&values)[N], SplitSource<T> x) {
    const Few<N, T> high = *reinterpret_cast<const Few<N, T> *>(x.high);
    const Few<N, signed char> rest = *reinterpret_cast<const Few<N, signed char> *>(x.rest);
    for (int i = 0; i < N; i++) values[i] = joined(high.numbers[i], rest.numbers[i]);
}

/// Where they are written to.
template <typename T> struct Split {
    T *high;
    signed char *rest;

    __device__ Split operator+(long long count) const { return {high + count, rest + count}; }

    template <int N> __device__ void write(int column, const float (&values)[N]) const {
        const Few<N, T> few = rounded<T>(values);
        Few<N, signed char> more;
        for (int i = 0; i < N; i++) more.numbers[i] = rest_of(values[i], few.numbers[i]);
        *reinterpret_cast<Few<N, T> *>(high + column) = few;
        *reinterpret_cast<Few<N, signed char> *>(rest + column) = more;
    }
};
