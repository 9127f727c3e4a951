// Rotary position embedding (RoFormer, arXiv:2104.09864), halves rotated against each other.
#include "wide.cuh"

namespace {

/// A token's heads, each `[2 * half]`, turned by the angles whose cosines and sines are given.
template <int N, typename T>
__device__ void rotate_token(T *__restrict__ y, const T *x, const float *cos, const float *sin, int heads, int half,
                             int x_inner) {
    for (int i = N * threadIdx.x; i < heads * half; i += N * THREADS) {
        int head = i / half, column = i % half;
        const T *from = x + static_cast<long long>(head) * x_inner + column;
        T *to = y + head * 2 * half + column;
        float first[N], second[N], cosines[N], sines[N], y_first[N], y_second[N];
        read_columns(first, from);
        read_columns(second, from + half);
        read_columns(cosines, cos + column);
        read_columns(sines, sin + column);
        for (int j = 0; j < N; j++) {
            y_first[j] = first[j] * cosines[j] - second[j] * sines[j];
            y_second[j] = second[j] * cosines[j] + first[j] * sines[j];
        }
        write_columns(to, y_first);
        write_columns(to + half, y_second);
    }
}

/// A block a token.
template <typename T>
__device__ void rotate(T *y, const T *x, const float *cos, const float *sin, const unsigned *positions, int heads,
                       int width, int x_outer, int x_inner) {
    int half = width / 2;
    long long angles = static_cast<long long>(positions[blockIdx.x]) * half;
    y += static_cast<long long>(blockIdx.x) * heads * width;
    x += static_cast<long long>(blockIdx.x) * x_outer;
    if (x_inner % WIDE == 0 && are_wide(half, y, x, cos + angles, sin + angles)) {
        rotate_token<WIDE>(y, x, cos + angles, sin + angles, heads, half, x_inner);
    } else {
        rotate_token<1>(y, x, cos + angles, sin + angles, heads, half, x_inner);
    }
}

} // namespace

#define ROTATE(NAME, T)                                                                                                \
    KERNEL(NAME, T *y, const T *x, const float *cos, const float *sin, const unsigned *positions, int heads,           \
           int width, int x_outer, int x_inner) {                                                                      \
        rotate(y, x, cos, sin, positions, heads, width, x_outer, x_inner);                                             \
    }

ROTATE(rotate_f32, float)
ROTATE(rotate_bf16, bf16)
ROTATE(rotate_f16, f16)
