// The words of device.cuh for a host compiler: every thread of a block is a fiber of the calling thread, blocks run one
// after the other (emulated.cpp). What a GPU would hang on, or leave to chance, ends the launch or shows as NaN.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <utility>

#define __device__
#define __restrict__
#define __launch_bounds__(...)
#define __forceinline__ inline

using std::max;
using std::min;

struct bf16 {
    unsigned short bits;
};

struct f16 {
    unsigned short bits;
};

// Views of arrays of any type.
struct __attribute__((may_alias, aligned(16))) uint4 {
    unsigned x, y, z, w;
};

struct __attribute__((may_alias, aligned(16))) float4 {
    float x, y, z, w;
};

struct float2 {
    float x, y;
};

namespace emulated {

struct Place {
    unsigned x, y, z;
};

/// A kernel, callable with the addresses of its arguments; all of them stand in a list.
struct Kernel {
    const char *name;
    void (*function)();
    void (*call)(void (*function)(), void **arguments);
    /// Bytes of each argument, and how many there are.
    const std::size_t *sizes;
    std::size_t count;
    const Kernel *next;

    template <typename... A> Kernel(const char *name, void (*kernel)(A...));
};

/// Puts a kernel into the list and returns the one before it.
const Kernel *enlist(const Kernel *kernel);

template <typename... A, std::size_t... I>
void call(void (*function)(A...), void **arguments, std::index_sequence<I...>) {
    function(*static_cast<A *>(arguments[I])...);
}

/// Bytes of each.
template <typename... A> const std::size_t *sizes_of() {
    static const std::size_t sizes[] = {sizeof(A)...};
    return sizes;
}

template <typename... A>
Kernel::Kernel(const char *name, void (*kernel)(A...))
    : name(name), function(reinterpret_cast<void (*)()>(kernel)),
      call([](void (*function)(), void **arguments) {
          emulated::call(reinterpret_cast<void (*)(A...)>(function), arguments, std::index_sequence_for<A...>());
      }),
      sizes(sizes_of<A...>()), count(sizeof...(A)), next(enlist(this)) {}

/// What all lanes of a warp do together. Only where they meet do they see what others have written.
enum Together { EXCHANGE, MEET, MULTIPLY, LOAD, STORE, AGREE };

/// The number of this thread within its warp.
int lane();

/// Memory of the warp for what it does next, the same for all its lanes until they have done it.
void *memory_of_warp();

/// Waits for all lanes of the warp to come to the same.
void wait_for_warp(Together what);

void wait_for_block();

/// Memory of the block: the same for every thread that names this key. It begins as NaN.
void *memory_of_block(const void *key, std::size_t bytes);

void copy_later(void *target, const void *source);
void wait_for_copies();
void end_group_of_copies();
void wait_for_copies_but(int few);

inline float float_of_bits(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline unsigned bits_of_float(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

/// The bits without the last `count`, rounded to nearest, to even between two.
inline unsigned rounded(unsigned bits, int count) {
    unsigned half = (1u << (count - 1)) - 1;
    return (bits + half + ((bits >> count) & 1)) >> count;
}

inline float float_of_f16(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = (bits >> 10) & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | (fraction << 13));
    if (exponent > 0) return float_of_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
    float x = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -x : x;
}

inline unsigned short f16_of_float(float x) {
    unsigned bits = bits_of_float(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7e00u | ((size >> 13) & 0x3ffu));
    // From halfway between the greatest number and the next power of two on.
    if (size >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
    if (size >= 0x38800000u) return static_cast<unsigned short>(sign | rounded(size - (112u << 23), 13));
    // Below 2^-14 the spacing is that of 2^-24; the sum with 2^-1 has it as well and rounds by itself.
    unsigned fraction = bits_of_float(float_of_bits(size) + 0.5f) - 0x3f000000u;
    return static_cast<unsigned short>(sign | fraction);
}

inline unsigned short bf16_of_float(float x) {
    unsigned bits = bits_of_float(x);
    bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return static_cast<unsigned short>(is_nan ? (bits >> 16) | 0x40u : rounded(bits, 16));
}

} // namespace emulated

extern __thread emulated::Place threadIdx, blockIdx, blockDim, gridDim;

#define KERNEL(name, ...) EMULATED_KERNEL(name, __VA_ARGS__)
#define CROWDED_KERNEL(blocks, name, ...) EMULATED_KERNEL(name, __VA_ARGS__)
#define EMULATED_KERNEL(name, ...)                                                                                     \
    static void name(__VA_ARGS__);                                                                                     \
    static const emulated::Kernel kernel_##name(#name, name);                                                          \
    static void name(__VA_ARGS__)

#define PARAMETER(type) type

#define SHARED(type, name, count)                                                                                      \
    static const char key_of_##name = 0;                                                                               \
    type(&name)[count] =                                                                                               \
        *static_cast<type(*)[count]>(emulated::memory_of_block(&key_of_##name, sizeof(type) * (count)))

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulated::float_of_bits(static_cast<unsigned>(x.bits) << 16); }
inline float to_float(f16 x) { return emulated::float_of_f16(x.bits); }

template <typename T> inline T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) { return bf16{emulated::bf16_of_float(x)}; }
template <> inline f16 from_float<f16>(float x) { return f16{emulated::f16_of_float(x)}; }

inline float of_bits(unsigned bits) { return emulated::float_of_bits(bits); }
inline unsigned bits_of(float x) { return emulated::bits_of_float(x); }

inline float power_of_two(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

inline float exchanged(float x, int bits) {
    float *lanes = static_cast<float *>(emulated::memory_of_warp());
    int lane = emulated::lane();
    lanes[lane] = x;
    emulated::wait_for_warp(emulated::EXCHANGE);
    return lanes[lane ^ bits];
}

inline void barrier() { emulated::wait_for_block(); }
inline void warp_barrier() { emulated::wait_for_warp(emulated::MEET); }

inline void copy_later(void *target, const void *source) { emulated::copy_later(target, source); }

inline void copy_later_or_zeros(void *target, const void *source, bool is_there) {
    static const uint4 zeros = {};
    emulated::copy_later(target, is_there ? source : &zeros);
}
inline void wait_for_copies() { emulated::wait_for_copies(); }
inline void end_group_of_copies() { emulated::end_group_of_copies(); }
template <int FEW> inline void wait_for_older_copies() { emulated::wait_for_copies_but(FEW); }

template <typename T> inline unsigned packed(float low, float high) {
    return from_float<T>(low).bits | static_cast<unsigned>(from_float<T>(high).bits) << 16;
}

template <typename T> inline float2 unpacked(unsigned both) {
    return {to_float(T{static_cast<unsigned short>(both)}), to_float(T{static_cast<unsigned short>(both >> 16)})};
}

inline unsigned bytes_of(unsigned first, unsigned second, unsigned digits) {
    unsigned bytes = 0;
    for (int i = 0; i < 4; i++) {
        unsigned digit = digits >> 4 * i & 15;
        unsigned byte = (digit & 4 ? second : first) >> digit % 4 * 8 & 255;
        if (digit & 8) byte = byte & 128 ? 255 : 0;
        bytes |= byte << 8 * i;
    }
    return bytes;
}

template <typename T> inline void write_pair(T *target, float low, float high) {
    target[0] = from_float<T>(low);
    target[1] = from_float<T>(high);
}

/// The fragments' layouts are those of the PTX manual: group = lane / 4 and pair = 2 * (lane % 4).
template <typename T> inline void multiply_add(float (&y)[4], const unsigned (&a)[4], unsigned b_low, unsigned b_high) {
    struct Matrices {
        float a[16][16], b[16][8];
    };
    auto &all = *static_cast<Matrices *>(emulated::memory_of_warp());
    int group = emulated::lane() / 4, pair = emulated::lane() % 4 * 2;
    auto half = [](unsigned both, int i) { return to_float(T{static_cast<unsigned short>(both >> 16 * i)}); };
    for (int i = 0; i < 2; i++) {
        for (int part = 0; part < 4; part++) {
            all.a[group + part % 2 * 8][pair + part / 2 * 8 + i] = half(a[part], i);
        }
        all.b[pair + i][group] = half(b_low, i);
        all.b[pair + 8 + i][group] = half(b_high, i);
    }
    emulated::wait_for_warp(emulated::MULTIPLY);
    for (int i = 0; i < 4; i++) {
        float sum = 0.0f;
        for (int k = 0; k < 16; k++) sum += all.a[group + i / 2 * 8][k] * all.b[k][pair + i % 2];
        y[i] += sum;
    }
}

namespace emulated {

/// What a warp loads and stores together, of one lane.
void hold_to_alignment(const void *row);
void read_row(void *y, const void *row);
void write_word(unsigned *target, unsigned x);

/// Four matrices of 8 rows of 16 bytes; lane i brings row i % 8 of matrix i / 8.
inline void load(unsigned (&y)[4], const void *row, bool is_transposed) {
    typedef unsigned short Row[8];
    Row *rows = static_cast<Row *>(memory_of_warp());
    read_row(rows[lane()], row);
    int group = lane() / 4, pair = lane() % 4 * 2;
    wait_for_warp(LOAD);
    for (int i = 0; i < 4; i++) {
        unsigned low = is_transposed ? rows[8 * i + pair][group] : rows[8 * i + group][pair];
        unsigned high = is_transposed ? rows[8 * i + pair + 1][group] : rows[8 * i + group][pair + 1];
        y[i] = low | high << 16;
    }
}

/// The other way round; `tell` is told of each word that was written.
template <typename F> void store(void *row, const unsigned (&x)[4], F tell) {
    typedef char *Row;
    Row *rows = static_cast<Row *>(memory_of_warp());
    hold_to_alignment(row);
    rows[lane()] = static_cast<char *>(row);
    wait_for_warp(STORE);
    for (int i = 0; i < 4; i++) {
        unsigned *target = reinterpret_cast<unsigned *>(rows[8 * i + lane() / 4]) + lane() % 4;
        write_word(target, x[i]);
        tell(target);
    }
}

} // namespace emulated

inline void load_matrices(unsigned (&y)[4], const void *row) { emulated::load(y, row, false); }
inline void load_transposed(unsigned (&y)[4], const void *row) { emulated::load(y, row, true); }
inline void store_matrices(void *row, const unsigned (&x)[4]) {
    emulated::store(row, x, [](unsigned *) {});
}
