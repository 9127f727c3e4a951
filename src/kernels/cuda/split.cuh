// Numbers in 24 bits: one of 16 bits, which is what products take, and how far the number is from it, in 255ths of the
// distance between two neighbours there: less than half of it, so that the two together round to the one again. So what
// layers pass on is read and written in three bytes and not in four.
#pragma once

#include "wide.cuh"

/// The bits of the power of two that a number is at least, or of 0.
__device__ inline unsigned power_bits(float x) { return bits_of(x) & 0x7f800000u; }

/// A power of two over a 255th of the distance from there to the next number.
template <typename T> constexpr float PARTS = 255 * 0x1p10f;
template <> constexpr float PARTS<bf16> = 255 * 0x1p7f;

template <typename T> __device__ inline float joined(T high, signed char rest) {
    float x = to_float(high);
    return x + static_cast<float>(rest) * (of_bits(power_bits(x)) * (1.0f / PARTS<T>));
}

template <typename T> __device__ inline signed char rest_of(float x, T high) {
    // Not beyond what is half of the distance, but where the number is next to no number of T.
    float rest = (x - to_float(high)) * of_bits((254u << 23) - power_bits(to_float(high))) * PARTS<T>;
    return static_cast<signed char>(fminf(fmaxf(rintf(rest), -127.0f), 127.0f));
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
        Few<N, T> few;
        Few<N, signed char> more;
        for (int i = 0; i < N; i++) {
            few.numbers[i] = from_float<T>(values[i]);
            more.numbers[i] = rest_of(values[i], few.numbers[i]);
        }
        *reinterpret_cast<Few<N, T> *>(high + column) = few;
        *reinterpret_cast<Few<N, signed char> *>(rest + column) = more;
    }
};
