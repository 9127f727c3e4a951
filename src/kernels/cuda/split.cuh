// Numbers in 24 bits: one of 16 bits, which is what products take, and how far the number's bits are from those of that
// one, in 256ths of the distance to the next one: less than 128 of them, so that the two together round to the one again.
// So what layers pass on is read and written in three bytes and not in four, by integers: a GPU converts them slowly.
#pragma once

#include "wide.cuh"

/// Bits of an f32 that neither a number of T has nor its rest.
template <typename T> constexpr int BEYOND = 5;
template <> constexpr int BEYOND<bf16> = 8;

/// All bits of the exponent, which a number of T has that is none or beyond all others, of two side by side.
template <typename T> constexpr unsigned EXPONENTS = 0x7c007c00u;
template <> constexpr unsigned EXPONENTS<bf16> = 0x7f807f80u;

template <typename T> __device__ inline float joined(float high, signed char rest) {
    return of_bits(bits_of(high) + static_cast<unsigned>(rest * (1 << BEYOND<T>)));
}

/// The rest in bits 8 to 15: one less than half of the distance at most, which a number that is as far, or next to no
/// number of T, is too.
template <typename T> __device__ inline unsigned shifted_rest_of(float x, float high) {
    constexpr int ONE = 1 << BEYOND<T>;
    int distance = static_cast<int>(bits_of(x) - bits_of(high) + ONE / 2);
    return static_cast<unsigned>(min(max(distance, -127 * ONE), 128 * ONE - 1)) << (8 - BEYOND<T>);
}

/// The rests of four numbers, a byte each. What is beyond all numbers of T has none, and stays so. Nothing depends on a
/// choice, and what can be is done for two or four at once: with so little memory to wait for, instructions count.
template <typename T> __device__ inline unsigned rests_of(const float (&values)[4], const Few<4, T> &few) {
    float high[4];
    unsigned rests[4], pairs[2];
    unpack(high, few);
    for (int i = 0; i < 4; i++) rests[i] = shifted_rest_of<T>(values[i], high[i]);
    // The second byte of each.
    unsigned all = bytes_of(bytes_of(rests[0], rests[1], 0x51), bytes_of(rests[2], rests[3], 0x51), 0x5410);
    // One more than all bits of an exponent becomes a sign, which is that of a number's higher byte.
    memcpy(pairs, &few, sizeof few);
    for (unsigned &pair : pairs) pair = (pair & EXPONENTS<T>) + (0x80008000u - EXPONENTS<T>);
    return all & ~bytes_of(pairs[0], pairs[1], 0xfdb9);
}

/// Where such numbers are read from.
template <typename T> struct SplitSource {
    const T *high;
    const signed char *rest;

    __device__ SplitSource operator+(long long count) const { return {high + count, rest + count}; }
    /// There always is one: nothing waits for a choice.
    __device__ explicit operator bool() const { return true; }
};

template <int N, typename T> __device__ inline void read_columns(float (&values)[N], SplitSource<T> x) {
    const Few<N, T> high = *reinterpret_cast<const Few<N, T> *>(x.high);
    const Few<N, signed char> rest = *reinterpret_cast<const Few<N, signed char> *>(x.rest);
    unpack(values, high);
    for (int i = 0; i < N; i++) values[i] = joined<T>(values[i], rest.numbers[i]);
}

/// Where they are written to.
template <typename T> struct Split {
    T *high;
    signed char *rest;

    __device__ Split operator+(long long count) const { return {high + count, rest + count}; }

    template <int N> __device__ void write(int column, const float (&values)[N]) const {
        // A single one like four.
        float four[4] = {};
        for (int i = 0; i < N; i++) four[i] = values[i];
        const Few<4, T> few = rounded<T>(four);
        unsigned rests = rests_of(four, few);
        Few<N, T> written;
        memcpy(&written, &few, sizeof written);
        *reinterpret_cast<Few<N, T> *>(high + column) = written;
        // As bytes they would be taken apart first.
        if constexpr (N == 4) {
            *reinterpret_cast<unsigned *>(rest + column) = rests;
        } else {
            static_assert(N == 1);
            rest[column] = static_cast<signed char>(rests);
        }
    }
};
