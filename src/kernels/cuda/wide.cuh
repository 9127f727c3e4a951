// Columns read and written several at a time where they are aligned for it: N is 4 there, or what the file says, else 1.
#pragma once

#include "device.cuh"

constexpr int WIDE = 4;

/// Numbers that are read or written at once.
template <int N, typename T> struct alignas(N * sizeof(T)) Few {
    T numbers[N];
};

/// Their values, of 16 bits two at a time too.
template <int N, typename T> __device__ inline void unpack(float (&values)[N], const Few<N, T> &few) {
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
        unsigned pairs[N / 2];
        memcpy(pairs, &few, sizeof few);
        for (int i = 0; i < N / 2; i++) {
            float2 both = unpacked<T>(pairs[i]);
            values[2 * i] = both.x;
            values[2 * i + 1] = both.y;
        }
    } else {
        for (int i = 0; i < N; i++) values[i] = to_float(few.numbers[i]);
    }
}

template <int N, typename T> __device__ inline void read_columns(float (&values)[N], const T *x) {
    const Few<N, T> few = *reinterpret_cast<const Few<N, T> *>(x);
    unpack(values, few);
}

/// The nearest numbers of T, those of 16 bits two at a time.
template <typename T, int N> __device__ inline Few<N, T> rounded(const float (&values)[N]) {
    Few<N, T> few;
    if constexpr (sizeof(T) == 2 && N % 2 == 0) {
        unsigned pairs[N / 2];
        for (int i = 0; i < N / 2; i++) pairs[i] = packed<T>(values[2 * i], values[2 * i + 1]);
        memcpy(&few, pairs, sizeof few);
    } else {
        for (int i = 0; i < N; i++) few.numbers[i] = from_float<T>(values[i]);
    }
    return few;
}

template <int N, typename T> __device__ inline void write_columns(T *y, const float (&values)[N]) {
    *reinterpret_cast<Few<N, T> *>(y) = rounded<T>(values);
}

/// Whether so many columns from each of these addresses on, of which some may be null, go by so many at once.
template <int N = WIDE, typename... T> __device__ inline bool are_wide(long long columns, const T *...rows) {
    return columns % N == 0 && (... && (reinterpret_cast<unsigned long long>(rows) % sizeof(Few<N, T>) == 0));
}
