// Columns read and written several at a time where they are aligned for it: N is 4 there, or what the file says, else 1.
#pragma once

#include "device.cuh"

constexpr int WIDE = 4;

/// Numbers that are read or written at once.
template <int N, typename T> struct alignas(N * sizeof(T)) Few {
    T numbers[N];
};

template <int N, typename T> __device__ inline void read_columns(float (&values)[N], const T *x) {
    const Few<N, T> few = *reinterpret_cast<const Few<N, T> *>(x);
    for (int i = 0; i < N; i++) values[i] = to_float(few.numbers[i]);
}

template <int N, typename T> __device__ inline void write_columns(T *y, const float (&values)[N]) {
    Few<N, T> few;
    for (int i = 0; i < N; i++) few.numbers[i] = from_float<T>(values[i]);
    *reinterpret_cast<Few<N, T> *>(y) = few;
}

/// Whether so many columns from each of these addresses on, of which some may be null, go by so many at once.
template <int N = WIDE, typename... T> __device__ inline bool are_wide(long long columns, const T *...rows) {
    return columns % N == 0 && (... && (reinterpret_cast<unsigned long long>(rows) % sizeof(Few<N, T>) == 0));
}
